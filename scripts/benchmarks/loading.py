"""What a training sample costs a processor core: out of a pack, out of PNG files, and blurred on the fly."""

from __future__ import annotations

import argparse
import tempfile
import time
from math import ceil
from pathlib import Path
from typing import Any

import cv2
import torch

from basicsr.data.packed_image_dataset import Dataset_PackedImage
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import Stages, TrainingBatches, TrainingOrder
from basicsr.data.synthetic_blur_dataset import Dataset_SyntheticBlur
from basicsr.data.transforms import collate
from scripts.benchmarks.pairs import check_patches, make_pairs, pack, recipe
from scripts.benchmarks.table import Column, Report, multiple, seconds

BATCH = 8
COLUMNS = {
    'patch': Column('patch'),
    'packed_ms': Column('packed: core ms', seconds),
    'packed_wall_ms': Column('wall ms', seconds),
    'png_ms': Column('PNG: core ms', seconds),
    'png_wall_ms': Column('wall ms', seconds),
    'of_packed_cost': Column('PNG of packed', multiple),
    'synthetic_ms': Column('synthetic blur: core ms', seconds),
    'synthetic_wall_ms': Column('wall ms', seconds),
}


def compare(args: argparse.Namespace) -> None:
    patches = args.patches or recipe()['datasets']['train']['gt_sizes']
    check_patches(patches)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    machine = {'device': 'cpu', 'threads': 1, 'torch': torch.__version__, 'opencv': cv2.__version__}
    title = f'cpu, 1 thread, PyTorch {torch.__version__}, OpenCV {cv2.__version__}; of one sample:'
    with Report(machine, title, COLUMNS, args.json) as report, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pairs(folder)
        packed = Dataset_PackedImage(str(pack(folder)))
        png = Dataset_PairedImage(str(folder / 'input'), str(folder / 'target'))
        # Of photographs decoded once, with its parameters as they are by default.
        synthetic = Dataset_SyntheticBlur(dataroot_gt=str(folder / 'target'), in_memory=True)
        for patch in patches:
            row = {'patch': patch}
            for kind, dataset in (('packed', packed), ('png', png), ('synthetic', synthetic)):
                cost(dataset, patch, len(dataset))  # the files come into the system's memory
                row[f'{kind}_ms'], row[f'{kind}_wall_ms'] = cost(dataset, patch, args.samples)
            row['of_packed_cost'] = row['png_ms'] / row['packed_ms']
            report.add(row)


def cost(dataset: Any, patch: int, samples: int) -> tuple[float, float]:
    """Milliseconds of a sample in a batch, of a core and of the clock; a last batch is filled up."""
    count = ceil(samples / BATCH)
    order = TrainingOrder(len(dataset), seed=0)
    batches = TrainingBatches(order, Stages((1,), (patch,), (BATCH,)), 1, count)
    core, clock = time.process_time(), time.perf_counter()
    for keys in batches:
        collate([dataset[key] for key in keys])
    each = 1e3 / (count * BATCH)
    return (time.process_time() - core) * each, (time.perf_counter() - clock) * each
