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

from basicsr.data.sources import DataError
from basicsr.inference.image_files import ImageFileError
from basicsr.models.option_checks import read_options
from basicsr.models.testing import as_table, run_tests
from basicsr.utils.checkpoint import CheckpointError
from basicsr.utils.device import DeviceError, resolve_device
from basicsr.utils.files import ROOT
from basicsr.utils.logger import log_to_console
from basicsr.utils.options import OptionError


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Restores the sets of an option file and measures the results.'
    )
    parser.add_argument('-opt', '--opt', required=True, metavar='FILE', help='the option file (YAML)')
    parser.add_argument(
        '--force_yml',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY:SUBKEY=VALUE',
        help='change options of the file',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 stopped, 2 wrong options, 130 interrupted."""
    args = parse(argv)
    logger = log_to_console()
    try:
        options = read_options(args.opt, args.force_yml, 'test')
        device = resolve_device('cpu' if options.num_gpu == 0 else 'auto')
        folder = ROOT / 'results' / options.name
        results = run_tests(options, device, folder)
    except OptionError as error:
        count = len(error.mistakes)
        logger.error('%d mistake%s in the options:\n%s', count, '' if count == 1 else 's', error)
        return 2
    except (CheckpointError, DataError, DeviceError, FloatingPointError, ImageFileError, OSError) as error:
        logger.error('%s', error)
        return 1
    except KeyboardInterrupt:
        return 130
    for name, result in results.items():
        if result.means:
            print(f'\n{name}\n{as_table(result)}')
        else:
            print(f'\n{name}: {len(result.images)} images restored; nothing to measure them against.')
    print(f'\nWritten to {folder}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
