"""Types of samples and datasets: the seam between data and training or evaluation."""

from __future__ import annotations

from typing import Protocol, TypedDict

from torch import Tensor
from typing_extensions import NotRequired

from basicsr.data.sampler import SampleKey


class Sample(TypedDict):
    """Images (C, H, W): uint8, or float32 in [0, 1] if the file has 16 bits."""

    lq: Tensor  # degraded
    gt: NotRequired[Tensor]  # clean, of the same size
    name: str


class Batch(TypedDict):
    """Images (B, C, H, W), uint8 or float32 in [0, 1]."""

    lq: Tensor
    gt: NotRequired[Tensor]
    name: list[str]


class PairedDataset(Protocol):
    """`dataset[i]` is pair i at full size; `dataset[SampleKey]` is a training sample, cropped and augmented."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int | SampleKey) -> Sample: ...

    def files(self, index: int) -> str:
        """The file or files of a pair, for messages."""
        ...
