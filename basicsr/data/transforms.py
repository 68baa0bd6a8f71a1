"""Random crops and flips, images as tensors, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.data.sampler import SampleKey
from basicsr.data.types import Batch, Sample

Images = dict[str, np.ndarray]  # such as 'lq' and 'gt' → (H, W, C)


def make_sample(images: Images, name: str, key: int | SampleKey, geometric_augs: bool) -> Sample:
    """`dataset[key]` from the images of a pair: at full size, or a training sample, cropped and augmented."""
    if isinstance(key, SampleKey):
        images = augmented(images, key.patch, key.generator(), geometric_augs)
    return to_sample(images, name)


def augmented(images: Images, patch: int, generator: np.random.Generator, geometric_augs: bool) -> Images:
    """The same random crop of each image, and the same flip or rotation if asked for."""
    images = random_crop(images, patch, generator)
    return random_flip_or_rotation(images, generator) if geometric_augs else images


def to_sample(images: Images, name: str) -> Sample:
    return cast(Sample, {**{kind: to_tensor(image) for kind, image in images.items()}, 'name': name})


def random_crop(images: Images, patch: int, generator: np.random.Generator) -> Images:
    """The same square of each image, as a view; every position is equally likely. Images smaller than the patch are
    reflected at the right and bottom, with their last row and column, repeatedly if needed."""
    height, width = next(iter(images.values())).shape[:2]
    top = int(generator.integers(max(height - patch, 0) + 1))
    left = int(generator.integers(max(width - patch, 0) + 1))
    images = {name: image[top : top + patch, left : left + patch] for name, image in images.items()}
    if height < patch or width < patch:
        padding = ((0, max(patch - height, 0)), (0, max(patch - width, 0)), (0, 0))
        images = {name: np.pad(image, padding, mode='symmetric') for name, image in images.items()}
    return images


# Number k + 4·m mirrors left to right if m is 1, then makes k quarter turns to the left. OpenCV copies: reading through
# a view would take several times as long.
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


def random_flip_or_rotation(images: Images, generator: np.random.Generator) -> Images:
    """One of the 8 symmetries of the square, the same for each image."""
    symmetry = SYMMETRIES[int(generator.integers(8))]
    return {name: np.atleast_3d(symmetry(image)) for name, image in images.items()}  # OpenCV drops an axis of 1


def to_tensor(image_HWC: np.ndarray) -> Tensor:
    """Copies (H, W, C) to (C, H, W): uint8 stays, uint16 becomes float32 in [0, 1]."""
    planes_CHW = np.empty((image_HWC.shape[2], *image_HWC.shape[:2]), image_HWC.dtype)
    if len(planes_CHW) == 3:
        cv2.split(image_HWC, list(planes_CHW))  # several times faster than NumPy's copy
    else:
        planes_CHW[:] = image_HWC.transpose(2, 0, 1)
    tensor = torch.from_numpy(planes_CHW)
    return tensor if tensor.dtype == torch.uint8 else to_float(tensor)


def to_float(image: Tensor) -> Tensor:
    """Converts integers to float32 in [0, 1]."""
    if image.is_floating_point():
        return image
    return image.float().div_(255 if image.dtype == torch.uint8 else 65535)


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch; uint8 if all of its images are, so that less is copied to the device."""
    batch: dict[str, Tensor | list[str]] = {'name': [sample['name'] for sample in samples]}
    for kind in ('lq', 'gt'):
        if kind in samples[0]:
            tensors = [cast(dict[str, Tensor], sample)[kind] for sample in samples]
            if any(tensor.dtype != torch.uint8 for tensor in tensors):
                tensors = [to_float(tensor) for tensor in tensors]
            batch[kind] = torch.stack(tensors)
    return cast(Batch, batch)
