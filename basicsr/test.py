"""Tests a network: restores the sets of an option file and measures the results.

    python basicsr/test.py -opt options/test/Deblurring_GoPro.yml
    python basicsr/test.py -opt options/test/Deblurring_GoPro.yml --force_yml path:pretrain_network_g=FILE

Prints a table for each set, and writes metrics.json and metrics.csv to results/<name>; with `val: {save_img: true}`
also the restored images, to results/<name>/visualization/<set>. A set without `dataroot_gt` is restored and not
measured. An image that cannot be read, restored or measured is named and left out. After an error or Ctrl-C, the
figures measured so far are printed and written.

Exit status: 0 if every image was restored and measured, 1 if not, 2 on wrong options, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('basicsr.test'))

import argparse

from torch import nn

from basicsr.archs.from_weights import load_pretrained
from basicsr.data.loader import validation_sets
from basicsr.evaluation.evaluate import Evaluation, build_metrics, evaluate
from basicsr.evaluation.report import as_table, write_figures
from basicsr.inference.restorer import build_restorer
from basicsr.options.arguments import add_option_file
from basicsr.options.load import read_options
from basicsr.utils.cli import file_or_folder
from basicsr.utils.device import resolve_device
from basicsr.utils.errors import RunError
from basicsr.utils.files import ROOT, check_writable
from basicsr.utils.logger import log_to_console
from basicsr.utils.registry import ARCH_REGISTRY


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description='Restores the sets of an option file and measures the results.')
    add_option_file(p)
    p.add_argument(
        '--results_dir',
        type=file_or_folder,
        default=ROOT / 'results',
        metavar='FOLDER',
        help='where the folders of results are; default: %(default)s',
    )
    return p


def main(args: argparse.Namespace) -> int:
    log_to_console()
    options = read_options(args.opt, args.force_yml, 'test')
    folder = args.results_dir / options.name
    device = resolve_device('cpu' if options.num_gpu == 0 else 'auto')
    net: nn.Module = ARCH_REGISTRY.build(options.network_g)
    path = options.path
    assert path.pretrain_network_g  # read_options has checked it
    load_pretrained(net, path.pretrain_network_g, path.strict_load_g, path.param_key_g)
    restorer = build_restorer(net, device, options.val)
    metrics = build_metrics(options.val.metrics)
    sets = validation_sets(options)
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        check_writable(existing)  # before hours of work
    except OSError as error:
        sentence = f'{folder} cannot be written: {error.strerror}; --results_dir FOLDER writes elsewhere'
        raise RunError(sentence) from None

    about = {'name': options.name, 'weights': options.path.pretrain_network_g}
    results: dict[str, Evaluation] = {}
    failed = 0
    for name, dataset in sets.items():
        result = Evaluation()
        try:
            evaluate(
                restorer.restore,
                dataset,
                metrics,
                device=device,
                rounded=options.val.use_image,
                folder=folder / 'visualization' / name if options.val.save_img else None,
                title=name,
                measure_input=True,
                result=result,
            )
        finally:
            failed += len(result.failed)
            if result.images:
                results[name] = result
                write_figures(folder, about, results)
                report(name, result, len(dataset))
    if results:
        print(f'\nWritten to {folder}')
    return 1 if failed else 0


def report(name: str, result: Evaluation, count: int) -> None:
    done = len(result.images)
    number = f'{done}' if done == count else f'{done} of {count}'
    if not result.means:
        print(f'\n{name}: {number} images restored; nothing to measure them against.', flush=True)
    else:
        title = name if done == count else f'{name}: {number} images'
        print(f'\n{title}\n{as_table(result)}', flush=True)
