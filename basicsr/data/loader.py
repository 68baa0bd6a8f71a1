"""Datasets and data loaders of a run."""

from __future__ import annotations

from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from basicsr.data.sampler import TrainingBatches
from basicsr.data.transforms import collate
from basicsr.options.components import build
from basicsr.options.sections import LoaderOptions
from basicsr.utils.parallel import processors
from basicsr.utils.registry import DATASET_REGISTRY


def build_dataset(section: Any) -> Any:
    return build(DATASET_REGISTRY, section, LoaderOptions)


def validation_sets(options: Any) -> dict[str, Any]:
    """Name → dataset, of every set but the training set."""
    return {
        section.name or phase: build_dataset(section)
        for phase, section in options.datasets.items()
        if phase != 'train'
    }


def training_loader(
    dataset: Any, batches: TrainingBatches, num_workers: int, device: torch.device
) -> DataLoader:
    """Loads the micro-batches of a process, with as many workers as there are cores at most; they last as long as
    the loader's iterator, through all stages."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=min(num_workers, processors()),
        pin_memory=device.type == 'cuda',
        worker_init_fn=start_worker,
    )


def start_worker(_: int) -> None:
    cv2.setNumThreads(0)  # as many workers as cores already
