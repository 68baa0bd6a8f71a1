"""Pairs of photographs to train on, made up, and the plain way of loading them."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.data.transforms import SYMMETRIES, to_float, to_tensor
from basicsr.options.option_file import read_yaml
from basicsr.utils.files import ROOT
from scripts import prepare_data

RECIPE = ROOT / 'options' / 'Deblurring_Restormer.yml'
SIDE, COUNT = 512, 16  # of the crops that the paper's recipe cuts its frames into; and how many are made

_KINDS = {'input': 'lq', 'target': 'gt'}  # folders, and what batches call their images
_NOISE = 4  # standard deviation: files then have 60 % of the size of the pixels, as photographs may


def recipe() -> dict[str, Any]:
    """The paper's option file, as plain data."""
    return read_yaml(RECIPE)


def check_patches(patches: list[int], multiple: int = 1) -> None:
    """Raises ValueError on what cannot be cut out of the pairs."""
    for patch in patches:
        if patch > SIDE or patch % multiple:
            allowed = f'multiples of {multiple} up to {SIDE}' if multiple > 1 else f'at most {SIDE}'
            raise ValueError(f'found a patch of {patch} pixels; allowed: {allowed}')


def make_pairs(folder: Path) -> None:
    """`input` and `target`, PNG files of the same names, and `pairs.pack` of them."""
    generator = np.random.default_rng(0)
    for kind in _KINDS:
        (folder / kind).mkdir()
    for number in range(COUNT):
        sharp = _scene(generator)
        for kind, image in (('input', cv2.blur(sharp, (9, 1))), ('target', sharp)):
            noisy = image + _NOISE * generator.standard_normal(image.shape, np.float32)
            cv2.imwrite(str(folder / kind / f'{number}.png'), noisy.clip(0, 255).astype(np.uint8))
    places = ('--input_dir', folder / 'input', '--target_dir', folder / 'target', '--output', pack(folder))
    arguments = prepare_data.parser().parse_args([*map(str, places), '--workers', '0'])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare_data.pack(arguments)


def pack(folder: Path) -> Path:
    return folder / 'pairs.pack'


def _scene(generator: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) float32 around 128: structure of all sizes, more of the large ones."""
    scene = np.zeros((SIDE, SIDE, 3), np.float32)
    for size in (4, 8, 16, 32, 64, 128):
        noise = generator.standard_normal((SIDE // size, SIDE // size, 3), np.float32)
        scene += size**0.5 * cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return 128 + scene * (40 / scene.std())


class PlainPairs:
    """As training code usually reads pairs: both files are decoded for every sample, a random crop of `patch`
    pixels is turned or mirrored, and becomes float32 (3, patch, patch) in [0, 1]: {'lq', 'gt'}."""

    def __init__(self, folder: Path, patch: int) -> None:
        self.folder, self.patch = folder, patch

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        top, left = torch.randint(SIDE - self.patch + 1, (2,)).tolist()
        window = np.s_[top : top + self.patch, left : left + self.patch]
        symmetry = SYMMETRIES[int(torch.randint(len(SYMMETRIES), ()))]
        sample = {}
        for kind, name in _KINDS.items():
            image = cv2.imread(str(self.folder / kind / f'{index}.png'))
            patch = symmetry(cv2.cvtColor(image[window], cv2.COLOR_BGR2RGB))
            sample[name] = to_float(to_tensor(patch))
        return sample
