"""Tests a network: restores the sets of an option file and measures the results.

    python basicsr/test.py -opt options/test/Deblurring_GoPro.yml
    python basicsr/test.py -opt options/test/Deblurring_GoPro.yml --force_yml path:pretrain_network_g=FILE

Prints a table for each set, and writes metrics.json and metrics.csv into results/<name>; with
`val: {save_img: true}` the restored images, too. A set without `dataroot_gt` is restored and not measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Run as a script, Python puts basicsr/ itself in front, where `data` or `utils` would shadow other packages.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from basicsr.evaluation.report import as_table, run_tests
from basicsr.models.entry_point import exit_status, option_parser
from basicsr.options.load import read_options
from basicsr.utils.device import resolve_device
from basicsr.utils.files import ROOT
from basicsr.utils.logger import log_to_console


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 stopped, 2 wrong options, 130 interrupted."""
    args = option_parser('Restores the sets of an option file and measures the results.').parse_args(argv)
    log_to_console()
    return exit_status(lambda: _test(args))


def _test(args: argparse.Namespace) -> None:
    options = read_options(args.opt, args.force_yml, 'test')
    device = resolve_device('cpu' if options.num_gpu == 0 else 'auto')
    folder = ROOT / 'results' / options.name
    for name, result in run_tests(options, device, folder):
        if result.means:
            print(f'\n{name}\n{as_table(result)}', flush=True)
        else:
            print(
                f'\n{name}: {len(result.images)} images restored; nothing to measure them against.', flush=True
            )
    print(f'\nWritten to {folder}')


if __name__ == '__main__':
    sys.exit(main())
