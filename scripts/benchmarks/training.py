"""`benchmark.py train`: time and memory of a training step. `benchmark.py data`: cost of loading a sample."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from basicsr.archs.restormer_arch import Restormer
from basicsr.data.loader import build_dataset, start_worker, training_loader
from basicsr.data.packed_image_dataset import Dataset_PackedImage
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import Stages, TrainingBatches, TrainingOrder, stages_of
from basicsr.data.synthetic_blur_dataset import Dataset_SyntheticBlur
from basicsr.data.transforms import SYMMETRIES, collate, to_float, to_tensor
from basicsr.models.image_clean_model import ImageCleanModel
from basicsr.options.load import read_options
from basicsr.options.option_file import read_yaml
from basicsr.utils.cli import usage_errors
from basicsr.utils.device import resolve_device
from basicsr.utils.dist import Rank
from basicsr.utils.errors import UsageError
from basicsr.utils.files import ROOT
from basicsr.utils.memory import keep_all_memory
from basicsr.utils.parallel import processors
from scripts import prepare_data
from scripts.benchmarks import measuring
from scripts.benchmarks.measuring import Column, Memory, Row, Task

CLIP_NORM = 0.01  # the recipe's, which has no key for it
READY_BATCHES = 4  # batches in pinned memory, on a GPU
SIDE, PAIRS = 512, 16  # side of the recipe's crops, and number of made-up pairs
NOISE = 4  # standard deviation in levels: PNG files then have 60 % of the size of the pixels, like photographs
KINDS = {'input': 'lq', 'target': 'gt'}  # folder → key in a batch

COLUMNS = {
    'stage': Column('stage'),
    'mode': Column('mode'),
    'seconds': Column('median s', measuring.seconds),
    'range': Column('min-max s', lambda ends: '-'.join(map(measuring.seconds, ends)), 13),
    'samples_per_s': Column('samples/s', measuring.rate),
    'of_plain_speed': Column('of plain speed', measuring.multiple),
    'data_wait': Column('waits for data', '{:.1%}'.format),
    'working_MB': Column('working MB', measuring.whole),
    'of_plain_memory': Column('of plain memory', measuring.fraction),
    'peak_MB': Column('peak MB', measuring.whole),
}
GPU_COLUMNS = {
    'stage': Column('stage'),
    'mode': Column('mode'),
    **measuring.GPU_TIMES,
    'samples_per_s': Column('samples/s', measuring.rate),
    'of_plain_speed': Column('of plain speed', measuring.multiple),
    'peak_MB': Column('peak GB', measuring.gigabytes),
    'of_plain_memory': Column('of plain memory', measuring.fraction),
}


def recipe() -> dict[str, Any]:
    """Returns the paper's option file as plain data."""
    return read_yaml(ROOT / 'options' / 'Deblurring_Restormer.yml')


def compare(args: argparse.Namespace) -> None:
    measuring.check_modes(args)
    stages = asked_stages(args)
    check_patches([patch for patch, _ in stages], Restormer.multiple)
    with usage_errors():
        options = measuring.asked_options(args)
    if (options['inp_channels'], options['out_channels']) != (3, 3):
        raise UsageError(f'{args.weights}: only networks with 3 channels in and out can be trained here')
    modes = [*(['plain'] if args.plain_steps != 0 else []), *args.modes]
    baselines: dict[str, Row] = {}

    def derive(task: Task, row: Row, machine: Row) -> Row:
        stage = f'{task["patch"]}x{task["batch"]}'
        row = {'stage': stage, 'mode': task['mode'], **measuring.figures(row, task['batch'])}
        if row['mode'] == 'plain':
            baselines[stage] = row
        baseline = baselines.get(stage, {})
        if 'seconds' in baseline and 'seconds' in row:
            row['of_plain_speed'] = row['samples_per_s'] / baseline['samples_per_s']
            row['of_plain_memory'] = row['working_MB'] / baseline['working_MB']
        return row

    with tempfile.TemporaryDirectory() as folder:
        make_pairs(Path(folder))
        tasks = [
            {'what': 'step', 'mode': mode, 'patch': patch, 'batch': batch, 'folder': folder}
            for patch, batch in stages
            for mode in modes
        ]
        measuring.compare_rows(args, tasks, COLUMNS, GPU_COLUMNS, derive)


def asked_stages(args: argparse.Namespace) -> list[tuple[int, int]]:
    """Returns patch and batch size of each stage."""
    train = recipe()['datasets']['train']
    paper = list(zip(train['gt_sizes'], train['mini_batch_sizes'], strict=True))
    return [stage for asked in args.stages for stage in (paper if asked == 'paper' else [asked])]


def check_patches(patches: list[int], divisor: int = 1) -> None:
    for patch in patches:
        if patch > SIDE or patch % divisor:
            allowed = f'multiples of {divisor} up to {SIDE}' if divisor > 1 else f'at most {SIDE}'
            raise UsageError(f'found a patch of {patch} pixels; allowed: {allowed}')


# --- one row, in its process --------------------------------------------------------------------------------


class Run(NamedTuple):
    """The training of one row, and its length."""

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
        """Number of batches to load: more than are used, so that the workers stay busy until the last step."""
        return self.warm_up + self.steps + 2 * self.workers + 1


def measure(args: argparse.Namespace, task: Task) -> Row:
    device = resolve_device(args.device)
    measuring.begin(device)
    if task['what'] == 'machine':
        return measuring.machine(device)
    mode = task['mode']
    workers = recipe()['datasets']['train']['num_worker_per_gpu'] if args.workers is None else args.workers
    run = Run(
        mode,
        task['patch'],
        task['batch'],
        Path(task['folder']),
        device,
        min(workers, processors()),  # as in training
        # Libraries choose kernels, the optimiser creates its state, the compiler compiles.
        measuring.WARM_UP if device.type == 'cuda' else 2 + ('compile' in mode),
        measuring.repeats(args.plain_steps, device, 5) if mode == 'plain' else args.steps,
    )
    return (plain_steps if mode.startswith('plain') else our_steps)(args, run)


def plain_steps(args: argparse.Namespace, run: Run) -> Row:
    """Times the network and its training as they are usually written. On a CPU the loader yields the largest batch of
    the largest patches of all stages; the step takes the first samples, and the same crop of each."""
    network, _ = measuring.load_network(args)
    network.to(run.device).train()
    restore = measuring.plain(network, run.mode)
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


def our_steps(args: argparse.Namespace, run: Run) -> Row:
    """Times the model and the loader of basicsr/train.py."""
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
    else:
        section = options.datasets['train']
        dataset = build_dataset(section)
        order = TrainingOrder(
            len(dataset), options.manual_seed, section.use_shuffle, section.dataset_enlarge_ratio
        )
        batches = TrainingBatches(order, stages_of(section), 1, options.train.total_iter)
        loader = training_loader(dataset, batches, section.num_worker_per_gpu, run.device)
        row = timed_steps(step, loader, run)
    model.raise_if_bad()
    return {**row, **memory.read()}


def our_options(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Returns the paper's recipe with the settings of a row."""
    options = recipe()
    precision, *modes = run.mode.split('+')
    arguments = measuring.asked_options(args)
    network = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    train_set = {
        'type': 'Dataset_PackedImage',
        'dataroot': str(pack(run.folder)),
        'num_worker_per_gpu': run.workers,
        'dataset_enlarge_ratio': ceil(run.batch / PAIRS),
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
            'compile': 'compile' in modes,
            'activation_checkpointing': 'checkpointing' in modes,
        },
    }


def steps_on_gpu(
    step: Callable[[Any, int], None], run: Run, memory: Memory, forget: Callable[[], object] | None = None
) -> Row:
    """Times steps on batches of noise, as bytes in pinned memory, which a GPU copies by itself."""
    shape = (run.batch, 3, run.patch, run.patch)
    ready = [
        {kind: torch.randint(256, shape, dtype=torch.uint8).pin_memory() for kind in ('lq', 'gt')}
        for _ in range(READY_BATCHES)
    ]
    iterations = itertools.count(1)

    def work() -> None:
        iteration = next(iterations)
        step(ready[iteration % READY_BATCHES], iteration)

    return measuring.timed_on_gpu(work, run.steps, memory, forget)


def timed_steps(step: Callable[[Any, int], None], loader: DataLoader, run: Run) -> Row:
    """Returns the seconds of each step after the warm-up, and how many of them it waited for its batch."""
    times, waits = [], []
    batches = iter(loader)
    for iteration in range(1, run.warm_up + run.steps + 1):
        began = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - began)
        step(batch, iteration)
        times.append(time.perf_counter() - began)
    return {'times': times[run.warm_up :], 'waits': waits[run.warm_up :]}


# --- made-up pairs ------------------------------------------------------------------------------------------


def make_pairs(folder: Path) -> None:
    """Writes PNG files into `input` and `target`, and a pack of them."""
    generator = np.random.default_rng(0)
    for kind in KINDS:
        (folder / kind).mkdir()
    for number in range(PAIRS):
        sharp = _scene(generator)
        for kind, image in (('input', cv2.blur(sharp, (9, 1))), ('target', sharp)):
            noisy = image + NOISE * generator.standard_normal(image.shape, np.float32)
            cv2.imwrite(str(folder / kind / f'{number}.png'), noisy.clip(0, 255).astype(np.uint8))
    places = ('--input_dir', folder / 'input', '--target_dir', folder / 'target', '--output', pack(folder))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare_data.main(prepare_data.parser().parse_args([*map(str, places), '--workers', '0']))


def pack(folder: Path) -> Path:
    return folder / 'pairs.pack'


def _scene(generator: np.random.Generator) -> np.ndarray:
    """Returns (SIDE, SIDE, 3) float32 around 128, with structure of all sizes, more of the large ones."""
    scene = np.zeros((SIDE, SIDE, 3), np.float32)
    for size in (4, 8, 16, 32, 64, 128):
        noise = generator.standard_normal((SIDE // size, SIDE // size, 3), np.float32)
        scene += size**0.5 * cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return 128 + scene * (40 / scene.std())


class PlainPairs:
    """Pairs as training code usually reads them: each sample decodes both files, and rotates or flips a random crop of
    `patch` pixels. Items are {'lq', 'gt'}, float32 (3, patch, patch) in [0, 1]."""

    def __init__(self, folder: Path, patch: int) -> None:
        self.folder, self.patch = folder, patch

    def __len__(self) -> int:
        return PAIRS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        top, left = torch.randint(SIDE - self.patch + 1, (2,)).tolist()
        window = np.s_[top : top + self.patch, left : left + self.patch]
        symmetry = SYMMETRIES[int(torch.randint(len(SYMMETRIES), ()))]
        sample = {}
        for kind, name in KINDS.items():
            image = cv2.imread(str(self.folder / kind / f'{index}.png'))
            patch = symmetry(cv2.cvtColor(image[window], cv2.COLOR_BGR2RGB))
            sample[name] = to_float(to_tensor(patch))
        return sample


# --- loading ------------------------------------------------------------------------------------------------

BATCH = 8
LOADING_COLUMNS = {
    'patch': Column('patch'),
    'packed_ms': Column('packed: core ms', measuring.seconds),
    'packed_wall_ms': Column('wall ms', measuring.seconds),
    'png_ms': Column('PNG: core ms', measuring.seconds),
    'png_wall_ms': Column('wall ms', measuring.seconds),
    'of_packed_cost': Column('PNG of packed', measuring.multiple),
    'synthetic_ms': Column('synthetic blur: core ms', measuring.seconds),
    'synthetic_wall_ms': Column('wall ms', measuring.seconds),
}


def compare_loading(args: argparse.Namespace) -> None:
    patches = args.patches or recipe()['datasets']['train']['gt_sizes']
    check_patches(patches)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    machine = {'device': 'cpu', 'threads': 1, 'torch': torch.__version__, 'opencv': cv2.__version__}
    title = f'cpu, 1 thread, PyTorch {torch.__version__}, OpenCV {cv2.__version__}; of one sample:'
    with (
        measuring.Report(machine, title, LOADING_COLUMNS, args.json) as report,
        tempfile.TemporaryDirectory() as name,
    ):
        folder = Path(name)
        make_pairs(folder)
        packed = Dataset_PackedImage(str(pack(folder)))
        png = Dataset_PairedImage(str(folder / 'input'), str(folder / 'target'))
        # Photographs are decoded once; default parameters.
        synthetic = Dataset_SyntheticBlur(dataroot_gt=str(folder / 'target'), in_memory=True)
        for patch in patches:
            row = {'patch': patch}
            for kind, dataset in (('packed', packed), ('png', png), ('synthetic', synthetic)):
                cost(dataset, patch, len(dataset))  # fills the file cache
                row[f'{kind}_ms'], row[f'{kind}_wall_ms'] = cost(dataset, patch, args.samples)
            row['of_packed_cost'] = row['png_ms'] / row['packed_ms']
            report.add(row)


def cost(dataset: Any, patch: int, samples: int) -> tuple[float, float]:
    """Returns the milliseconds per sample, of a core and of the clock, in complete batches."""
    count = ceil(samples / BATCH)
    order = TrainingOrder(len(dataset), seed=0)
    batches = TrainingBatches(order, Stages((1,), (patch,), (BATCH,)), 1, count)
    core, clock = time.process_time(), time.perf_counter()
    for keys in batches:
        collate([dataset[key] for key in keys])
    each = 1e3 / (count * BATCH)
    return (time.process_time() - core) * each, (time.perf_counter() - clock) * each
