"""The crops of SIDD and of DIV2K, Flickr2K, WaterlooED and BSD400: which pixels, under which names."""

import itertools
import sys

import numpy as np
import pytest
import written_images
from written_images import files, image, positions, read, write

from basicsr.utils import cli


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['generate_patches.py'])
    return tmp_path


def run(name, *arguments):
    return cli.run(f'Denoising.generate_patches_{name}', ['--datasets', 'sets', '--workers', '0', *arguments])


def refusal(capsys, *arguments):
    return written_images.refusal(capsys, lambda: run(*arguments))


# SIDD

SMALL = ('--crop_size', '8', '--stride', '6')
SCENE = 'sets/Downloads/SIDD/0001_001_S6_00100'


def photographs(here, *scenes, shape=(11, 18)):
    for scene in scenes:
        for kind in ('NOISY', 'GT'):
            write(here / f'sets/Downloads/SIDD/{scene}_S6/{scene}_{kind}_SRGB_010.PNG', image(*shape))


def test_offsets_of_a_photograph(here, capsys):
    noisy, clean = positions(900, 1000), positions(900, 1000) + np.uint16(5000)
    write(here / SCENE / '0001_NOISY_SRGB_010.PNG', noisy)
    write(here / SCENE / '0001_GT_SRGB_010.PNG', clean)
    assert run('sidd') == 0
    assert capsys.readouterr().out == f'{here}/sets/train/SIDD: 9 pairs of crops, of 1 pairs of images\n'
    corners = [(0, 0), (0, 384), (0, 488), (384, 0), (384, 384), (384, 488), (388, 0), (388, 384), (388, 488)]
    for kind, pixels in (('input', noisy), ('target', clean)):
        folder = here / f'sets/train/SIDD/{kind}_crops'
        assert len([*folder.iterdir()]) == 9
        for number, (row, column) in enumerate(corners, 1):
            np.testing.assert_array_equal(
                read(folder / f'0001_NOISY_SRGB_010-{number}.png'),
                pixels[row : row + 512, column : column + 512],
            )


def test_every_scene_is_cut(here):
    photographs(here, '0001', '0002', '0010')
    write(here / 'sets/Downloads/SIDD/0001_S6/thumbnail.png', image())  # neither NOISY nor GT
    assert run('sidd', *SMALL) == 0
    names = {f'{scene}_NOISY_SRGB_010-{n}.png' for scene in ('0001', '0002', '0010') for n in range(1, 7)}
    for kind in ('input', 'target'):
        assert {path.name for path in (here / f'sets/train/SIDD/{kind}_crops').iterdir()} == names


def test_a_missing_partner_does_not_shift_the_others(here, capsys):
    photographs(here, '0001', '0002', '0003')
    place = here / 'sets/Downloads/SIDD'
    (place / '0002_S6/0002_GT_SRGB_010.PNG').unlink()
    (place / '0003_S6/0003_NOISY_SRGB_010.PNG').rename(place / '0001_S6/0003_NOISY_SRGB_010.PNG')
    assert refusal(capsys, 'sidd', *SMALL) == (
        f'2 images have no partner of the same name: {place}/0001_S6/0003_NOISY_SRGB_010.PNG, '
        f'{place}/0002_S6/0002_NOISY_SRGB_010.PNG; '
        f'1 image has no partner of the same name: {place}/0003_S6/0003_GT_SRGB_010.PNG; '
        'python Denoising/download_data.py --data train/SIDD gets the photographs'
    )
    assert not (here / 'sets/train').exists()


def test_partners_are_found_by_name_where_their_order_differs(here):
    """NOISY comes after H-NOISY, and GT before H-GT."""
    names = {'NOISY': 'GT', 'H-NOISY': 'H-GT'}
    for name in (*names, *names.values()):
        write(here / f'sets/Downloads/SIDD/scene/{name}.png', image(8, 8))
    assert run('sidd', *SMALL) == 0
    for noisy, clean in names.items():
        np.testing.assert_array_equal(
            read(here / f'sets/train/SIDD/target_crops/{noisy}-1.png'),
            read(here / f'sets/Downloads/SIDD/scene/{clean}.png'),
        )


def test_equal_names_in_two_scenes_are_refused(here, capsys):
    photographs(here, '0001')
    place = here / 'sets/Downloads/SIDD'
    (place / 'other').mkdir()
    for path in [*(place / '0001_S6').iterdir()]:
        (place / 'other' / path.name).write_bytes(path.read_bytes())
    assert refusal(capsys, 'sidd', *SMALL).startswith(
        f'{place}: 0001_S6/0001_NOISY_SRGB_010.PNG and other/0001_NOISY_SRGB_010.PNG have the same name; '
    )


def test_without_photographs_the_command_that_gets_them_is_named(here, capsys):
    assert refusal(capsys, 'sidd') == (
        f'{here}/sets/Downloads/SIDD: found no photographs */*NOISY*; '
        'python Denoising/download_data.py --data train/SIDD gets the photographs'
    )


# DIV2K, Flickr2K, WaterlooED, BSD400

TINY = ('--crop_size', '8', '--stride', '6', '--max_whole', '10')


@pytest.mark.parametrize(
    ('shape', 'rows', 'columns'),
    [
        ((801, 1356), (0, 289), (0, 416, 832, 844)),
        ((1400, 928), (0, 416, 832, 888), (0, 416)),
        ((800, 1300), (), ()),
    ],
)
def test_offsets_of_an_image_and_the_size_up_to_which_it_stays_whole(here, capsys, shape, rows, columns):
    pixels = positions(*shape)
    write(here / 'sets/Downloads/DIV2K/0801.png', pixels)
    assert run('dfwb', '--sets', 'DIV2K') == 0
    folder = here / 'sets/train/DFWB'
    found = {path.name: read(path) for path in folder.iterdir()}
    expected = {
        f'DIV2K-0801-{number}.png': pixels[row : row + 512, column : column + 512]
        for number, (row, column) in enumerate(itertools.product(rows, columns), 1)
    } or {'DIV2K-0801.png': pixels}
    assert found.keys() == expected.keys()
    for name, crop in expected.items():
        np.testing.assert_array_equal(found[name], crop)
    assert capsys.readouterr().out == f'{folder}: {len(expected)} crops, of 1 images\n'


def four_sets(here):
    for name, file, shape in (
        ('DIV2K', '1.png', (11, 18)),
        ('Flickr2K', '1.png', (10, 30)),
        ('WaterlooED', '00001.bmp', (9, 9)),
        ('BSD400', 'test_001.png', (4, 5)),
    ):
        write(here / f'sets/Downloads/{name}/{file}', image(*shape))


def test_all_sets_go_to_one_folder(here):
    four_sets(here)
    assert run('dfwb', *TINY) == 0
    crops = [f'DIV2K-1-{n}' for n in range(1, 7)]
    names = [*crops, 'Flickr2K-1', 'WaterlooED-00001', 'BSD400-test_001']
    assert files(here / 'sets/train').keys() == {f'DFWB/{name}.png' for name in names}


def test_missing_sets_are_named_unless_others_are_chosen(here, capsys):
    four_sets(here)
    for name, file in (('Flickr2K', '1.png'), ('BSD400', 'test_001.png')):
        (here / f'sets/Downloads/{name}/{file}').unlink()
    assert refusal(capsys, 'dfwb', *TINY) == (
        f'{here}/sets/Downloads: found no images of Flickr2K BSD400; allowed: those that python '
        'Denoising/download_data.py --data Flickr2K BSD400 gets; or choose others with --sets'
    )
    assert not (here / 'sets/train').exists()
    assert run('dfwb', *TINY, '--sets', 'WaterlooED', 'DIV2K') == 0
    # A folder that holds more than was asked for would not be what training is told to use.
    assert 'found 1 image that are not crops' in refusal(capsys, 'dfwb', *TINY, '--sets', 'DIV2K')


def test_crops_of_the_same_name_are_refused(here, capsys):
    folder = here / 'sets/Downloads/DIV2K'
    for name in ('1.png', '1.jpg'):
        write(folder / name, image())
    same = f'{folder.parent}: DIV2K/1.jpg and DIV2K/1.png have the same name'
    assert refusal(capsys, 'dfwb', *TINY, '--sets', 'DIV2K') == same
    (folder / '1.jpg').unlink()
    # It stays in one piece, as DIV2K-1-3: the third crop of 1.png.
    write(folder / '1-3.png', read(folder / '1.png')[:8, 10:])
    assert refusal(capsys, 'dfwb', *TINY, '--sets', 'DIV2K') == (
        f'{here}/sets/train: found several crops of the same name: DIV2K-1-3; rename their images'
    )
