"""Time and memory of a training step, loading included."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from basicsr.archs.restormer_arch import Restormer
from basicsr.data.loader import build_dataset, start_worker, training_loader
from basicsr.data.sampler import TrainingBatches, TrainingOrder, stages_of
from basicsr.data.transforms import to_float
from basicsr.models.image_clean_model import ImageCleanModel
from basicsr.options.load import read_options
from basicsr.utils.device import resolve_device
from basicsr.utils.dist import Rank
from basicsr.utils.memory import keep_all_memory
from basicsr.utils.parallel import processors
from scripts.benchmarks.measuring import (
    WARM_UP,
    Memory,
    begin,
    check_modes,
    figures,
    machine,
    measured,
    repeats,
    timed_on_gpu,
    title,
)
from scripts.benchmarks.networks import all_options, load_network, plain
from scripts.benchmarks.pairs import (
    COUNT,
    PlainPairs,
    check_patches,
    make_pairs,
    pack,
    recipe,
)
from scripts.benchmarks.table import (
    Column,
    Report,
    Row,
    fraction,
    gigabytes,
    milliseconds,
    multiple,
    rate,
    seconds,
    whole,
)

SMALL = {'dim': 16, 'num_blocks': [1, 1, 2, 2], 'num_refinement_blocks': 1, 'heads': [1, 2, 4, 8]}
CLIP_NORM = 0.01  # the recipe's, in which it has no key
BATCHES = 4  # ready on a GPU's host

COLUMNS = {
    'stage': Column('stage'),
    'mode': Column('mode'),
    'seconds': Column('median s', seconds),
    'range': Column('min-max s', lambda ends: '-'.join(map(seconds, ends)), 13),
    'samples_per_s': Column('samples/s', rate),
    'of_plain_speed': Column('of plain speed', multiple),
    'data_wait': Column('waits for data', '{:.1%}'.format),
    'working_MB': Column('working MB', whole),
    'of_plain_memory': Column('of plain memory', fraction),
    'peak_MB': Column('peak MB', whole),
}
GPU_COLUMNS = {
    'stage': Column('stage'),
    'mode': Column('mode'),
    'seconds': Column('device ms', milliseconds),
    'range': Column('min-max ms', lambda ends: '-'.join(map(milliseconds, ends)), 15),
    'launch_seconds': Column('launch ms', milliseconds),
    'samples_per_s': Column('samples/s', rate),
    'of_plain_speed': Column('of plain speed', multiple),
    'peak_MB': Column('peak GB', gigabytes),
    'of_plain_memory': Column('of plain memory', fraction),
}


def compare(args: argparse.Namespace) -> None:
    check_modes(args)
    stages = asked_stages(args)
    check_patches([patch for patch, _ in stages], Restormer.multiple)
    check_channels(args)
    modes = [*(['plain'] if args.plain_steps != 0 else []), *args.modes]
    with tempfile.TemporaryDirectory() as folder:
        make_pairs(Path(folder))
        rows = measured(
            args,
            [
                {'what': 'step', 'mode': mode, 'patch': patch, 'batch': batch, 'folder': folder}
                for patch, batch in stages
                for mode in modes
            ],
        )
        _, machine = next(rows)
        columns = GPU_COLUMNS if 'tf32' in machine else COLUMNS
        columns = {**columns, 'mode': Column('mode', width=max(map(len, modes)))}
        plain_rows: dict[str, Row] = {}
        with Report(machine, title(machine), columns, args.json) as report:
            for task, row in rows:
                stage = f'{task["patch"]}x{task["batch"]}'
                row = {'stage': stage, 'mode': task['mode'], **figures(row, task['batch'])}
                if row['mode'] == 'plain':
                    plain_rows[stage] = row
                plain = plain_rows.get(stage, {})
                if 'seconds' in plain and 'seconds' in row:
                    row['of_plain_speed'] = row['samples_per_s'] / plain['samples_per_s']
                    row['of_plain_memory'] = row['working_MB'] / plain['working_MB']
                report.add(row)


def asked_stages(args: argparse.Namespace) -> list[tuple[int, int]]:
    """Patch and batch of each stage."""
    train = recipe()['datasets']['train']
    paper = list(zip(train['gt_sizes'], train['mini_batch_sizes'], strict=True))
    return [stage for asked in args.stages for stage in (paper if asked == 'paper' else [asked])]


def check_channels(args: argparse.Namespace) -> None:
    options = asked_options(args)
    channels = (options['inp_channels'], options['out_channels'])
    if channels != (3, 3):
        found = ' and '.join(map(str, channels))
        raise ValueError(f'{args.weights}: found {found} channels in and out; allowed: 3 and 3')


def asked_options(args: argparse.Namespace) -> dict[str, Any]:
    """All of the constructor's arguments: as a file of weights says, or by name."""
    options = all_options(args.weights)
    return options | SMALL if args.network == 'small' and not args.weights else options


# --- in the process of its rows ------------------------------------------------------------------------------


class Run(NamedTuple):
    """What is trained in one row, and for how long."""

    mode: str
    patch: int
    batch: int
    folder: Path
    device: torch.device
    workers: int
    warm_up: int
    steps: int

    @property
    def batches(self) -> int:
        """More than are used, so that the workers are as busy in the last steps as in the middle of a long run."""
        return self.warm_up + self.steps + 2 * self.workers + 1


def measure(args: argparse.Namespace, task: dict[str, Any]) -> Row:
    device = resolve_device(args.device)
    begin(device)
    if task['what'] == 'machine':
        return machine(device)
    mode = task['mode']
    workers = recipe()['datasets']['train']['num_worker_per_gpu'] if args.workers is None else args.workers
    run = Run(
        mode,
        task['patch'],
        task['batch'],
        Path(task['folder']),
        device,
        min(workers, processors()),  # as many as training takes
        # Libraries choose their ways, the optimiser makes its state; a compiler compiles.
        WARM_UP if device.type == 'cuda' else 2 + ('compile' in mode),
        repeats(args.plain_steps, device, 5) if mode == 'plain' else args.steps,
    )
    return (plain_steps if mode.startswith('plain') else our_steps)(args, run)


def plain_steps(args: argparse.Namespace, run: Run) -> Row:
    """The network and its training as they are usually written: on a CPU the loader gives the largest batch of the
    largest patches of all stages, of which the step takes the first ones, and one crop for all of them."""
    network, options = plain_network(args)
    network.to(run.device).train()
    restore = plain(network, options, run.mode)
    parameters = list(network.parameters())
    settings = {key: value for key, value in recipe()['train']['optim_g'].items() if key != 'type'}
    optimizer = torch.optim.AdamW(parameters, **settings)

    def step(images: dict[str, Tensor], _: int) -> None:
        top, left = torch.randint(images['gt'].shape[-1] - run.patch + 1, (2,)).tolist()
        window = (slice(run.batch), ..., slice(top, top + run.patch), slice(left, left + run.patch))
        lq, gt = (to_float(images[kind][window].to(run.device, non_blocking=True)) for kind in ('lq', 'gt'))
        optimizer.zero_grad()
        F.l1_loss(restore(lq), gt).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()

    memory = Memory(run.device)
    if run.device.type == 'cuda':
        return {**steps_on_gpu(step, run, memory), **memory.read()}
    patches, sizes = zip(*asked_stages(args), strict=True)
    dataset = PlainPairs(run.folder, max(patches))
    loader = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=max(sizes),
        sampler=RandomSampler(dataset, replacement=True, num_samples=max(sizes) * run.batches),
        num_workers=run.workers,
        worker_init_fn=start_worker,
    )
    return {**timed_steps(step, loader, run), **memory.read()}


def plain_network(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    if args.weights:
        return load_network(args.weights)
    options = asked_options(args)
    torch.manual_seed(0)
    return Restormer(**options), options


def our_steps(args: argparse.Namespace, run: Run) -> Row:
    """Model and loader as basicsr/train.py makes them."""
    if run.device.type == 'cpu':
        keep_all_memory()
    path = run.folder / f'{run.patch}x{run.batch}-{run.mode}.yml'
    path.write_text(yaml.safe_dump(our_options(args, run)))
    options: Any = read_options(path, [], 'train')
    model = ImageCleanModel(options, run.device, Rank())
    memory = Memory(run.device)

    def step(batch: dict[str, Tensor], iteration: int) -> None:
        model.step([batch], iteration, 0)

    if run.device.type == 'cuda':
        row = steps_on_gpu(step, run, memory, model.release)
        model.raise_if_bad()
        return {**row, **memory.read()}
    section = options.datasets['train']
    dataset = build_dataset(section)
    order = TrainingOrder(len(dataset), options.manual_seed, section.use_shuffle, section.dataset_enlarge_ratio)
    batches = TrainingBatches(order, stages_of(section), 1, options.train.total_iter)
    loader = training_loader(dataset, batches, section.num_worker_per_gpu, run.device)
    row = timed_steps(step, loader, run)
    model.raise_if_bad()
    return {**row, **memory.read()}


def our_options(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """The paper's recipe, but for what is measured."""
    options = recipe()
    precision, *ways = run.mode.split('+')
    network = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asked_options(args).items()
    }
    train_set = {
        'type': 'Dataset_PackedImage',
        'dataroot': str(pack(run.folder)),
        'num_worker_per_gpu': run.workers,
        'dataset_enlarge_ratio': ceil(run.batch / COUNT),
        'batch_size_per_gpu': run.batch,
        'gt_size': run.patch,
    }
    return {
        'name': 'benchmark',
        'num_gpu': 0 if run.device.type == 'cpu' else 1,
        'manual_seed': options['manual_seed'],
        'datasets': {'train': train_set},
        'network_g': {'type': 'Restormer', **network},
        'path': {'pretrain_network_g': str(args.weights.absolute()) if args.weights else None},
        'train': {
            **options['train'],
            'total_iter': run.batches,
            'precision': precision,
            'compile': 'compile' in ways,
            'activation_checkpointing': 'checkpointing' in ways,
        },
    }


def steps_on_gpu(
    step: Callable[[Any, int], None], run: Run, memory: Memory, forget: Callable[[], object] | None = None
) -> Row:
    """The row's times on batches of noise that lie ready, in bytes, where a GPU copies them from by itself."""
    shape = (run.batch, 3, run.patch, run.patch)
    ready = [
        {kind: torch.randint(256, shape, dtype=torch.uint8).pin_memory() for kind in ('lq', 'gt')}
        for _ in range(BATCHES)
    ]
    iterations = itertools.count(1)

    def work() -> None:
        iteration = next(iterations)
        step(ready[iteration % BATCHES], iteration)

    return timed_on_gpu(work, run.steps, memory, forget)


def timed_steps(step: Callable[[Any, int], None], loader: DataLoader, run: Run) -> dict[str, list[float]]:
    """Seconds of each step after the first ones, by the clock, and how many of them it waited for its batch."""
    times, waits = [], []
    batches = iter(loader)
    for iteration in range(1, run.warm_up + run.steps + 1):
        began = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - began)
        step(batch, iteration)
        times.append(time.perf_counter() - began)
    return {'times': times[run.warm_up :], 'waits': waits[run.warm_up :]}
