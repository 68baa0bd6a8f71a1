"""The table of tasks: weights, data sets, test sets, and the figures that were published for them.

A new task is a row in `TASKS`, a folder of that name with three programs of a few lines (see Motion_Deblurring), and
its option files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from basicsr.utils.errors import CheckpointError, UsageError
from basicsr.utils.files import ROOT
from basicsr.utils.remote import Archive, DataSet, RemoteFile


@dataclass(frozen=True)
class Figure:
    """A column of a protocol: a registered metric and its settings."""

    key: str  # in JSON
    title: str  # in tables
    metric: str
    settings: Mapping[str, object] = field(default_factory=dict)
    digits: int = 3  # of published figures


PSNR = Figure('psnr', 'PSNR', 'calculate_psnr', digits=2)
PSNR_Y = Figure('psnr_y', 'PSNR of luma', 'calculate_psnr', {'test_y_channel': True}, digits=2)
SSIM_3D = Figure('ssim_3d', 'SSIM-3D', 'calculate_ssim_3d')
SSIM_2D = Figure('ssim_2d', 'SSIM-2D', 'calculate_ssim')

# How a test set is measured.
PROTOCOLS: dict[str, tuple[Figure, ...]] = {
    'gopro': (PSNR, SSIM_3D, SSIM_2D),
    'realblur': (
        Figure('psnr_aligned', 'PSNR, aligned', 'calculate_psnr_aligned', digits=2),
        Figure('ssim_aligned', 'SSIM, aligned', 'calculate_ssim_aligned'),
        PSNR_Y,
        PSNR,
        SSIM_3D,
        SSIM_2D,
        Figure('aligned', 'images not aligned', 'alignment_converges'),
    ),
}


@dataclass(frozen=True)
class TestSet:
    """The pairs in Datasets/test/<name>/{input,target}. `published`: method → key of a figure → value."""

    name: str
    protocol: str
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    name: str  # on the command line, and as the folder of results
    folder: str  # below the repository root
    weights: RemoteFile  # published, under a licence of their own
    shipped: str  # file name of the weights that come with the repository
    archives: tuple[Archive, ...]
    test_sets: tuple[TestSet, ...]

    @property
    def published(self) -> str:
        """File name of the published weights."""
        return self.weights.name

    @property
    def pretrained_models(self) -> Path:
        return ROOT / self.folder / 'pretrained_models'

    @property
    def datasets(self) -> Path:
        return ROOT / self.folder / 'Datasets'

    @property
    def published_file(self) -> Path:
        return self.pretrained_models / self.published

    @property
    def shipped_file(self) -> Path:
        return self.pretrained_models / self.shipped


MOTION_DEBLURRING = Task(
    name='motion_deblurring',
    folder='Motion_Deblurring',
    weights=RemoteFile(
        url='https://github.com/swz30/Restormer/releases/download/v1.0/motion_deblurring.pth',
        sha256='194e38fb5b607c9dc5a5b3e08e65b2e79ee2bf0ef5048e0612f6b2ff2f79da31',
    ),
    shipped='motion_deblurring_compact.pth',
    archives=(
        Archive('1zgALzrLCC_tcXKu_iHQTHukKUVT1aodI', (DataSet('train/GoPro', 2103),)),
        Archive('1k6DTSHu4saUgrGTYkkZXTptILyG9RRll', (DataSet('test/GoPro', 1111),)),
        Archive('1XRomKYJF1H92g1EuD06pCQe4o6HlwB7A', (DataSet('test/HIDE', 2025),)),
        Archive('1Rb1DhhXmX7IXfilQ-zL9aGjQfAAvQTrW', (DataSet('test/RealBlur_J', 980),)),
        Archive('1glgeWXCy7Y0qWDc0MXBTUlZYJf8984hS', (DataSet('test/RealBlur_R', 980),)),
    ),
    # Published for networks trained on GoPro alone: arXiv 2111.09881; with the same weights and TLC, arXiv 2112.04491.
    test_sets=(
        TestSet(
            'GoPro',
            'gopro',
            {'Restormer': {'psnr': 32.92, 'ssim_3d': 0.961}, 'Restormer + TLC': {'psnr': 33.57}},
        ),
        TestSet(
            'HIDE',
            'gopro',
            {'Restormer': {'psnr': 31.22, 'ssim_3d': 0.942}, 'Restormer + TLC': {'psnr': 31.49}},
        ),
        TestSet(
            'RealBlur_J',
            'realblur',
            {'Restormer': {'psnr_aligned': 28.96, 'ssim_aligned': 0.879, 'psnr_y': 28.44}},
        ),
        TestSet(
            'RealBlur_R',
            'realblur',
            {'Restormer': {'psnr_aligned': 36.19, 'ssim_aligned': 0.957, 'psnr_y': 35.91}},
        ),
    ),
)

TASKS = {task.name: task for task in (MOTION_DEBLURRING,)}


def find_task(name: str) -> Task:
    """The task of that name in any letter case. Raises UsageError."""
    try:
        return TASKS[name.lower()]
    except KeyError:
        raise UsageError(f'task: found {name!r}; allowed: {", ".join(TASKS)}') from None


def default_weights(task: str) -> Path:
    """The published weights if they were downloaded, else the shipped ones. Raises CheckpointError if both are
    missing."""
    found = find_task(task)
    for path in (found.published_file, found.shipped_file):
        if path.is_file():
            return path
    raise CheckpointError(
        f'{found.pretrained_models} has neither {found.published} nor {found.shipped}: no weights for {found.name}; '
        f'python {found.folder}/download_data.py --data weights gets the first'
    )
