"""The crops of DPDD: which pixels, which of them are kept, which frames belong together."""

import shutil
import sys
import warnings

import numpy as np
import pytest
import written_images
from scipy.ndimage import correlate1d, gaussian_filter
from written_images import files, image, positions, read, write

from basicsr.data.crops import crop_windows
from basicsr.utils import cli
from Defocus_Deblurring.generate_patches_dpdd import sharpest

KINDS = ('inputL', 'inputR', 'inputC', 'target')
SMALL = ['--crop_size', '24', '--stride', '10', '--workers', '0']


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['generate_patches_dpdd.py'])
    return tmp_path


def run(*arguments, small=SMALL):
    return cli.run('Defocus_Deblurring.generate_patches_dpdd', ['--datasets', 'sets', *small, *arguments])


def refusal(capsys, *arguments):
    return written_images.refusal(capsys, lambda: run(*arguments))


def frames(here, *names, group='train', shape=(30, 40), kinds=KINDS, dtype=np.uint16):
    for kind in kinds:
        for name in names:
            write(here / f'sets/Downloads/DPDD/{group}/{kind}/{name}.png', image(*shape, dtype))


def slow_sharpest(crops):
    """Sobel's filter of size n is that of 2 pixels, [-1, 1] along one axis and [1, 1] along the other, after n - 2
    times [1, 1] along both."""
    products = [1.0] * len(crops)
    for size in (3, 7, 11, 15):
        smooth = np.array([1.0])
        for _ in range(size - 2):
            smooth = np.convolve(smooth, [1, 1])
        kernels = np.convolve(smooth, [-1, 1]), np.convolve(smooth, [1, 1])
        sums = []
        for crop in crops:
            columns = [correlate1d(crop, kernel, 0, mode='mirror') for kernel in kernels]
            x, y = (correlate1d(columns[axis], kernels[1 - axis], 1, mode='mirror') for axis in (0, 1))
            sums.append(np.sqrt(x**2 + y**2).sum())
        for index, each in enumerate(sums):
            products[index] *= (each - min(sums)) / (max(sums) - min(sums))
    order = sorted(range(len(crops)), key=products.__getitem__)
    return sorted(order[int(0.3 * len(crops)) :])


def grey(rgb):
    return np.floor(rgb @ np.array([0.299, 0.587, 0.114]) + 0.5)


CORNERS = [
    (0, 0), (0, 204), (0, 408), (0, 612), (0, 816), (0, 1020), (0, 1168),
    (204, 0), (204, 204), (204, 408), (204, 612), (204, 816), (204, 1020), (204, 1168),
    (408, 0), (408, 204), (408, 408), (408, 612), (408, 816), (408, 1020), (408, 1168),
    (608, 0), (608, 204), (608, 408), (608, 612), (608, 816), (608, 1020), (608, 1168),
]  # fmt: skip


def test_offsets_of_a_frame():
    assert crop_windows(1120, 1680, 512, 204) == [(*corner, 512, 512) for corner in CORNERS]
    assert crop_windows(512, 716, 512, 204) == [(0, 0, 512, 512), (0, 204, 512, 512)]  # none twice


def test_a_frame_of_full_size_gives_20_crops_of_16_bit(here, capsys):
    place = here / 'sets/Downloads/DPDD/train'
    pixels = {kind: positions(1120, 1680) + np.uint16(5000 * number) for number, kind in enumerate(KINDS)}
    for kind, frame in pixels.items():
        write(place / kind / '1P0A0917.png', frame)
    assert run('--data', 'train', small=['--workers', '0']) == 0
    assert capsys.readouterr().out.splitlines() == [
        f'{place}: the frames of inputC, inputL, inputR, target are matched by name',
        f'{here}/sets/train/DPDD: 20 sets of 4 crops, of 1 sets of 4 images',
    ]
    names = [f'1P0A0917-{n}.png' for n in range(1, 21)]
    kept = [(*read(here / f'sets/train/DPDD/inputL_crops/{name}')[0, 0, :2],) for name in names]
    assert kept == sorted(kept) and {*kept} < {*CORNERS}
    for kind, frame in pixels.items():
        folder = here / f'sets/train/DPDD/{kind}_crops'
        assert {path.name for path in folder.iterdir()} == {*names}
        for name, (row, column) in zip(names, kept, strict=True):
            crop = read(folder / name)
            assert crop.dtype == np.uint16
            np.testing.assert_array_equal(crop, frame[row : row + 512, column : column + 512])


@pytest.mark.parametrize('workers', ['0', '1'])
def test_the_sharpest_crops_are_kept(here, workers):
    """Frames of different shapes, blurred more towards one side."""
    names = ('2', '10')
    for name, shape in zip(names, ((60, 70), (71, 44)), strict=True):
        frames(here, name, shape=shape)
        path = here / f'sets/Downloads/DPDD/train/target/{name}.png'
        sharp = read(path)
        blurred = gaussian_filter(sharp.astype(float), (2, 2, 0))
        weight = np.linspace(0, 1, shape[1])[:, None]
        write(path, (weight * sharp + (1 - weight) * blurred).astype(np.uint16))
    assert run('--data', 'train', '--workers', workers) == 0
    columns = {'2': (0, 10, 20, 30, 40, 46), '10': (0, 10, 20)}
    rows = {'2': (0, 10, 20, 30, 36), '10': (0, 10, 20, 30, 40, 47)}
    for name in names:
        corners = [(row, column) for row in rows[name] for column in columns[name]]
        target = grey(read(here / f'sets/Downloads/DPDD/train/target/{name}.png'))
        kept = slow_sharpest([target[row : row + 24, column : column + 24] for row, column in corners])
        assert len(kept) == len(corners) - int(0.3 * len(corners))
        for kind in KINDS:
            frame = read(here / f'sets/Downloads/DPDD/train/{kind}/{name}.png')
            for number, index in enumerate(kept, 1):
                row, column = corners[index]
                crop = read(here / f'sets/train/DPDD/{kind}_crops/{name}-{number}.png')
                np.testing.assert_array_equal(crop, frame[row : row + 24, column : column + 24])
    assert len(files(here / 'sets/train')) == 4 * (21 + 13)


@pytest.mark.parametrize('seed', [79, 245, 247, 269])
def test_sharpness_of_fine_and_of_coarse_structure(seed):
    """Strong or weak noise of any coarseness. With these seeds each of the four sizes of the filter matters."""
    generator = np.random.default_rng(seed)
    crops = []
    for _ in range(40):
        noise = gaussian_filter(generator.normal(size=(24, 24)), generator.uniform(0, 6))
        level = 30000 + generator.uniform(0, 15000) * noise / np.abs(noise).max()
        crops.append(level.astype(np.uint16))
    assert sharpest(crops) == slow_sharpest([crop.astype(float) for crop in crops])


def test_flat_crops_divide_nothing_by_zero():
    with warnings.catch_warnings(), np.errstate(all='raise'):
        warnings.simplefilter('error')
        assert sharpest([np.full((16, 16), 9, np.uint16)] * 10) == [3, 4, 5, 6, 7, 8, 9]
        assert sharpest([np.zeros((16, 16), np.uint16)]) == [0]


def test_validation_crops_are_the_centres(here):
    frames(here, '7', '8', group='val', shape=(301, 262))
    assert run('--data', 'val') == 0
    for kind in KINDS:
        folder = here / f'sets/val/DPDD/{kind}_crops'
        assert sorted(path.name for path in folder.iterdir()) == ['7.png', '8.png']
        for name in ('7', '8'):
            frame = read(here / f'sets/Downloads/DPDD/val/{kind}/{name}.png')
            np.testing.assert_array_equal(read(folder / f'{name}.png'), frame[22:278, 3:259])


def test_other_names_of_targets_belong_together_by_natural_order(here, capsys):
    frames(here, '1P9', '1P10', kinds=KINDS[:3])
    frames(here, '1P8', '1P11', kinds=KINDS[3:])
    frames(here, '5', group='val', shape=(256, 256))
    assert run() == 0
    assert ' are matched by order\n' in capsys.readouterr().out
    place = here / 'sets/Downloads/DPDD/train'
    for source, target in (('1P9', '1P8'), ('1P10', '1P11')):
        for number in range(1, 6):
            crop, partner = (
                read(here / f'sets/train/DPDD/{kind}_crops/{source}-{number}.png') for kind in KINDS[2:]
            )
            frame, other = read(place / f'inputC/{source}.png'), read(place / f'target/{target}.png')
            ((row, column),) = (
                (row, column)
                for row, column in np.ndindex(7, 17)
                if np.array_equal(frame[row : row + 24, column : column + 24], crop)
            )
            np.testing.assert_array_equal(other[row : row + 24, column : column + 24], partner)


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        ('rm inputR/2', '1 image has no partner of the same name: {place}/inputC/2.png; '),
        ('rm target/1 2 3', '{place}/target: contains no images; '),
        ('mv target/1 x', '1 image has no partner of the same name: {place}/inputC/1.png; '
         '1 image has no partner of the same name: {place}/target/x.png; '),
        ('mv target/1 x, mv target/2 y, mv target/3 z, rm target/z',
         '{place}/target: found 2 images; allowed: 3, as in {place}/inputC, to pair them in order; '),
        ('rm inputC/1 2 3, rm inputL/1 2 3, rm inputR/1 2 3, rm target/1 2 3',
         '{place}/inputC: contains no images; '),
    ],
)  # fmt: skip
def test_frames_without_a_partner_are_refused(here, capsys, spoil, words):
    frames(here, '1', '2', '3')
    place = here / 'sets/Downloads/DPDD/train'
    for command in spoil.split(', '):
        action, first, *others = command.split()
        kind, name = first.split('/')
        if action == 'mv':
            (place / kind / f'{name}.png').rename(place / kind / f'{others[0]}.png')
        else:
            for each in (name, *others):
                (place / kind / f'{each}.png').unlink()
    message = refusal(capsys, '--data', 'train')
    assert message.startswith(words.format(place=place))
    assert message.endswith('; python Defocus_Deblurring/download_data.py --data train gets the frames')
    assert not (here / 'sets/train').exists()


def test_nothing_is_cut_before_all_frames_are_there(here, capsys):
    frames(here, '1')
    assert refusal(capsys).startswith(f'{here}/sets/Downloads/DPDD/val/inputC: cannot be read as a folder: ')
    assert not (here / 'sets/train').exists()
    shutil.rmtree(here / 'sets')
    assert refusal(capsys, '--data', 'train').startswith(
        f'{here}/sets/Downloads/DPDD/train/inputC: cannot be read as a folder: '
    )
