"""`benchmark.py train`: time and memory of a training step. `benchmark.py data`: cost of loading a sample."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from basicsr.data.loader import training_loader
from basicsr.data.packed_image_dataset import Dataset_PackedImage
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import Stages, TrainingBatches, TrainingOrder
from basicsr.data.synthetic_blur_dataset import Dataset_SyntheticBlur
from basicsr.data.transforms import collate, to_float
from basicsr.models.image_clean_model import ImageCleanModel
from basicsr.options.load import read_options
from basicsr.options.option_file import read_yaml
from basicsr.utils.dist import Rank
from basicsr.utils.files import ROOT
from basicsr.utils.memory import keep_all_memory
from scripts import prepare_data
from scripts.benchmarks import measuring
from scripts.benchmarks.measuring import Memory, Row, Task
from scripts.synthesize_blur import read_photograph

RECIPE = ROOT / 'options' / 'Deblurring_Restormer.yml'  # the paper's
PAIRS = 16
CLIP_NORM = 0.01  # the recipe's
READY_BATCHES = 4  # batches in pinned memory, on a GPU
COLUMNS = ['stage', 'mode', 'seconds', 'range', 'samples_per_s', 'of_plain_speed']
COLUMNS += ['launch_seconds', 'data_wait', 'working_MB', 'of_plain_memory', 'peak_MB']


def recipe() -> dict[str, Any]:
    return read_yaml(RECIPE)


def compare(args: argparse.Namespace) -> None:
    measuring.check(args)
    modes = [*(['plain'] if args.plain_steps != 0 else []), *args.modes]
    with tempfile.TemporaryDirectory() as folder:
        make_pairs(Path(folder))
        stages = asked_stages(args)
        tasks = [{'stage': stage, 'mode': mode, 'folder': folder} for stage in stages for mode in modes]
        measuring.compare(args, tasks, COLUMNS)


def asked_stages(args: argparse.Namespace) -> list[str]:
    train = recipe()['datasets']['train']
    paper = list(map('{}x{}'.format, train['gt_sizes'], train['mini_batch_sizes']))
    return [stage for asked in args.stages for stage in (paper if asked == 'paper' else [asked])]


# --- one row, in its process --------------------------------------------------------------------------------


def measure(args: argparse.Namespace, task: Task) -> Row:
    device = measuring.device_of(args)
    mode, folder, (patch, batch) = task['mode'], Path(task['folder']), map(int, task['stage'].split('x'))
    is_plain, on_gpu = mode.startswith('plain'), device.type == 'cuda'
    steps = measuring.repeats(args.plain_steps, device, 5) if mode == 'plain' else args.steps
    workers = recipe()['datasets']['train']['num_worker_per_gpu'] if args.workers is None else args.workers
    if not (is_plain or on_gpu):
        keep_all_memory()  # as basicsr/train.py does
    model = PlainModel(args, mode, device) if is_plain else our_model(args, task, device)
    memory = Memory(device)
    if on_gpu:
        batches = noise(patch, batch)
    else:
        dataset = pairs(folder) if is_plain else Dataset_PackedImage(str(folder / 'pairs.pack'))
        # More batches than are used, so that the workers stay busy until the last step.
        count = measuring.WARM_UP + steps + 2 * workers + 1
        batches = iter(training_loader(dataset, batches_of(patch, batch, count), workers, device))
    waits, iterations = [], itertools.count(1)

    def work() -> None:
        began = time.perf_counter()
        images = next(batches)
        waits.append(time.perf_counter() - began)
        model.step([images], next(iterations), 0)

    if on_gpu:
        measuring.warm_up_gpu(work, model.release)
    else:  # libraries choose kernels, the optimizer creates its state, the compiler compiles
        for _ in range(measuring.WARM_UP):
            work()
    began = time.perf_counter()
    row = measuring.timed(work, steps, device)
    row['data_wait'] = sum(waits[-steps:]) / (time.perf_counter() - began)
    model.raise_if_bad()
    return {**row, 'samples_per_s': batch / row['seconds'], **memory.read()}


class PlainModel:
    """The network and its step as usually written, with the methods of ImageCleanModel that `measure` calls."""

    def __init__(self, args: argparse.Namespace, mode: str, device: torch.device) -> None:
        self.device = device
        network = measuring.load_network(args).to(device).train()
        self.restore = measuring.plain(network, mode)
        self.parameters = list(network.parameters())
        settings = {key: value for key, value in recipe()['train']['optim_g'].items() if key != 'type'}
        self.optimizer = torch.optim.AdamW(self.parameters, **settings)

    def step(self, batches: list[dict[str, Tensor]], *_: int) -> None:
        lq, gt = (to_float(batches[0][kind].to(self.device, non_blocking=True)) for kind in ('lq', 'gt'))
        self.optimizer.zero_grad()
        F.l1_loss(self.restore(lq), gt).backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()

    def release(self) -> None: ...

    def raise_if_bad(self) -> None: ...


def our_model(args: argparse.Namespace, task: Task, device: torch.device) -> ImageCleanModel:
    """Returns the model of basicsr/train.py with the paper's recipe and the settings of a row."""
    precision, *modes = task['mode'].split('+')
    data = {'type': 'Dataset_PackedImage', 'dataroot': str(Path(task['folder'], 'pairs.pack'))}
    settings = {
        'num_gpu': int(device.type == 'cuda'),
        'datasets': {'train': {**data, 'batch_size_per_gpu': 1, 'gt_size': 8}},  # `measure` makes the batches
        'network_g': measuring.network_g(args),
        'path:pretrain_network_g': str(args.weights.absolute()) if args.weights else None,
        'train:precision': precision,
        'train:compile': 'compile' in modes,
        'train:activation_checkpointing': 'checkpointing' in modes,
    }
    forced = [f'{key}={json.dumps(value)}' for key, value in settings.items()]
    return ImageCleanModel(read_options(RECIPE, forced, 'train'), device, Rank())


def noise(patch: int, batch: int) -> Iterator[dict[str, Tensor]]:
    """Yields bytes in pinned memory, which a GPU copies by itself."""
    shape = (batch, 3, patch, patch)
    ready = [
        {kind: torch.randint(256, shape, dtype=torch.uint8).pin_memory() for kind in ('lq', 'gt')}
        for _ in range(READY_BATCHES)
    ]
    return itertools.cycle(ready)


# --- pairs --------------------------------------------------------------------------------------------------


def make_pairs(folder: Path) -> None:
    """Writes a photograph of 512x512, cut and joined at other columns, as PNG files into `input` and `target`, and a
    pack of them."""
    photograph = read_photograph('astronaut.png')
    for kind in ('input', 'target'):
        (folder / kind).mkdir()
    for number in range(PAIRS):
        sharp = np.roll(photograph, 32 * number, axis=1)
        cv2.imwrite(str(folder / 'input' / f'{number}.png'), cv2.blur(sharp, (9, 1)))
        cv2.imwrite(str(folder / 'target' / f'{number}.png'), sharp)
    places = ('--input_dir', folder / 'input', '--target_dir', folder / 'target')
    places += ('--output', folder / 'pairs.pack', '--workers', '0')
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare_data.main(prepare_data.parser().parse_args([*map(str, places)]))


def batches_of(patch: int, batch: int, count: int) -> TrainingBatches:
    return TrainingBatches(TrainingOrder(PAIRS, seed=0), Stages((1,), (patch,), (batch,)), 1, count)


def pairs(folder: Path) -> Dataset_PairedImage:
    """The pairs as training code usually reads them: each sample decodes both files."""
    return Dataset_PairedImage(str(folder / 'input'), str(folder / 'target'))


# --- loading ------------------------------------------------------------------------------------------------

BATCH = 8


def compare_loading(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    machine = {'device': 'cpu', 'threads': 1, 'torch': torch.__version__, 'opencv': cv2.__version__}
    title = f'cpu, 1 thread, PyTorch {torch.__version__}, OpenCV {cv2.__version__}; of one sample:'
    columns = ['patch', 'packed_ms', 'png_ms', 'synthetic_ms']
    with tempfile.TemporaryDirectory() as folder:
        make_pairs(Path(folder))
        measuring.report(title, machine, columns, loading(args, Path(folder)), args.json)


def loading(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    datasets = {
        'packed_ms': Dataset_PackedImage(str(folder / 'pairs.pack')),
        'png_ms': pairs(folder),
        # Photographs are decoded once; default parameters.
        'synthetic_ms': Dataset_SyntheticBlur(dataroot_gt=str(folder / 'target'), in_memory=True),
    }
    for patch in args.patches or recipe()['datasets']['train']['gt_sizes']:
        row = {'patch': patch}
        for key, dataset in datasets.items():
            cost(dataset, patch, len(dataset))  # fills the file cache
            row[key] = cost(dataset, patch, args.samples)
        yield row


def cost(dataset: Any, patch: int, samples: int) -> float:
    """Returns the milliseconds of a core per sample, in complete batches."""
    count = ceil(samples / BATCH)
    start = time.process_time()
    for keys in batches_of(patch, BATCH, count):
        collate([dataset[key] for key in keys])
    return 1e3 * (time.process_time() - start) / (count * BATCH)
