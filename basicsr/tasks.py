"""The table of tasks: weights, data sets, test sets and published figures.

A new task is a row in `TASKS`, its data in `ARCHIVES`, a folder with programs of a few lines (see Motion_Deblurring),
and its option files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from basicsr.utils.errors import CheckpointError, UsageError
from basicsr.utils.files import IS_WHEEL, ROOT, SHIPPED
from basicsr.utils.remote import Archive, DataSet, RemoteFile


@dataclass(frozen=True)
class Figure:
    """A column of a protocol: a registered metric and its settings."""

    key: str  # in JSON
    title: str  # in tables
    metric: str
    settings: Mapping[str, object] = field(default_factory=dict)
    digits: int = 3  # of published figures
    optional: bool = False  # left out if its package is not installed


@dataclass(frozen=True)
class Protocol:
    """How a test set is measured. `rounded`: round to the levels of the file first; else measure in [0, 1]."""

    figures: tuple[Figure, ...]
    rounded: bool = True


PSNR = Figure('psnr', 'PSNR', 'calculate_psnr', digits=2)
PSNR_LUMA = Figure('psnr_y', 'PSNR of luma', 'calculate_psnr', {'test_y_channel': True}, digits=2)
SSIM_3D = Figure('ssim_3d', 'SSIM-3D', 'calculate_ssim_3d')
SSIM_2D = Figure('ssim_2d', 'SSIM-2D', 'calculate_ssim')

PROTOCOLS: dict[str, Protocol] = {
    'gopro': Protocol((PSNR, SSIM_3D, SSIM_2D)),
    'realblur': Protocol(
        (
            Figure('psnr_aligned', 'PSNR, aligned', 'calculate_psnr_aligned', digits=2),
            Figure('ssim_aligned', 'SSIM, aligned', 'calculate_ssim_aligned'),
            PSNR_LUMA,
            PSNR,
            SSIM_3D,
            SSIM_2D,
            Figure('aligned', 'images not aligned', 'alignment_converges'),
        )
    ),
    'rain': Protocol(
        (
            Figure('psnr_y', 'PSNR of Y', 'calculate_psnr_y', digits=2),
            Figure('ssim_y', 'SSIM of Y', 'calculate_ssim_y'),
            PSNR,
        )
    ),
    'defocus': Protocol(
        (
            PSNR,
            Figure('ssim_uniform', 'SSIM, 7×7', 'calculate_ssim_uniform'),
            Figure('mae', 'MAE', 'calculate_mae'),
            Figure('lpips', 'LPIPS', 'calculate_lpips', optional=True),
        ),
        rounded=False,
    ),
    'noise': Protocol((PSNR,)),
    'sidd': Protocol((PSNR, SSIM_3D), rounded=False),
}

Published = Mapping[str, Mapping[str, float]]  # method → key of a figure → value


@dataclass(frozen=True)
class TestSet:
    """
    folder: below Datasets/test; '': the name.
    layout: 'pairs': folders input and target; 'noise': clean images, to which noise of `sigma` (of 255) is added;
        'defocus': inputC and target; 'dual_pixel': inputL, inputR and target; 'sidd', 'dnd': the files of these sets.
    parts: name of a part of the set → its published figures.
    """

    name: str
    protocol: str
    published: Published = field(default_factory=dict)
    layout: Literal['pairs', 'noise', 'defocus', 'dual_pixel', 'sidd', 'dnd'] = 'pairs'
    folder: str = ''
    sigma: int | None = None
    parts: Mapping[str, Published] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The folder below Datasets/test, and the word on the command line: one for all noise levels of a set."""
        return self.folder or self.name


@dataclass(frozen=True)
class Task:
    """
    weights: noise level they were trained for → the published file; the first is the default. The key is '' for a
        task with one file, else 'blind' (any level) or a standard deviation.
    network: options of the published network that differ from Restormer's defaults.
    shipped: file name of the weights in the repository; '': none.
    average: published means of the test sets' figures.
    """

    name: str  # on the command line in any letter case, and as the folder of results
    folder: str  # below the repository root
    weights: Mapping[str, RemoteFile]
    test_sets: tuple[TestSet, ...]
    network: Mapping[str, Any] = field(default_factory=dict)
    shipped: str = ''
    average: Published = field(default_factory=dict)

    @property
    def pretrained_models(self) -> Path:
        return ROOT / self.folder / 'pretrained_models'

    @property
    def datasets(self) -> Path:
        return ROOT / self.folder / 'Datasets'

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the input and of the result."""
        return self.network.get('inp_channels', 3), self.network.get('out_channels', 3)

    @property
    def sigmas(self) -> list[str]:
        """The choices of --sigma; none for tasks with one file of weights."""
        return [sigma for sigma in self.weights if sigma]

    def published_weights(self, sigma: str | None = None) -> RemoteFile:
        return self.weights[sigma] if sigma is not None else next(iter(self.weights.values()))

    def published_file(self, sigma: str | None = None) -> Path:
        return self.pretrained_models / self.published_weights(sigma).name

    @property
    def shipped_file(self) -> Path | None:
        return SHIPPED / self.folder / 'pretrained_models' / self.shipped if self.shipped else None


def _release(name: str, size: int | None = None, sha256: str | None = None) -> RemoteFile:
    return RemoteFile(f'https://github.com/swz30/Restormer/releases/download/v1.0/{name}.pth', sha256, size)


# Sizes of the published files in bytes, by the network.
RGB, RGB_BIAS_FREE, GREY_BIAS_FREE = 104_700_429, 104_611_957, 104_601_589


# Trained on GoPro alone: arXiv 2111.09881; the same weights with TLC: arXiv 2112.04491.
def _gopro(name: str, psnr: float, ssim: float, tlc: float) -> TestSet:
    published = {'Restormer': {'psnr': psnr, 'ssim_3d': ssim}, 'Restormer + TLC': {'psnr': tlc}}
    return TestSet(name, 'gopro', published)


def _realblur(name: str, psnr: float, ssim: float, luma: float) -> TestSet:
    """`luma`: PSNR of luma, without alignment."""
    published = {'psnr_aligned': psnr, 'ssim_aligned': ssim, 'psnr_y': luma}
    return TestSet(name, 'realblur', {'Restormer': published})


MOTION_DEBLURRING = Task(
    name='motion_deblurring',
    folder='Motion_Deblurring',
    weights={
        '': _release(
            'motion_deblurring', RGB, '194e38fb5b607c9dc5a5b3e08e65b2e79ee2bf0ef5048e0612f6b2ff2f79da31'
        )
    },
    shipped='motion_deblurring_compact.pth',
    test_sets=(
        _gopro('GoPro', 32.92, 0.961, tlc=33.57),
        _gopro('HIDE', 31.22, 0.942, tlc=31.49),
        _realblur('RealBlur_J', 28.96, 0.879, luma=28.44),
        _realblur('RealBlur_R', 36.19, 0.957, luma=35.91),
    ),
)


def _rain(name: str, psnr: float, ssim: float) -> TestSet:
    return TestSet(name, 'rain', {'Restormer': {'psnr_y': psnr, 'ssim_y': ssim}})


DERAINING = Task(
    name='deraining',
    folder='Deraining',
    weights={
        '': _release('deraining', RGB, '225ed9acf80b3527d7080e5182918f642a23a78ef8593ad700b7e924bd660681')
    },
    test_sets=(
        _rain('Test100', 32.00, 0.923),
        _rain('Rain100H', 31.46, 0.904),
        _rain('Rain100L', 38.99, 0.978),
        _rain('Test2800', 34.18, 0.944),
        _rain('Test1200', 33.19, 0.926),
    ),
    average={'Restormer': {'psnr_y': 33.96, 'ssim_y': 0.935}},
)


# MAE as mmagic measured it with the published weights (its configs/restormer/README.md): 0.0378 combined, 0.0251
# indoor, 0.0499 outdoor. The dual-pixel MAE is not confirmed, and is left out.
def _defocus(psnr: float, ssim: float, lpips: float, **mae: float) -> Published:
    return {'Restormer': {'psnr': psnr, 'ssim_uniform': ssim, **mae, 'lpips': lpips}}


SINGLE_IMAGE_DEFOCUS_DEBLURRING = Task(
    name='single_image_defocus_deblurring',
    folder='Defocus_Deblurring',
    weights={
        '': _release(
            'single_image_defocus_deblurring',
            RGB,
            '7dce451f33f8f5e0faf7c4e3996e5dcc1bd425ecd1ada99b0f9750e490fd4c9e',
        )
    },
    test_sets=(
        TestSet(
            'DPDD',
            'defocus',
            _defocus(25.98, 0.811, 0.178, mae=0.038),
            layout='defocus',
            parts={
                'indoor': _defocus(28.87, 0.882, 0.145, mae=0.025),
                'outdoor': _defocus(23.24, 0.743, 0.209, mae=0.050),
            },
        ),
    ),
)

DUAL_PIXEL_DEFOCUS_DEBLURRING = Task(
    name='dual_pixel_defocus_deblurring',
    folder='Defocus_Deblurring',
    weights={'': _release('dual_pixel_defocus_deblurring')},
    network={'inp_channels': 6, 'dual_pixel_task': True},
    test_sets=(
        TestSet(
            'DPDD',
            'defocus',
            _defocus(26.66, 0.833, 0.155),
            layout='dual_pixel',
            parts={'indoor': _defocus(29.48, 0.895, 0.134), 'outdoor': _defocus(23.97, 0.773, 0.175)},
        ),
    ),
)

REAL_DENOISING = Task(
    name='real_denoising',
    folder='Denoising',
    weights={
        '': _release(
            'real_denoising', RGB_BIAS_FREE, '4cae18bed8a291b9a5deeeab48756bbe6f61fcf7f31a4cca0969b24608601387'
        )
    },
    network={'LayerNorm_type': 'BiasFree'},
    test_sets=(
        TestSet('SIDD', 'sidd', {'Restormer': {'psnr': 40.02, 'ssim_3d': 0.960}}, layout='sidd'),
        TestSet('DND', 'sidd', layout='dnd'),
    ),
)


def _noise(name: str, blind: tuple[float, ...], single: tuple[float, ...]) -> tuple[TestSet, ...]:
    """A set with noise of three levels. Figures of the `blind` network, and of a `single` one for each level."""
    return tuple(
        TestSet(
            f'{name}_sigma{sigma}',
            'noise',
            {'Restormer, blind': {'psnr': of_blind}, f'Restormer, sigma {sigma}': {'psnr': of_single}},
            layout='noise',
            folder=name,
            sigma=sigma,
        )
        for sigma, of_blind, of_single in zip((15, 25, 50), blind, single, strict=True)
    )


GAUSSIAN_COLOR_DENOISING = Task(
    name='gaussian_color_denoising',
    folder='Denoising',
    weights={
        'blind': _release(
            'gaussian_color_denoising_blind',
            RGB_BIAS_FREE,
            '4e2314dae77bb907184da6e2ac625b921491d6b33de26a52512eff1c6bb37fbd',
        ),
        '15': _release('gaussian_color_denoising_sigma15'),
        '25': _release('gaussian_color_denoising_sigma25'),
        '50': _release('gaussian_color_denoising_sigma50'),
    },
    network={'LayerNorm_type': 'BiasFree'},
    test_sets=(
        *_noise('CBSD68', (34.39, 31.78, 28.59), (34.40, 31.79, 28.60)),
        *_noise('Kodak', (35.44, 33.02, 30.00), (35.47, 33.04, 30.01)),
        *_noise('McMaster', (35.55, 33.31, 30.29), (35.61, 33.34, 30.30)),
        *_noise('Urban100', (35.06, 32.91, 30.02), (35.13, 32.96, 30.02)),
    ),
)

GAUSSIAN_GRAY_DENOISING = Task(
    name='gaussian_gray_denoising',
    folder='Denoising',
    weights={
        'blind': _release('gaussian_gray_denoising_blind'),
        '15': _release('gaussian_gray_denoising_sigma15'),
        '25': _release('gaussian_gray_denoising_sigma25', GREY_BIAS_FREE),
        '50': _release('gaussian_gray_denoising_sigma50'),
    },
    network={'inp_channels': 1, 'out_channels': 1, 'LayerNorm_type': 'BiasFree'},
    test_sets=(
        *_noise('Set12', (33.35, 31.04, 28.01), (33.42, 31.08, 28.00)),
        *_noise('BSD68', (31.95, 29.51, 26.62), (31.96, 29.52, 26.62)),
        *_noise('Urban100', (33.67, 31.39, 28.33), (33.79, 31.46, 28.29)),
    ),
)

TASKS = {
    task.name: task
    for task in (
        MOTION_DEBLURRING,
        DERAINING,
        SINGLE_IMAGE_DEFOCUS_DEBLURRING,
        DUAL_PIXEL_DEFOCUS_DEBLURRING,
        REAL_DENOISING,
        GAUSSIAN_COLOR_DENOISING,
        GAUSSIAN_GRAY_DENOISING,
    )
}


def _archive(drive_id: str, *sets: DataSet) -> Archive:
    return Archive(drive_id, sets)


def _flat(key: str, folder: str = '') -> DataSet:
    """Images in one folder."""
    return DataSet(key, parts=('*',), folder=folder)


def _dpdd(key: str, number: int, folder: str = '', optional: tuple[str, ...] = ()) -> DataSet:
    parts = ('inputL/*', 'inputR/*', 'inputC/*', 'target/*')
    return DataSet(key, number, parts, same_names=False, folder=folder, optional=optional)


# Folder of the tasks → its data sets. Numbers come from the authors or from the set's own lists.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    'Motion_Deblurring': (
        _archive('1zgALzrLCC_tcXKu_iHQTHukKUVT1aodI', DataSet('train/GoPro', 2103)),
        _archive('1k6DTSHu4saUgrGTYkkZXTptILyG9RRll', DataSet('test/GoPro', 1111)),
        _archive('1XRomKYJF1H92g1EuD06pCQe4o6HlwB7A', DataSet('test/HIDE', 2025)),
        _archive('1Rb1DhhXmX7IXfilQ-zL9aGjQfAAvQTrW', DataSet('test/RealBlur_J', 980)),
        _archive('1glgeWXCy7Y0qWDc0MXBTUlZYJf8984hS', DataSet('test/RealBlur_R', 980)),
    ),
    'Deraining': (
        _archive('14BidJeG4nSNuFNFDf99K-7eErCq4i47t', DataSet('train/Rain13K')),
        _archive(
            '1P_-RAvltEoEhfT-9GrWRdpEi6NSswTs8',
            DataSet('test/Test100', 98),
            DataSet('test/Rain100H'),
            DataSet('test/Rain100L'),
            DataSet('test/Test2800', 2800, excess=('926_10(1).jpg',)),
            DataSet('test/Test1200'),
        ),
    ),
    'Defocus_Deblurring': (
        _archive('1bl5i1cDQNvkgVA_x37QdhvvFk1R80kfe', _dpdd('train/DPDD', 350, 'Downloads/DPDD/train')),
        _archive('1KRAmBzluu-IG9-BOsuakB5rjY5_f-kiR', _dpdd('val/DPDD', 74, 'Downloads/DPDD/val')),
        _archive(
            '1dDWUQ_D93XGtcywoUcZE1HOXCV4EuLyw',
            _dpdd('test/DPDD', 76, optional=('indoor_labels.npy', 'outdoor_labels.npy')),
        ),
    ),
    'Denoising': (
        _archive(
            '1UHjWZzLPGweA9ZczmV8lFSRcIxqiOVJw',
            DataSet('train/SIDD', parts=('*/*NOISY*', '*/*GT*'), folder='Downloads/SIDD'),
        ),
        _archive(
            '1Fw6Ey1R-nCHN9WEpxv0MnMqxij-ECQYJ', DataSet('val/SIDD', parts=('input_crops/*', 'target_crops/*'))
        ),
        _archive(
            '11vfqV-lqousZTuAit1Qkqghiv_taY0KZ',
            DataSet('test/SIDD', parts=('ValidationNoisyBlocksSrgb.mat', 'ValidationGtBlocksSrgb.mat')),
        ),
        _archive(
            '1CYCDhaVxYYcXhSfEVDUwkvJDtGxeQ10G', DataSet('test/DND', 50, ('info.mat', 'images_srgb/*.mat'))
        ),
        _archive('1idKFDkAHJGAFDn1OyXZxsTbOSBx9GS8N', _flat('train/BSD400', 'Downloads/BSD400')),
        _archive('13wLWWXvFkuYYVZMMAYiMVdSA7iVEf2fM', _flat('train/DIV2K', 'Downloads/DIV2K')),
        _archive('1J8xjFCrVzeYccD-LF08H7HiIsmi8l2Wn', _flat('train/Flickr2K', 'Downloads/Flickr2K')),
        _archive('19_mCE_GXfmE5yYsm-HEzuZQqmwMjPpJr', _flat('train/WaterlooED', 'Downloads/WaterlooED')),
        _archive(
            '1mwMLt-niNqcQpfN_ZduG9j4k6P_ZkOl0',
            *(_flat(f'test/{name}') for name in ('CBSD68', 'BSD68', 'Kodak', 'McMaster', 'Set12', 'Urban100')),
        ),
    ),
}


def tasks_of(folder: str) -> list[Task]:
    """The tasks of a folder below the repository root."""
    return [task for task in TASKS.values() if task.folder == folder]


def find_task(name: str) -> Task:
    """The task of that name in any letter case. Raises UsageError."""
    try:
        return TASKS[name.lower()]
    except KeyError:
        raise UsageError(f'task: found {name!r}; allowed: {", ".join(TASKS)}') from None


def default_weights(task: str, sigma: str | None = None) -> Path:
    """The published weights if they were downloaded, else the shipped ones. Raises CheckpointError if both are
    missing."""
    found = find_task(task)
    published, shipped = found.published_file(sigma), found.shipped_file
    for path in (published, shipped):
        if path is not None and path.is_file():
            return path
    raise CheckpointError(f'{published}: found no weights for {found.name}; {how_to_get(found, sigma)}')


def check_weights_task(path: Path, task: Task, sigma: str | None = None) -> None:
    """Raises CheckpointError if a file holds published weights for another task, or for another noise level than
    `sigma`: such files have the same tensors, and only the checksum tells them apart."""
    size = path.stat().st_size
    candidates = [
        (other, level, remote)
        for other in TASKS.values()
        for level, remote in other.weights.items()
        if remote.sha256 and remote.size == size
    ]
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if candidates else ''
    for other, level, remote in candidates:
        if digest == remote.sha256 and (other is not task or sigma not in (None, level)):
            found, allowed = (
                f'{name}, sigma {which}' if which else name
                for name, which in ((other.name, level), (task.name, sigma))
            )
            raise CheckpointError(
                f'{path}: found the published weights for {found} ({remote.name}); allowed: those for {allowed}'
            )


def how_to_get(task: Task, sigma: str | None = None) -> str:
    """The way to download the published weights, as the end of a sentence."""
    remote = task.published_weights(sigma)
    if IS_WHEEL:
        return f'download {remote.url} to that place, or name another file with --weights'
    what = remote.stem if len(published_files(task.folder)) > 1 else 'weights'
    return f'python {task.folder}/download_data.py --data {what} downloads {remote.url} to that place'


def published_files(folder: str) -> dict[RemoteFile, Mapping[str, object]]:
    """The published weights of all tasks of a folder → the options of their networks, as in `Task.network`."""
    return {remote: task.network for task in tasks_of(folder) for remote in task.weights.values()}
