"""The evaluate.py of a task folder: measures a network, or images restored elsewhere, beside published figures."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from basicsr.archs.from_weights import build_network
from basicsr.evaluation.evaluate import Evaluation, evaluate
from basicsr.evaluation.published import as_data, average, report
from basicsr.evaluation.test_sets import PATHS, ChosenSet
from basicsr.inference import Restorer
from basicsr.tasks import PROTOCOLS, Task, TestSet, check_weights_task, default_weights, find_task, how_to_get
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.cli import add_param_key, add_tlc, at_least, file_or_folder, usage_errors
from basicsr.utils.errors import CheckpointError, UsageError, UserError
from basicsr.utils.files import absolute, as_json, atomic_write, check_writable
from basicsr.utils.parallel import processors
from basicsr.utils.registry import METRIC_REGISTRY
from basicsr.utils.text import listed


def parser(tasks: Sequence[Task]) -> argparse.ArgumentParser:
    test_sets = [one for task in tasks for one in task.test_sets]
    names = list(dict.fromkeys(one.place for one in test_sets))
    protocols = list(dict.fromkeys(one.protocol for one in test_sets))
    sigmas = list(dict.fromkeys(sigma for task in tasks for sigma in task.sigmas))
    p = argparse.ArgumentParser(
        description='Measure a network, or images restored elsewhere, on the test sets, beside the published figures.'
    )
    folder: dict[str, Any] = {'type': absolute_path, 'metavar': 'FOLDER'}
    file: dict[str, Any] = {'type': absolute_path, 'metavar': 'FILE'}
    number: dict[str, Any] = {'type': at_least(1), 'metavar': 'N'}
    if len(tasks) > 1:
        choices = [task.name for task in tasks]
        one_of = f'one of {", ".join(choices)} (any letter case)'
        p.add_argument('--task', required=True, type=str.lower, choices=choices, metavar='TASK', help=one_of)
    pairs = p.add_argument_group('what to measure on')
    sets = f'one or more of {", ".join(names)} (any letter case); default: those in --data_dir'
    lower = [name.lower() for name in names]
    pairs.add_argument('--datasets', nargs='+', type=str.lower, choices=lower, metavar='SET', help=sets)
    layouts = dict.fromkeys(one.layout for one in test_sets)
    inside = [' and '.join(f'<SET>/{path}' for path in PATHS[layout].values()) for layout in layouts]
    data = f'with {", or ".join(inside)}; default: {tasks[0].folder}/Datasets/test of the repository'
    pairs.add_argument('--data_dir', default=tasks[0].datasets / 'test', **folder, help=data)
    pairs.add_argument('--input_dir', **folder, help='degraded images of your own')
    pairs.add_argument('--target_dir', **folder, help='clean images with the same names as the degraded ones')
    usual = protocols[0] if len(tasks) == 1 else 'that of the task'
    protocol = f'how to measure --input_dir and --target_dir; default: {usual}'
    pairs.add_argument('--protocol', choices=protocols, help=protocol)
    pairs.add_argument('--limit', **number, help='only the first N images of each set, for a quick look')

    what = p.add_argument_group('network')
    included = '; with --input_dir, the included ones if those are not downloaded'
    weights = (
        'a checkpoint, trained here or published; default: the published weights'
        f'{included if any(task.shipped for task in tasks) else ""}'
    )
    what.add_argument('--weights', **file, help=weights)
    if sigmas:
        sigma = (
            'Gaussian denoising: noise levels to measure on, each with the weights trained for it; blind, the default: '
            'all levels, with the weights for any level. With --weights or --restored_dir it chooses levels alone'
        )
        what.add_argument('--sigma', nargs='+', choices=sigmas, help=sigma)
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
    uploads = '; of SIDD and DND: the files to upload' if {'sidd', 'dnd'} & {*layouts} else ''
    save = f'also write the results, as <FOLDER>/<SET>/<name>.png{uploads}'
    how.add_argument('--save_dir', **folder, help=save)
    figures = 'also write all figures, with those of each image; null: infinite, as the PSNR of equal images is'
    how.add_argument('--json', **file, help=figures)
    return p


def absolute_path(text: str) -> Path:
    return absolute(file_or_folder(text))


def main(args: argparse.Namespace, tasks: Sequence[Task]) -> int:
    task = find_task(args.task) if len(tasks) > 1 else tasks[0]
    sigmas = chosen_sigmas(args, task)
    check_args(args, task)
    chosen, missing = chosen_sets(args, task, sigmas)
    for sentence in missing:
        print(sentence, file=sys.stderr, flush=True)
    if not chosen:
        raise UsageError('no test set to measure on')
    leave_out_figures(chosen)
    for one in chosen:  # before any work
        one.open(args.save_dir, args.limit)
    about: dict[str, object] = {'task': task.name} if len(tasks) > 1 else {}
    about['limit'] = args.limit
    networks: dict[str, Network] = {}
    if args.restored_dir:
        about['restored_dir'] = str(args.restored_dir)
    else:
        networks = build_networks(args, task, sigmas)
    is_shared = len({*networks.values()}) == 1
    if is_shared:
        about |= networks[sigmas[0]].about

    results: dict[str, object] = {}
    content = {**about, 'datasets': results}
    complete: dict[str, dict[str, float]] = {}
    failed = bool(args.datasets and missing)
    for one in chosen:
        network = networks.get(one.sigma)
        result = Evaluation()
        try:
            measure(one, network, args, result)
        finally:  # an exception must not lose figures that may have taken hours
            failed |= bool(result.failed)
            if result.images:
                print(report(one, result), flush=True)
                own = network.about if network and not is_shared else {}
                results[one.name] = as_data(one, result) | own
                write_json(args.json, content)
        if len(result.images) == len(one.images):
            complete[one.name] = result.means
    if task.average and len(complete) > 1:
        text, content['average'] = average(task, complete, chosen[0].figures)
        print(text, flush=True)
        write_json(args.json, content)
    return 1 if failed else 0


def measure(one: ChosenSet, network: Network | None, args: argparse.Namespace, result: Evaluation) -> None:
    """Restores a set, or takes its restored images, measures it, and writes what --save_dir asks for."""
    folder = args.save_dir and args.save_dir / one.name
    uploads = one.uploads(folder) if folder else None
    try:
        evaluate(
            network.restorer.restore if network else None,
            one.images,
            one.metrics,
            device=network.restorer.device if network else torch.device('cpu'),
            rounded=PROTOCOLS[one.test_set.protocol].rounded,
            folder=None if uploads else folder,
            save=uploads,
            title=one.name,
            measure_input=True,
            limit=args.limit,
            workers=args.workers,
            result=result,
        )
    finally:
        if uploads and uploads.unfinished:
            files = listed(map(str, uploads.unfinished))
            print(f'{one.name}: not written, as some of their results are missing: {files}', flush=True)


def write_json(path: Path | None, content: dict[str, object]) -> None:
    if path:
        atomic_write(path, as_json(content).encode())


def chosen_sigmas(args: argparse.Namespace, task: Task) -> list[str]:
    """The keys of `task.weights` to measure with. Raises UsageError."""
    given = getattr(args, 'sigma', None)
    if not given:
        return [next(iter(task.weights))]
    if not task.sigmas:
        raise UsageError(f'--sigma: found with --task {task.name}; allowed: for Gaussian denoising')
    if 'blind' in given and len(given) > 1:
        raise UsageError(
            f'--sigma: found {" ".join(given)}; allowed: blind alone, which has all levels, or levels'
        )
    if args.input_dir and (len(given) > 1 or args.weights or args.restored_dir):
        raise UsageError('--sigma: found with --input_dir; allowed: one value, to choose the published weights')
    return list(dict.fromkeys(given))


def check_args(args: argparse.Namespace, task: Task) -> None:
    """Raises UsageError on arguments that do not fit each other, or a file that cannot be written."""
    places = list(dict.fromkeys(one.place for one in task.test_sets))
    if others := [name for name in args.datasets or () if name not in [place.lower() for place in places]]:
        raise UsageError(
            f'--datasets: found {", ".join(others)}; allowed: {", ".join(places)}, for {task.name}'
        )
    if (args.input_dir is None) != (args.target_dir is None):
        raise UsageError('found one of --input_dir and --target_dir; allowed: both or neither')
    if args.input_dir and task.channels[0] > 3:  # two views
        raise UsageError(
            f'--input_dir: found with --task {task.name}; allowed: --data_dir FOLDER, with '
            f'{", ".join(f"FOLDER/{places[0]}/{path}" for path in PATHS["dual_pixel"].values())}'
        )
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


def chosen_sets(args: argparse.Namespace, task: Task, sigmas: list[str]) -> tuple[list[ChosenSet], list[str]]:
    """The sets whose files exist, and a sentence about each set that is skipped."""
    chosen, missing = [], []
    channels = cast(Literal[1, 3], task.channels[1])
    if args.input_dir:
        pairs = TestSet('pairs', args.protocol or task.test_sets[0].protocol)
        paths = {'input': args.input_dir, 'target': args.target_dir}
        chosen.append(ChosenSet(pairs, paths, channels, sigmas[0]))
    else:
        for one in task.test_sets:
            level = str(one.sigma) if one.sigma and 'blind' not in sigmas else sigmas[0]
            if level not in sigmas or (args.datasets and one.place.lower() not in args.datasets):
                continue
            paths = {kind: args.data_dir / one.place / path for kind, path in PATHS[one.layout].items()}
            absent = [path for path in paths.values() if not path.exists()]
            if absent:
                get = f'python {task.folder}/download_data.py --data {one.place}'
                missing.append(f'{one.place}: skipped, as {absent[0]} does not exist; {get} downloads it')
            elif one.layout == 'dnd' and not args.save_dir:
                missing.append(
                    f'{one.name}: skipped, as its ground truth is not public; --save_dir FOLDER writes files to upload'
                )
            elif one.layout == 'dnd' and importlib.util.find_spec('h5py') is None:
                missing.append(f'{one.name}: skipped, as the package h5py is not installed; `pip install h5py`')
            else:
                chosen.append(ChosenSet(one, paths, channels, level))
    if args.restored_dir:
        alone = len(chosen) == 1 and not (args.restored_dir / chosen[0].name).is_dir()
        for each in list(chosen):
            each.restored = args.restored_dir if alone else args.restored_dir / each.name
            if not each.restored.is_dir():
                missing.append(f'{each.name}: skipped, as {each.restored} does not exist')
                chosen.remove(each)
    return chosen, list(dict.fromkeys(missing))


def leave_out_figures(chosen: list[ChosenSet]) -> None:
    """Leaves out and names the optional figures whose package is not installed or does not work."""
    black = np.zeros((64, 64, 3), np.uint8)
    for figure in {figure.key: figure for one in chosen for figure in one.figures if figure.optional}.values():
        try:
            METRIC_REGISTRY.get(figure.metric)(black, black)
        except UserError as error:
            print(f'{figure.title}: left out, as {error}', file=sys.stderr, flush=True)
            for one in chosen:
                one.figures = [other for other in one.figures if other.key != figure.key]


# --- network ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Network:
    restorer: Restorer
    weights: str
    tlc: bool | int

    @property
    def about(self) -> dict[str, object]:
        """For JSON."""
        return {'weights': self.weights, 'precision': self.restorer.precision, 'tlc': self.tlc}

    def __str__(self) -> str:
        return f'weights: {self.weights}\ndevice: {self.restorer.settings}'


def build_networks(args: argparse.Namespace, task: Task, sigmas: list[str]) -> dict[str, Network]:
    """Noise level → its network, the same for all levels with --weights; prints each. Raises UsageError."""
    with usage_errors():
        if args.weights:
            networks = dict.fromkeys(sigmas, load_network(args, task, sigmas[0]))
        else:
            networks = {sigma: load_network(args, task, sigma) for sigma in sigmas}
    for network in dict.fromkeys(networks.values()):
        print(network, flush=True)
    return networks


def load_network(args: argparse.Namespace, task: Task, sigma: str) -> Network:
    """The network of --weights, or the published one for a noise level. Raises CheckpointError, DeviceError,
    RestoreError or ValueError."""
    published = task.published_file(sigma)
    path = args.weights or (default_weights(task.name, sigma) if args.input_dir else published)
    if path == published and not path.is_file():
        shipped = f', such as {task.shipped_file}' if task.shipped else ''
        raise CheckpointError(
            f'{path}: found no published weights; {how_to_get(task, sigma)}; --weights takes others{shipped}'
        )
    weights = load_weights(path, args.param_key)
    check_weights_task(path, task, None if args.weights else sigma)
    tlc = weights.with_tlc(args.tlc)
    restorer = Restorer(
        build_network(weights), args.device or 'auto', args.precision or 'fp32', tlc=tlc, fixed_strips=True
    )
    given = restorer.channels, task.channels[1] if restorer.engine is None else restorer.engine.out_channels
    if given != task.channels:
        raise ValueError(
            f'{path}: found a network that makes {given[1]} channels of {given[0]}; allowed: '
            f'{task.channels[1]} of {task.channels[0]}, for {task.name}'
        )
    return Network(restorer, str(weights), tlc)
