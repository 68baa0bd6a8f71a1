"""Datasets and data loaders of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import cv2
import torch
from torch.utils.data import DataLoader

from basicsr.data.sampler import TrainingBatches
from basicsr.data.transforms import collate
from basicsr.utils.parallel import processors
from basicsr.utils.registry import DATASET_REGISTRY, ComponentSection


class DatasetSection(ComponentSection, Protocol):
    @property
    def name(self) -> str | None: ...


class HasDatasets(Protocol):
    @property
    def datasets(self) -> Mapping[str, DatasetSection]: ...


def build_dataset(section: DatasetSection) -> Any:
    return DATASET_REGISTRY.build(section)


def validation_sets(options: HasDatasets) -> dict[str, Any]:
    """Name → dataset, for every set but the training set."""
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
