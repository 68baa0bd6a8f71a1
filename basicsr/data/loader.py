"""Datasets and data loaders of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch.utils.data import DataLoader

from basicsr.data.sampler import TrainingBatches
from basicsr.data.transforms import collate
from basicsr.data.types import Batch, PairedDataset
from basicsr.utils.parallel import processors, start_worker
from basicsr.utils.registry import DATASET_REGISTRY, ComponentSection


class DatasetSection(ComponentSection, Protocol):
    @property
    def name(self) -> str | None: ...


class HasDatasets(Protocol):
    @property
    def datasets(self) -> Mapping[str, DatasetSection]: ...


def build_dataset(section: DatasetSection) -> PairedDataset:
    return DATASET_REGISTRY.build(section)


def validation_sets(options: HasDatasets) -> dict[str, PairedDataset]:
    """Name → dataset, for every set but the training set."""
    return {
        section.name or phase: build_dataset(section)
        for phase, section in options.datasets.items()
        if phase != 'train'
    }


def training_loader(
    dataset: PairedDataset, batches: TrainingBatches, num_workers: int, device: torch.device
) -> DataLoader[Batch]:
    """Loads the micro-batches of a rank, with at most one worker per processor. The workers last as long as the
    loader's iterator, through all stages."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=min(num_workers, processors()),
        pin_memory=device.type == 'cuda',
        worker_init_fn=start_worker,
    )
