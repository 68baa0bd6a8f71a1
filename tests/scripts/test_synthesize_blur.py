"""scripts/synthesize_blur.py: what a set holds, and which output folders and arguments it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from basicsr.utils.cli import run
from basicsr.utils.errors import DataError
from basicsr.utils.files import ROOT
from scripts import synthesize_blur

ASTRONAUT = Path(skimage.__file__).parent / 'data' / 'astronaut.png'


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(monkeypatch):
    """Two tiny photographs in place of the built-in ones."""
    monkeypatch.setattr(synthesize_blur, 'PHOTOGRAPHS', {'train': ('astronaut.png',), 'val': ('coffee.png',)})
    read = synthesize_blur.read_photograph
    monkeypatch.setattr(synthesize_blur, 'read_photograph', lambda name: read(name)[200:232, 200:240])


@pytest.fixture
def photographs(here):
    folder = here / 'photographs'
    folder.mkdir()
    image = pixels(ASTRONAUT)
    for name, top in (('a.jpg', 0), ('b.v2.png', 100), ('c.webp', 200)):
        Image.fromarray(image[top : top + 96, 150:270]).save(folder / name, quality=95)
    return folder


def synthesize(output, *arguments):
    return run('scripts.synthesize_blur', ['--output', str(output), '--per_image', '1', *map(str, arguments)])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def pixels(path):
    return np.asarray(Image.open(path))


# --- photographs and pairs ----------------------------------------------------------------------------------


def test_built_in_photographs_exist_and_splits_share_no_scene():
    scenes = {}
    for split, names in synthesize_blur.PHOTOGRAPHS.items():
        for name in names:
            image = synthesize_blur.read_photograph(name)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert min(image.shape[:2]) >= 256
        scenes[split] = {name.partition('.')[0].partition('_')[0] for name in names}
    assert scenes['train'] and scenes['val'] and not scenes['train'] & scenes['val']
    assert 'motorcycle' in scenes['train'] | scenes['val']  # two views of one scene, which the check must see
    with pytest.raises(DataError, match=r'scikit-image \d.*no_such\.png'):
        synthesize_blur.read_photograph('no_such.png')


def test_layout_colours_and_settings(here, small, capsys):
    command = ['--per_image', 3, '--blur_length', 4, 5, '--noise', 0]
    assert synthesize('some/set', *command) == 0
    assert 'some/set: 6 pairs written' in capsys.readouterr().out
    assert set(contents(here / 'some/set')) == {'settings.json'} | {
        f'{split}/{role}/{name}-{n}.png'
        for split, name in (('train', 'astronaut'), ('val', 'coffee'))
        for role in ('input', 'target')
        for n in (1, 2, 3)
    }
    assert [path.name for path in (here / 'some').iterdir()] == ['set']
    target, blurred = (pixels(f'some/set/train/{role}/astronaut-2.png') for role in ('target', 'input'))
    np.testing.assert_array_equal(target, pixels(ASTRONAUT)[200:232, 200:240])
    assert blurred.shape == target.shape and np.abs(blurred.astype(int) - target).mean() > 1
    settings = json.loads((here / 'some/set/settings.json').read_text())
    assert (settings['blur_length'], settings['noise'], settings['per_image']) == ([4.0, 5.0], 0.0, 3)


def test_pair_n_of_every_photograph_has_kernel_n(small, monkeypatch):
    used, blur = [], synthesize_blur.blur
    monkeypatch.setattr(
        synthesize_blur, 'blur', lambda i, kernel, *rest: used.append(kernel) or blur(i, kernel, *rest)
    )
    assert synthesize('set', '--per_image', 2) == 0
    np.testing.assert_array_equal(used[0], used[2])  # astronaut-1, coffee-1
    np.testing.assert_array_equal(used[1], used[3])
    assert used[0].shape != used[1].shape or (used[0] != used[1]).any()


def test_same_seed_same_bytes_and_more_pairs_leave_the_first_as_they_were(here, small):
    for name, arguments in (('a', []), ('b', []), ('c', ['--seed', 1]), ('more', ['--per_image', 3])):
        assert synthesize(name, *arguments) == 0
    first, same, other, more = (contents(here / name) for name in ('a', 'b', 'c', 'more'))
    assert first == same
    key = 'train/input/astronaut-1.png'
    assert first[key] != other[key]
    assert all(more[path] == data for path, data in first.items() if path.endswith('.png'))


def test_shake6d_of_a_folder(here, photographs):
    arguments = ['--model', 'shake6d', '--shake', 5, 5, '--sharp_dir', photographs, '--per_image', 2]
    assert synthesize('set', *arguments) == 0
    names = {f'{stem}-{n}.png' for stem in ('a', 'b.v2', 'c') for n in (1, 2)}
    assert set(contents(here / 'set')) == {
        'settings.json',
        *(f'train/{role}/{name}' for role in ('input', 'target') for name in names),
    }
    colours = pixels(photographs / 'c.webp').mean((0, 1))
    for name in names:
        sharp, blurred = (pixels(f'set/train/{role}/{name}') for role in ('target', 'input'))
        assert sharp.shape == blurred.shape and 40 <= len(sharp) <= 96
        assert np.abs(blurred.astype(int) - sharp).mean() > 1
        assert sharp.mean(axis=(0, 1)).argmax() == colours.argmax()  # RGB, not BGR


STILL = ['shake=[0, 0]', 'foreground=0', 'scale=[1, 1]', 'jpeg=0', 'video=1']


@pytest.mark.parametrize(
    'arguments', [['--blur_length', 0, 0, '--noise', 0], ['--model', 'shake6d', '--parameters', *STILL]]
)
def test_without_blur_both_images_are_the_photograph(photographs, arguments):
    assert synthesize('set', '--sharp_dir', photographs, *arguments) == 0
    for role in ('input', 'target'):
        np.testing.assert_array_equal(pixels(f'set/train/{role}/b.v2-1.png'), pixels(photographs / 'b.v2.png'))


def test_parameters_are_parsed_as_in_option_files(here, photographs):
    arguments = ['--parameters', 'shot_noise=[0, 1e-3]', 'video=1', '--parameters', 'jpeg=0']
    assert synthesize('set', '--sharp_dir', photographs, '--model', 'shake6d', *arguments) == 0
    parameters = json.loads((here / 'set' / 'settings.json').read_text())['parameters']
    assert (parameters['shot_noise'], parameters['video'], parameters['jpeg']) == ([0, 0.001], 1, 0)
    assert parameters['fov'] == [40, 80]  # the default


def test_sheet_shows_sharp_and_blurred(here, photographs):
    assert synthesize('set', '--sharp_dir', photographs, '--sheet', 'look.png') == 0
    found = pixels('look.png')
    assert found.shape == (2 * 256, 4 * 256, 3)  # three pairs, two in a row
    np.testing.assert_array_equal(found[:96, 512:632], pixels('set/train/target/b.v2-1.png'))
    np.testing.assert_array_equal(found[:96, 768:888], pixels('set/train/input/b.v2-1.png'))
    assert not found[256:, 512:].any()
    assert synthesize('set', '--sharp_dir', photographs, '--sheet', 'look.jpg', '--overwrite') == 0
    with Image.open('look.jpg') as again:
        assert again.format == 'JPEG' and again.size == (4 * 256, 2 * 256)


@pytest.mark.slow
def test_as_a_program_with_workers_it_writes_the_same_bytes(here, photographs):
    arguments = ['--sharp_dir', photographs, '--model', 'shake6d', '--per_image', '1']
    program = ROOT / 'scripts' / 'synthesize_blur.py'
    command = [sys.executable, program, '--output', '2', *arguments, '--workers', '2']
    subprocess.run(command, check=True, capture_output=True)
    assert synthesize('0', *arguments) == 0
    assert contents(here / '0') == contents(here / '2')


# --- a complete set or none ---------------------------------------------------------------------------------


def test_existing_set_is_replaced_only_with_overwrite(here, small, photographs, capsys):
    (here / 'set').mkdir()  # an empty folder is no set
    assert synthesize('set') == 0
    before = contents(here / 'set')
    for arguments in ([], ['--seed', 5]):
        assert synthesize('set', *arguments) == 2
        assert '--output: set is not empty; pass --overwrite' in capsys.readouterr().err
        assert contents(here / 'set') == before
    arguments = ['--sharp_dir', photographs]
    assert synthesize('set', *arguments, '--overwrite') == synthesize('fresh', *arguments) == 0
    assert contents(here / 'set') == contents(here / 'fresh')  # without val, and without the old pairs
    assert sorted(path.name for path in here.iterdir()) == ['fresh', 'photographs', 'set']


@pytest.mark.parametrize('name', ['mine.png', 'train/input/astronaut-1.png', 'val/settings.json'])
def test_overwrite_keeps_folders_of_other_programs(here, small, capsys, name):
    (here / 'set' / name).parent.mkdir(parents=True)
    (here / 'set' / name).write_bytes(b'precious')
    before = contents(here)
    assert synthesize('set') == 2
    assert synthesize('set', '--overwrite') == 2
    assert 'set is not a set made by this program' in capsys.readouterr().err
    assert contents(here) == before


def test_photographs_inside_the_output_are_refused(here, photographs, capsys):
    assert synthesize('set', '--sharp_dir', photographs) == 0
    before = contents(here)
    assert synthesize('set', '--sharp_dir', 'set/train/target', '--overwrite') == 2
    assert '--sharp_dir: found set/train/target, inside --output' in capsys.readouterr().err
    assert contents(here) == before


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize(
    ('write', 'workers', 'status', 'text'),
    [(interrupted, 0, 130, ''), (lambda *_: os._exit(3), 1, 1, 'exited unexpectedly')],
)
def test_interrupted_set_leaves_nothing(
    here, small, capsys, monkeypatch, overwrite, write, workers, status, text
):
    if overwrite:
        assert synthesize('set') == 0
    before = contents(here), sorted(here.rglob('*'))
    monkeypatch.setattr(synthesize_blur, 'write_image', write)
    assert synthesize('set', '--seed', 3, '--overwrite', '--workers', workers) == status
    assert text in capsys.readouterr().err
    assert (contents(here), sorted(here.rglob('*'))) == before


@pytest.mark.parametrize('workers', [0, 1])
def test_full_disk_is_one_sentence(here, photographs, small_files, capsys, workers):
    with small_files(8192):
        assert synthesize('set', '--sharp_dir', photographs, '--workers', workers) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith('/set/train/input/a-1.png: cannot be written: File too large')
    assert [path.name for path in here.iterdir()] == ['photographs']


# --- refusals -----------------------------------------------------------------------------------------------


def test_folders_without_photographs_are_refused(here, photographs, capsys):
    for name in ('a.jpg', 'c.webp'):
        (photographs / name).write_bytes(b'')
    (here / 'empty').mkdir()
    assert synthesize('set', '--sharp_dir', 'photographs') == 1
    assert capsys.readouterr().err.endswith(f'/a.jpg: is empty\n{photographs}/c.webp: is empty\n')
    for name, text in (('photographs', 'a.jpg'), ('nowhere', 'nowhere: '), ('empty', 'empty: ')):
        assert synthesize('set', '--sharp_dir', name) == 1
        assert text in capsys.readouterr().err
    assert not (here / 'set').exists()


SHAKE = ['--model', 'shake6d']


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--blur_length', 5, 4], '--blur_length: found 5 4; allowed: 0 ≤ lo'),
        (['--blur_length', 'nan', 4], '--blur_length: found nan 4; allowed: 0 ≤ lo'),
        (['--noise', -1], '--noise: found -1; allowed: 0 to 255'),
        (['--noise', 'nan'], '--noise: found nan; allowed: 0 to 255'),
        (['--per_image', 0], '--per_image: found 0; allowed: 1 or more'),
        (['--seed', -1], '--seed: found -1; allowed: 0 or more'),
        (['--sheet', 'look.webp'], '--sheet: found look.webp; allowed: a file ending in .png or .jpg'),
        (['--model', 'other'], "--model: invalid choice: 'other'"),
        (['--shake', 1, 2], '--shake: not allowed with --model kernel'),
        (['--parameters', 'video=1'], '--parameters: not allowed with --model kernel'),
        ([*SHAKE, '--noise', 1], '--noise: not allowed with --model shake6d'),
        ([*SHAKE, '--blur_length', 1, 2], '--blur_length: not allowed with --model shake6d'),
        ([*SHAKE, '--shake', 3, 2], 'shake: found [3.0, 2.0]; allowed: [lo, hi]'),
        ([*SHAKE, '--parameters', 'shook=1'], '--parameters: found shook; allowed: shake, exposure, '),
        ([*SHAKE, '--parameters', 'video=2'], 'video: found 2; allowed: a chance from 0 to 1'),
        ([*SHAKE, '--parameters', 'shake=[0, 1]', '--shake', 0, 1], '--parameters: found shake 2 times'),
        ([*SHAKE, '--parameters', 'jpeg=1', 'jpeg=0'], '--parameters: found jpeg 2 times; allowed: once'),
        *(
            ([*SHAKE, '--parameters', setting], f'found {setting}; allowed: KEY=VALUE')
            for setting in ('video', '=1', 'video=', 'shake=[0')
        ),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(here, capsys, arguments, text):
    assert synthesize('set', *arguments) == 2
    assert text in capsys.readouterr().err
    assert not (here / 'set').exists()
