"""The evaluate.py of a task: its network, or images restored elsewhere, on its test sets, beside published figures."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basicsr.archs.from_weights import build_network
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.evaluation.evaluate import Evaluation, ImageSet, evaluate
from basicsr.evaluation.report import fixed_width
from basicsr.inference import Restorer
from basicsr.metrics.metric import Metric
from basicsr.tasks import PROTOCOLS, Figure, Task, TestSet, default_weights
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.cli import add_param_key, add_tlc, at_least, file_or_folder, usage_errors
from basicsr.utils.errors import CheckpointError, DataError, UsageError
from basicsr.utils.files import absolute, as_json, atomic_write, check_writable
from basicsr.utils.parallel import processors
from basicsr.utils.registry import METRIC_REGISTRY
from basicsr.utils.text import listed


def parser(task: Task) -> argparse.ArgumentParser:
    names = [one.name for one in task.test_sets]
    protocols = list(dict.fromkeys(one.protocol for one in task.test_sets))
    p = argparse.ArgumentParser(
        description='Measure a network, or images restored elsewhere, on the test sets, beside the published figures.'
    )
    folder: dict[str, Any] = {'type': absolute_path, 'metavar': 'FOLDER'}
    file: dict[str, Any] = {'type': absolute_path, 'metavar': 'FILE'}
    number: dict[str, Any] = {'type': at_least(1), 'metavar': 'N'}
    pairs = p.add_argument_group('what to measure on')
    sets = f'one or more of {", ".join(names)} (any letter case); default: those in --data_dir'
    lower = [name.lower() for name in names]
    pairs.add_argument('--datasets', nargs='+', type=str.lower, choices=lower, metavar='SET', help=sets)
    data = f'with <SET>/input and <SET>/target; default: {task.folder}/Datasets/test of the repository'
    pairs.add_argument('--data_dir', default=task.datasets / 'test', **folder, help=data)
    pairs.add_argument('--input_dir', **folder, help='degraded images of your own')
    pairs.add_argument('--target_dir', **folder, help='clean images with the same names as the degraded ones')
    protocol = f'how to measure --input_dir and --target_dir; default: {protocols[0]}'
    pairs.add_argument('--protocol', choices=protocols, help=protocol)
    pairs.add_argument('--limit', **number, help='only the first N images of each set, for a quick look')

    what = p.add_argument_group('network')
    weights = (
        'a checkpoint, trained here or published; default: the published weights; with --input_dir, the included ones '
        'if those are not downloaded'
    )
    what.add_argument('--weights', **file, help=weights)
    add_param_key(what)
    add_tlc(what)
    precision = 'fp32, the default, bf16 (faster), fp16 (on a GPU), or auto: the fastest'
    what.add_argument('--precision', help=precision)
    device = 'auto, the default (a GPU if there is one), cpu, cuda, cuda:<number> or mps'
    what.add_argument('--device', help=device)
    restored = (
        'measure images restored elsewhere, with the names of the clean ones, in <FOLDER>/<SET> or, for one set, in '
        'FOLDER itself'
    )
    what.add_argument('--restored_dir', **folder, help=restored)

    how = p.add_argument_group('output')
    workers = 'threads that measure; default: one for each processor'
    how.add_argument('--workers', default=processors(), **number, help=workers)
    how.add_argument('--save_dir', **folder, help='also write the results, as <FOLDER>/<SET>/<name>.png')
    figures = 'also write all figures, with those of each image; null: infinite, as the PSNR of equal images is'
    how.add_argument('--json', **file, help=figures)
    return p


def absolute_path(text: str) -> Path:
    return absolute(file_or_folder(text))


def main(args: argparse.Namespace, task: Task) -> int:
    check_args(args)
    chosen, missing = chosen_sets(args, task)
    for sentence in missing:
        print(sentence, file=sys.stderr, flush=True)
    if not chosen:
        raise UsageError('no test set to measure on')
    sets = [(one, open_set(one, args)) for one in chosen]  # before any work
    about: dict[str, object] = {'limit': args.limit}
    restore, device = None, torch.device('cpu')
    if args.restored_dir:
        about['restored_dir'] = str(args.restored_dir)
    else:
        with usage_errors():
            restorer, weights, tlc = build_restorer(args, task)
        restore, device = restorer.restore, restorer.device
        print(f'weights: {weights}\ndevice: {device}, {restorer.precision}{", TLC" if tlc else ""}', flush=True)
        about |= {'weights': weights, 'precision': restorer.precision, 'tlc': tlc}

    results: dict[str, object] = {}
    failed = bool(args.datasets and missing)
    for one, images in sets:
        result = Evaluation()
        try:
            evaluate(
                restore,
                images,
                one.metrics,
                device=device,
                folder=args.save_dir and args.save_dir / one.name,
                title=one.name,
                measure_input=True,
                limit=args.limit,
                workers=args.workers,
                result=result,
            )
        finally:  # an exception must not lose figures that may have taken hours
            failed |= bool(result.failed)
            if result.images:
                print(f'\n{title(one, result, len(images))}\n{table(one, result)}', flush=True)
                results[one.name] = as_data(one, result, len(images))
                if args.json:
                    atomic_write(args.json, as_json({**about, 'datasets': results}).encode())
    return 1 if failed else 0


def check_args(args: argparse.Namespace) -> None:
    """Raises UsageError on arguments that do not fit each other, or a file that cannot be written."""
    if (args.input_dir is None) != (args.target_dir is None):
        raise UsageError('found one of --input_dir and --target_dir; allowed: both or neither')
    if args.input_dir and args.datasets:
        raise UsageError('--datasets: found together with --input_dir; allowed: one of them')
    if args.protocol and not args.input_dir:
        raise UsageError('--protocol: allowed with --input_dir only, as each test set has its own')
    for name in ('weights', 'param_key', 'tlc', 'precision', 'device', 'save_dir') if args.restored_dir else ():
        if (value := getattr(args, name)) is not None:
            flag = '--no-tlc' if value is False else f'--{name}'
            raise UsageError(f'--restored_dir: found with {flag}; allowed: without, as no image is restored')
    if args.json:
        try:
            check_writable(args.json.parent)  # before hours of work
        except OSError as error:
            raise UsageError(f'--json: {args.json} cannot be written ({error.strerror})') from None
        if args.json.is_dir():
            raise UsageError(f'--json: found the folder {args.json}; allowed: a file')


# --- what to measure on -------------------------------------------------------------------------------------


@dataclass
class ChosenSet:
    """`restored`: folder of its restored images; None: a network restores them."""

    test_set: TestSet
    input: Path
    target: Path
    restored: Path | None = None

    @property
    def name(self) -> str:
        return self.test_set.name

    @property
    def protocol(self) -> tuple[Figure, ...]:
        return PROTOCOLS[self.test_set.protocol].figures

    @property
    def metrics(self) -> dict[str, Metric]:
        return {one.key: Metric(METRIC_REGISTRY.get(one.metric), one.settings) for one in self.protocol}


def chosen_sets(args: argparse.Namespace, task: Task) -> tuple[list[ChosenSet], list[str]]:
    """The sets with all their folders, and a sentence about each other set."""
    chosen, missing = [], []
    if args.input_dir:
        pairs = TestSet('pairs', args.protocol or task.test_sets[0].protocol)
        chosen.append(ChosenSet(pairs, args.input_dir, args.target_dir))
    else:
        for one in task.test_sets:
            if args.datasets and one.name.lower() not in args.datasets:
                continue
            folders = [args.data_dir / one.name / kind for kind in ('input', 'target')]
            absent = [folder for folder in folders if not folder.is_dir()]
            if absent:
                get = f'python {task.folder}/download_data.py --data {one.name}'
                missing.append(f'{one.name}: skipped, as {absent[0]} does not exist; {get} downloads it')
            else:
                chosen.append(ChosenSet(one, *folders))
    if args.restored_dir:
        alone = len(chosen) == 1 and not (args.restored_dir / chosen[0].name).is_dir()
        for each in list(chosen):
            each.restored = args.restored_dir if alone else args.restored_dir / each.name
            if not each.restored.is_dir():
                missing.append(f'{each.name}: skipped, as {each.restored} does not exist')
                chosen.remove(each)
    return chosen, missing


def open_set(one: ChosenSet, args: argparse.Namespace) -> ImageSet:
    """Raises DataError on images without a partner, or that the results would replace."""
    pairs = Dataset_PairedImage(str(one.input), str(one.target))
    save = args.save_dir / one.name if args.save_dir else None
    if save and save.exists() and any(save.samefile(folder) for folder in (one.input, one.target)):
        raise DataError(f'--save_dir: found {save}, which holds images of the set; allowed: another folder')
    return RestoredPairs(pairs, one.restored, args.limit) if one.restored else pairs


class RestoredPairs:
    """Pairs, and as 'restored' the image of the same name in another folder. Raises DataError unless the first `limit`
    pairs have one, and every such image is of a pair."""

    def __init__(self, pairs: Dataset_PairedImage, folder: Path, limit: int | None) -> None:
        self.pairs, self.restored = pairs, Dataset_PairedImage(str(folder))
        self.files = pairs.files
        self.index = {name: index for index, name in enumerate(self.restored.names)}
        missing = [name for name in pairs.names[:limit] if name not in self.index]
        others = sorted(self.index.keys() - set(pairs.names))
        if missing or others:
            raise DataError(
                f'{folder}: found restored images with other names than the clean ones; missing: '
                f'{listed(missing) or "none"}; unknown: {listed(others) or "none"}'
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.index[self.pairs.names[index]]
        pair, restored = self.pairs[index], self.restored[number]['lq']
        if restored.shape != pair['gt'].shape:
            found, allowed = ('{2}x{1}'.format(*image.shape) for image in (restored, pair['gt']))
            raise DataError(
                f'{self.restored.files(number)}: found {found}; allowed: the size of its target, {allowed}'
            )
        return {**pair, 'restored': restored}


def build_restorer(args: argparse.Namespace, task: Task) -> tuple[Restorer, str, bool | int]:
    """The Restorer, its weights in words, and its TLC. Raises CheckpointError, DeviceError, RestoreError or
    ValueError."""
    path = args.weights or (default_weights(task.name) if args.input_dir else task.published_file())
    if path == task.published_file() and not path.is_file():
        raise CheckpointError(
            f'{path}: found no published weights; allowed: these, which python {task.folder}/download_data.py '
            f'--data weights gets, or others with --weights, as {task.shipped_file}'
        )
    weights = load_weights(path, args.param_key)
    tlc = weights.with_tlc(args.tlc)
    restorer = Restorer(
        build_network(weights), args.device or 'auto', args.precision or 'fp32', tlc=tlc, fixed_strips=True
    )
    if restorer.channels != 3:
        raise ValueError(f'{path}: found a network that takes {restorer.channels} channels; allowed: 3')
    return restorer, str(weights), tlc


# --- report -------------------------------------------------------------------------------------------------


def title(one: ChosenSet, result: Evaluation, available: int) -> str:
    if len(result.images) == available:
        return f'{one.name}: {available:,} images'
    apart = '; the published values are for the full set' if one.test_set.published else ''
    return f'{one.name}: {len(result.images):,} of {available:,} images only{apart}'


def table(one: ChosenSet, result: Evaluation) -> str:
    """A line for each figure: of the degraded images, of the results, and as published."""
    means, counts = result.means, count_false(one, result)
    rows = [['', 'input', 'result', *(f'{method}, published' for method in one.test_set.published)]]
    for figure in one.protocol:
        if figure.key in counts:
            ours = [str(number) for number in counts[figure.key].values()]
        else:
            ours = [f'{means[start + figure.key]:.4f}' for start in ('input_', '')]
        theirs = [
            f'{figures[figure.key]:.{figure.digits}f}' if figure.key in figures else '-'
            for figures in one.test_set.published.values()
        ]
        rows.append([figure.title, *ours, *theirs])
    return '\n'.join(fixed_width(rows))


def count_false(one: ChosenSet, result: Evaluation) -> dict[str, dict[str, int]]:
    """For each metric that tells whether something holds, for how many images it does not."""
    return {
        figure.key: {
            kind: sum(image[start + figure.key] is False for image in result.images)
            for kind, start in (('input', 'input_'), ('result', ''))
        }
        for figure in one.protocol
        if isinstance(result.images[0][figure.key], bool)
    }


def as_data(one: ChosenSet, result: Evaluation, available: int) -> dict[str, object]:
    """The JSON entry of a set."""
    return {
        'protocol': one.test_set.protocol,
        'input_dir': str(one.input),
        'target_dir': str(one.target),
        'images_available': available,
        'published': one.test_set.published,
        'mean': result.means,
        **{f'not_{key}': counts for key, counts in count_false(one, result).items()},
        **({'not_measured': result.failed} if result.failed else {}),
        'images': result.images,
    }
