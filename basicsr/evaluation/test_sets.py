"""The images of test sets, in every layout that `TestSet` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from basicsr.data.dual_pixel_dataset import Dataset_DefocusDeblur_DualPixel_16bit
from basicsr.data.gaussian_denoising_dataset import Dataset_GaussianDenoising
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sources import FolderSource
from basicsr.evaluation.evaluate import ImageSet
from basicsr.evaluation.mat_files import DNDBoxes, MatBlocks, Uploads
from basicsr.images.listing import Pairing, pairing_of
from basicsr.metrics.metric import Metric
from basicsr.tasks import PROTOCOLS, Figure, TestSet
from basicsr.utils.errors import DataError
from basicsr.utils.registry import METRIC_REGISTRY
from basicsr.utils.text import listed

# Layout → kind of images → their place in the folder of the set.
PATHS: dict[str, dict[str, str]] = {
    'pairs': {'input': 'input', 'target': 'target'},
    'noise': {'target': ''},
    'defocus': {'input': 'inputC', 'target': 'target'},
    'dual_pixel': {'left': 'inputL', 'right': 'inputR', 'target': 'target'},
    'sidd': {'input': 'ValidationNoisyBlocksSrgb.mat', 'target': 'ValidationGtBlocksSrgb.mat'},
    'dnd': {'info': 'info.mat', 'input': 'images_srgb'},
}


class TestImages(ImageSet, Protocol):
    names: list[str]

    def files(self, index: int) -> str: ...


@dataclass(eq=False)
class ChosenSet:
    """A test set to measure on.

    paths: kind of images → their place, as in PATHS.
    channels: of the clean images.
    sigma: key of the network, as in `Task.weights`.
    restored: folder of images restored elsewhere; None: a network restores them.
    """

    test_set: TestSet
    paths: dict[str, Path]
    channels: Literal[1, 3]
    sigma: str
    restored: Path | None = None
    figures: list[Figure] = field(init=False)
    parts: dict[str, list[int]] = field(default_factory=dict, init=False)  # name → indices of images
    images: TestImages = field(init=False)

    def __post_init__(self) -> None:
        self.figures = [*PROTOCOLS[self.test_set.protocol].figures]

    @property
    def name(self) -> str:
        return self.test_set.name

    @property
    def metrics(self) -> dict[str, Metric]:
        return {one.key: Metric(METRIC_REGISTRY.get(one.metric), one.settings) for one in self.figures}

    def open(self, save_dir: Path | None, limit: int | None) -> None:
        """Opens the images. Raises DataError on images without a partner, or that the results would replace."""
        self.images = open_images(self.test_set, self.paths, self.channels)
        save = save_dir / self.name if save_dir else None
        folders = [path for path in self.paths.values() if path.is_dir()]
        if save and save.exists() and any(save.samefile(folder) for folder in folders):
            raise DataError(f'--save_dir: found {save}, which holds images of the set; allowed: another folder')
        if self.test_set.parts:
            self.parts = part_indices(self.test_set, self.paths['target'].parent, len(self.images))
        if self.restored:
            restored = open_restored(self.test_set, self.restored, self.channels)
            self.images = RestoredPairs(self.images, restored, self.restored, limit)

    def uploads(self, folder: Path) -> Uploads | None:
        """The writer of MATLAB files for SIDD and DND; None for other sets. Raises OSError."""
        return self.images.uploads(folder) if isinstance(self.images, MatBlocks | DNDBoxes) else None


def open_images(test_set: TestSet, paths: dict[str, Path], channels: Literal[1, 3]) -> TestImages:
    """The images of a set. `channels` are those of the clean images. Raises DataError."""
    kind = {name: str(path) for name, path in paths.items()}
    if test_set.layout == 'noise':
        return Dataset_GaussianDenoising(kind['target'], sigma_test=test_set.sigma, in_ch=channels)
    if test_set.layout == 'dual_pixel':
        pairing = _pairing(test_set, paths)
        return Dataset_DefocusDeblur_DualPixel_16bit(
            dataroot_lqL=kind['left'], dataroot_lqR=kind['right'], dataroot_gt=kind['target'], pairing=pairing
        )
    if test_set.layout == 'sidd':
        names = {'lq': 'input', 'gt': 'target'}
        return MatBlocks({key: (paths[name], paths[name].stem) for key, name in names.items()})
    if test_set.layout == 'dnd':
        return DNDBoxes(paths['info'], paths['input'])
    # As published for single images: the high byte, also of the clean images.
    bits: Literal[8] | None = 8 if test_set.protocol == 'defocus' else None
    pairing = _pairing(test_set, paths) if test_set.layout == 'defocus' else 'name'
    return Dataset_PairedImage(kind['input'], kind['target'], channels=channels, pairing=pairing, bits=bits)


def _pairing(test_set: TestSet, folders: dict[str, Path]) -> Pairing:
    pairing = pairing_of(*(FolderSource(folder).names for folder in folders.values()))
    if pairing == 'order':
        print(f'{test_set.name}: paired in natural order, as most names are not in all folders', flush=True)
    return pairing


def open_restored(test_set: TestSet, folder: Path, channels: Literal[1, 3]) -> TestImages:
    """Images restored elsewhere, as 'lq'. Raises DataError."""
    if test_set.layout == 'sidd':
        return MatBlocks({'lq': (folder / 'Idenoised.mat', 'Idenoised')})
    return Dataset_PairedImage(str(folder), channels=channels)


class RestoredPairs:
    """Pairs with their images restored elsewhere, matched by name, as 'restored'. Raises DataError if one of the first
    `limit` pairs has none, or an image has no pair."""

    def __init__(self, pairs: TestImages, restored: TestImages, folder: Path, limit: int | None) -> None:
        self.pairs, self.restored = pairs, restored
        self.names, self.files = pairs.names, pairs.files
        self.index = {name: index for index, name in enumerate(restored.names)}
        missing = [name for name in pairs.names[:limit] if name not in self.index]
        others = sorted(self.index.keys() - set(pairs.names))
        if missing or others:
            raise DataError(
                f'{folder}: found restored images with other names than the clean ones; missing: '
                f'{listed(missing) or "none"}; unknown: {listed(others) or "none"}'
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.index[self.names[index]]
        pair, restored = self.pairs[index], self.restored[number]['lq']
        if restored.shape != pair['gt'].shape:
            found, allowed = ('{2}x{1}'.format(*image.shape) for image in (restored, pair['gt']))
            raise DataError(
                f'{self.restored.files(number)}: found {found}; allowed: the size of its target, {allowed}'
            )
        return {**pair, 'restored': restored}


def part_indices(test_set: TestSet, folder: Path, count: int) -> dict[str, list[int]]:
    """Name of a part → indices of its images, from `<part>_labels.npy` in the folder of the set: positions among the
    `count` images, from 1. Without these files there are no parts, and a sentence on stdout. Raises DataError."""
    files = {part: folder / f'{part}_labels.npy' for part in test_set.parts}
    absent = [str(path) for path in files.values() if not path.is_file()]
    if absent:
        print(f'{test_set.name}: measured without its parts; found no {listed(absent)}', flush=True)
        return {}
    return {part: [int(position) - 1 for position in _positions(path, count)] for part, path in files.items()}


def _positions(path: Path, count: int) -> Sequence[float]:
    try:
        positions = cast(list[float], np.load(path, allow_pickle=False).ravel().tolist())
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f'{path}: cannot be read as an array of NumPy: {error}') from None
    if wrong := [str(position) for position in positions if position not in range(1, count + 1)]:
        raise DataError(f'{path}: found {listed(wrong)}; allowed: positions from 1 to {count}')
    if len(set(positions)) < len(positions):
        raise DataError(f'{path}: found a position more than once; allowed: once')
    return positions
