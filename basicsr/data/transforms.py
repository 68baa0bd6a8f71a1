"""Random crops and flips, images as tensors, batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.data.sampler import SampleKey


def make_sample(
    images: dict[str, np.ndarray], name: str, key: int | SampleKey, geometric_augs: bool
) -> dict[str, Any]:
    """What a dataset gives for `key`: the whole images, or a training sample of them, cropped and augmented."""
    if isinstance(key, SampleKey):
        generator = key.generator()
        images = random_crop(images, key.patch, generator)
        if geometric_augs:
            images = random_flip_or_rotation(images, generator)
    return {**{kind: to_tensor(image) for kind, image in images.items()}, 'name': name}


def random_crop(
    images: dict[str, np.ndarray], patch: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """The same square of every (H, W, C) image, each position equally likely, the last one included; views.
    Images smaller than the patch are reflected at the right and bottom (as often as it takes)."""
    height, width = images['lq'].shape[:2]
    top = int(generator.integers(max(height - patch, 0) + 1))
    left = int(generator.integers(max(width - patch, 0) + 1))
    images = {name: image[top : top + patch, left : left + patch] for name, image in images.items()}
    if height < patch or width < patch:
        padding = ((0, max(patch - height, 0)), (0, max(patch - width, 0)), (0, 0))
        images = {name: np.pad(image, padding, mode='reflect') for name, image in images.items()}
    return images


# Number k + 4·m is k quarter turns to the left, after a mirror from left to right if m is 1. Copies, by OpenCV: to
# read them through a view would take several times as long.
SYMMETRIES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda image: image,
    lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
    lambda image: cv2.flip(image, -1),
    lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    lambda image: cv2.flip(image, 1),
    cv2.transpose,
    lambda image: cv2.flip(image, 0),
    lambda image: cv2.flip(cv2.transpose(image), -1),
)


def random_flip_or_rotation(
    images: dict[str, np.ndarray], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """One of the 8 symmetries of the square, the same for every image."""
    symmetry = SYMMETRIES[int(generator.integers(8))]
    # OpenCV drops a channel axis of one.
    return {name: np.atleast_3d(symmetry(image)) for name, image in images.items()}


def to_tensor(image_HWC: np.ndarray) -> Tensor:
    """(H, W, C) → (C, H, W), a copy: uint8 as it is, uint16 as float32 in [0, 1]."""
    planes_CHW = np.empty((image_HWC.shape[2], *image_HWC.shape[:2]), image_HWC.dtype)
    if len(planes_CHW) == 3:
        cv2.split(image_HWC, list(planes_CHW))  # several times faster than the copy
    else:
        planes_CHW[:] = image_HWC.transpose(2, 0, 1)
    tensor = torch.from_numpy(planes_CHW)
    return tensor if tensor.dtype == torch.uint8 else to_float(tensor)


def to_float(image: Tensor) -> Tensor:
    """To float32 in [0, 1]; floating point stays as it is."""
    if image.is_floating_point():
        return image
    return image.float().div_(255 if image.dtype == torch.uint8 else 65535)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch. Bytes travel as bytes, and become floating point on the device; a batch that mixes 8 and 16 bit
    becomes floating point here."""
    batch: dict[str, Any] = {'name': [sample['name'] for sample in samples]}
    for kind in samples[0]:
        if kind != 'name':
            tensors = [sample[kind] for sample in samples]
            if any(tensor.dtype != torch.uint8 for tensor in tensors):
                tensors = [to_float(tensor) for tensor in tensors]
            batch[kind] = torch.stack(tensors)
    return batch
