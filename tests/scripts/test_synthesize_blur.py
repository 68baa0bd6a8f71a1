"""The synthetic set: kernels, the blur against a direct convolution, and what becomes of an older set."""

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'synthesize_blur.py'
_spec = importlib.util.spec_from_file_location('synthesize_blur', SCRIPT)
synthesize_blur = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthesize_blur)

LENGTHS = [0.0, 0.3, 1.0, 5.0, 11.7, 60.0]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def small(monkeypatch):
    """Two tiny photographs in place of the real ones."""
    monkeypatch.setattr(synthesize_blur, 'PHOTOGRAPHS', {'train': ('astronaut.png',), 'val': ('coffee.png',)})
    read = synthesize_blur.read_photograph
    monkeypatch.setattr(synthesize_blur, 'read_photograph', lambda name: read(name)[200:232, 200:240])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def srgb_to_linear(value):
    value /= 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def linear_to_srgb(light):
    return 255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)


# --- kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('seed', range(5))
def test_kernel_is_a_centred_distribution(length, seed):
    kernel = synthesize_blur.random_kernel(np.random.default_rng(seed), length)
    size = len(kernel)
    assert kernel.shape == (size, size) and size % 2 == 1 and kernel.dtype == np.float64
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    offset = np.arange(size) - size // 2
    assert (kernel.sum(1) * offset).sum() == pytest.approx(0, abs=1e-9)
    assert (kernel.sum(0) * offset).sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize('length', LENGTHS)
def test_trajectory_has_the_length_asked_for(rng, length):
    steps = np.diff(synthesize_blur.random_trajectory(rng, length), axis=0)
    assert np.hypot(*steps.T).sum() == pytest.approx(length, abs=1e-9)


def test_no_blur_is_the_delta_kernel(rng):
    np.testing.assert_allclose(synthesize_blur.random_kernel(rng, 0.0), [[1.0]])


def test_kernels_differ(rng):
    first, second = (synthesize_blur.random_kernel(rng, 9.0) for _ in range(2))
    assert first.shape != second.shape or np.abs(first - second).max() > 0.01


def test_rasterising_shares_a_position_between_its_neighbours():
    kernel = synthesize_blur.rasterise(np.array([[0.25, -0.5], [-0.25, 0.5]]))
    half = np.array([[0, 0.125, 0.125], [0.375, 0.75, 0.375], [0.125, 0.125, 0]]) / 2
    np.testing.assert_allclose(kernel, half, atol=1e-15)


# --- blur ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('value', [0, 1, 10, 11, 127, 255])
def test_a_constant_image_stays_constant(rng, value):
    image = np.full((9, 40, 3), value, np.uint8)
    kernel = synthesize_blur.random_kernel(rng, 15.0)
    np.testing.assert_array_equal(synthesize_blur.blur(image, kernel, 0, rng), image)


@pytest.mark.parametrize('size', [1, 5, 13])
def test_the_delta_kernel_changes_nothing(rng, size):
    image = rng.integers(0, 256, (20, 31, 3), dtype=np.uint8)
    kernel = np.zeros((size, size))
    kernel[size // 2, size // 2] = 1
    np.testing.assert_array_equal(synthesize_blur.blur(image, kernel, 0, rng), image)


@pytest.mark.parametrize('size', [3, 5, 13])  # OpenCV takes another way for kernels of 11 and more
@pytest.mark.parametrize('channels', [1, 3])
def test_blur_is_the_convolution_of_linear_light(rng, size, channels):
    height, width, radius = 14, 17, size // 2
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    kernel = rng.random((size, size))  # asymmetric: a correlation would differ
    kernel /= kernel.sum()

    def reflected(index, length):
        return -index - 1 if index < 0 else 2 * length - 1 - index if index >= length else index

    expected = np.zeros(image.shape)
    for y, x, c in np.ndindex(image.shape):
        light = 0.0
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                source = image[reflected(y - dy, height), reflected(x - dx, width), c]
                light += kernel[radius + dy, radius + dx] * srgb_to_linear(float(source))
        expected[y, x, c] = linear_to_srgb(light)

    blurred = synthesize_blur.blur(image, kernel, 0, rng)
    assert blurred.dtype == np.uint8 and blurred.shape == image.shape
    assert np.abs(blurred - expected).max() <= 0.5 + 1e-6  # rounding only


def test_noise_is_gaussian_and_added_in_steps_of_the_image(rng):
    image = np.full((200, 200, 3), 128, np.uint8)
    difference = synthesize_blur.blur(image, np.ones((1, 1)), 3.0, rng).astype(float) - 128
    assert difference.mean() == pytest.approx(0, abs=0.05)
    assert difference.std() == pytest.approx(np.sqrt(3.0**2 + 1 / 12), rel=0.02)  # 1/12: rounding
    assert np.mean(np.abs(difference) < 3.5) == pytest.approx(0.757, abs=0.01)  # P(|N(0, 3)| < 3.5)


def test_noise_does_not_wrap_around(rng):
    image = np.tile(np.array([[0, 255]], np.uint8), (50, 50))[..., None]
    noisy = synthesize_blur.blur(image, np.ones((1, 1)), 5.0, rng)
    assert noisy[:, ::2].max() < 60 and noisy[:, 1::2].min() > 195


# --- the set ------------------------------------------------------------------------------------------------


def test_every_photograph_is_there_and_in_colour():
    for names in synthesize_blur.PHOTOGRAPHS.values():
        for name in names:
            image = synthesize_blur.read_photograph(name)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert min(image.shape[:2]) >= 256


def test_a_photograph_that_is_absent_is_named():
    with pytest.raises(FileNotFoundError, match=r'scikit-image \d.*no_such\.png'):
        synthesize_blur.read_photograph('no_such.png')


def test_no_scene_is_in_train_and_val():
    scenes = {
        split: {name.partition('.')[0].partition('_')[0] for name in names}
        for split, names in synthesize_blur.PHOTOGRAPHS.items()
    }
    assert scenes['train'] and scenes['val'] and not scenes['train'] & scenes['val']
    assert 'motorcycle' in scenes['train'] | scenes['val']  # two views, one scene: the rule above sees both


def test_layout_pairs_and_colours(tmp_path, small):
    assert synthesize_blur.synthesize(tmp_path / 'set', per_image=3) == {'train': 3, 'val': 3}
    files = {str(path) for path in contents(tmp_path / 'set')}
    expected = {
        f'{split}/{role}/{name}-{n}.png'
        for split, name in (('train', 'astronaut'), ('val', 'coffee'))
        for role in ('input', 'target')
        for n in (1, 2, 3)
    }
    assert files == expected | {'settings.json'}

    import skimage

    rgb = np.asarray(Image.open(Path(skimage.__file__).parent / 'data' / 'astronaut.png'))[200:232, 200:240]
    target = np.asarray(Image.open(tmp_path / 'set/train/target/astronaut-2.png'))
    blurred = np.asarray(Image.open(tmp_path / 'set/train/input/astronaut-2.png'))
    np.testing.assert_array_equal(target, rgb)
    assert blurred.shape == target.shape and np.abs(blurred.astype(int) - target).mean() > 1


def test_pair_n_of_every_photograph_has_kernel_n(tmp_path, small, monkeypatch):
    used = []
    blur = synthesize_blur.blur
    monkeypatch.setattr(
        synthesize_blur, 'blur', lambda i, kernel, *rest: used.append(kernel) or blur(i, kernel, *rest)
    )
    synthesize_blur.synthesize(tmp_path / 'set', per_image=2)
    np.testing.assert_array_equal(used[0], used[2])  # astronaut-1, coffee-1
    np.testing.assert_array_equal(used[1], used[3])
    assert used[0].shape != used[1].shape or (used[0] != used[1]).any()


def test_same_seed_same_bytes(tmp_path, small):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        synthesize_blur.synthesize(tmp_path / name, seed=seed, per_image=2)
    first, same, other = (contents(tmp_path / name) for name in 'abc')
    assert first == same
    key = Path('train/input/astronaut-1.png')
    assert first[key] != other[key]


def test_more_pairs_leave_the_first_as_they_were(tmp_path, small):
    synthesize_blur.synthesize(tmp_path / 'a', per_image=1)
    synthesize_blur.synthesize(tmp_path / 'b', per_image=3)
    few, many = contents(tmp_path / 'a'), contents(tmp_path / 'b')
    assert all(many[path] == data for path, data in few.items() if path.suffix == '.png')
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'a').rglob('*.png')}
    assert synthesize_blur.synthesize(tmp_path / 'a', per_image=3) == {'train': 2, 'val': 2}
    assert contents(tmp_path / 'a') == many
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_set_with_the_same_settings_is_left_alone(tmp_path, small):
    synthesize_blur.synthesize(tmp_path, per_image=1)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    assert synthesize_blur.synthesize(tmp_path, per_image=1) == {'train': 0, 'val': 0}
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}


@pytest.mark.parametrize('other', [{'seed': 1}, {'per_image': 1}, {'noise': 2.0}, {'blur_length': (6, 13)}])
def test_other_settings_are_refused_and_overwritten_only_on_request(tmp_path, small, other):
    settings = {'per_image': 2, 'blur_length': (6, 12)}
    synthesize_blur.synthesize(tmp_path / 'set', **settings)
    before = contents(tmp_path / 'set')
    with pytest.raises(FileExistsError, match='--overwrite'):
        synthesize_blur.synthesize(tmp_path / 'set', **(settings | other))
    assert contents(tmp_path / 'set') == before

    synthesize_blur.synthesize(tmp_path / 'set', **(settings | other), overwrite=True)
    synthesize_blur.synthesize(tmp_path / 'fresh', **(settings | other))
    assert contents(tmp_path / 'set') == contents(tmp_path / 'fresh')  # nothing of the old set is left


def test_a_set_of_other_photographs_is_replaced_on_request(tmp_path, photographs, small):
    output = tmp_path / 'set'
    synthesize_blur.synthesize(output, per_image=1)
    with pytest.raises(FileExistsError, match='--overwrite'):
        synthesize_blur.synthesize(output, per_image=1, sharp_dir=photographs)
    for name in ('a.jpg', 'other.jpg'):  # a set of the built-in photographs, and of those with another name
        next(photographs.glob('*.jpg')).rename(photographs / name)
        made = synthesize_blur.synthesize(output, per_image=1, sharp_dir=photographs, overwrite=True)
        assert made == {'train': 3}
        names = {f'{path.stem}-1.png' for path in photographs.iterdir()}
        assert {path.name for path in output.rglob('*.png')} == names
        assert {path.name for path in output.iterdir()} == {'train', 'settings.json'}  # no val without images


@pytest.mark.parametrize('text', ['', '{', '[]', '{"photographs": 3}', '{"photographs": {"..": []}}'])
def test_settings_that_are_none_are_replaced_on_request_alone(tmp_path, small, text):
    settings = tmp_path / 'settings.json'
    settings.write_text(text)
    with pytest.raises(ValueError, match=r'settings\.json: found no settings of a set; .* --overwrite'):
        synthesize_blur.synthesize(tmp_path, per_image=1)
    assert contents(tmp_path) == {Path('settings.json'): text.encode()}
    assert synthesize_blur.synthesize(tmp_path, per_image=1, overwrite=True) == {'train': 1, 'val': 1}


def interrupt(monkeypatch):
    """Ends the script before it writes a pair of val."""
    write = synthesize_blur.write_image

    def interrupted(path, image):
        if path.parent.parent.name == 'val':
            raise KeyboardInterrupt
        write(path, image)

    monkeypatch.setattr(synthesize_blur, 'write_image', interrupted)
    return write


@pytest.mark.parametrize('overwrite', [False, True])
def test_an_interrupted_set_goes_on(tmp_path, small, monkeypatch, overwrite):
    write = interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        synthesize_blur.synthesize(tmp_path / 'set', seed=3, per_image=2)
    assert json.loads((tmp_path / 'set/settings.json').read_text())['unfinished']
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.png')}
    assert len(times) == 4

    monkeypatch.setattr(synthesize_blur, 'write_image', write)
    (tmp_path / 'set/train/input/.0123456789abcdef.tmp').write_bytes(b'of a killed process')
    made = synthesize_blur.synthesize(tmp_path / 'set', seed=3, per_image=2, overwrite=overwrite)
    assert made == {'train': 0, 'val': 2}
    assert times == {path: path.stat().st_mtime_ns for path in times}
    synthesize_blur.synthesize(tmp_path / 'fresh', seed=3, per_image=2)
    assert contents(tmp_path / 'set') == contents(tmp_path / 'fresh')


@pytest.mark.parametrize('photographs', [('coffee.png', 'chelsea.png'), ('camera.png',)])
def test_an_interrupted_set_is_replaced_on_request(tmp_path, small, monkeypatch, photographs):
    write = interrupt(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        synthesize_blur.synthesize(tmp_path / 'set', seed=3, per_image=2)
    before = contents(tmp_path / 'set')

    monkeypatch.setattr(synthesize_blur, 'write_image', write)
    # Also by one of other photographs.
    monkeypatch.setattr(synthesize_blur, 'PHOTOGRAPHS', {'train': photographs[:1], 'val': photographs[-1:]})
    with pytest.raises(FileExistsError, match='holds an unfinished set made with other settings; --overwrite'):
        synthesize_blur.synthesize(tmp_path / 'set', per_image=1)
    assert contents(tmp_path / 'set') == before
    assert synthesize_blur.synthesize(tmp_path / 'set', per_image=1, overwrite=True) == {'train': 1, 'val': 1}
    synthesize_blur.synthesize(tmp_path / 'fresh', per_image=1)
    assert contents(tmp_path / 'set') == contents(tmp_path / 'fresh')


def test_a_set_that_lost_a_file_gets_it_back(tmp_path, small):
    synthesize_blur.synthesize(tmp_path, per_image=1)
    before = contents(tmp_path)
    (tmp_path / 'val/target/coffee-1.png').unlink()
    assert synthesize_blur.synthesize(tmp_path, per_image=1) == {'train': 0, 'val': 1}
    assert contents(tmp_path) == before
    (tmp_path / 'val/target/coffee-1.png').write_bytes(b'')
    assert synthesize_blur.synthesize(tmp_path, per_image=1) == {'train': 0, 'val': 1}
    assert contents(tmp_path) == before


def test_a_set_with_images_of_someone_else_does_not_go_on(tmp_path, small):
    synthesize_blur.synthesize(tmp_path, per_image=1)
    (tmp_path / 'val/target/coffee-1.png').unlink()
    (tmp_path / 'train/input/mine.png').write_bytes(b'precious')
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r'mine\.png is not from this script'):
        synthesize_blur.synthesize(tmp_path, per_image=1)
    assert contents(tmp_path) == before


def test_pairs_that_may_be_someones_own_are_replaced_on_request_alone(tmp_path, small):
    synthesize_blur.synthesize(tmp_path, per_image=1)
    fresh = contents(tmp_path)
    (tmp_path / 'settings.json').unlink()
    (tmp_path / 'train/input/astronaut-1.png').write_bytes(b'edited by hand')
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r'no settings\.json.* --overwrite'):
        synthesize_blur.synthesize(tmp_path, per_image=1)
    assert contents(tmp_path) == before
    synthesize_blur.synthesize(tmp_path, per_image=1, overwrite=True)
    assert contents(tmp_path) == fresh


@pytest.mark.parametrize('kind', ['input', 'target'])
def test_the_photographs_are_not_those_of_the_set(tmp_path, photographs, kind):
    synthesize_blur.synthesize(tmp_path / 'set', per_image=1, sharp_dir=photographs)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r'sharp_dir: found .*a folder of the set'):
        synthesize_blur.synthesize(tmp_path / 'set', sharp_dir=tmp_path / 'set/train' / kind, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize('name', ['mine.png', 'holiday-1.png', 'coffee-1.jpg', 'coffee-x.png'])
def test_other_peoples_images_are_never_deleted(tmp_path, small, name):
    folder = tmp_path / 'train' / 'input'
    folder.mkdir(parents=True)
    (folder / name).write_bytes(b'precious')
    (folder / 'coffee-1.png').write_bytes(b'of an interrupted run')
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=name):
        synthesize_blur.synthesize(tmp_path, per_image=1, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    'arguments',
    [
        {'blur_length': (5, 4)}, {'blur_length': (-1, 4)}, {'blur_length': (float('nan'), 4)}, {'noise': -1},
        {'noise': float('nan')}, {'per_image': 0}, {'seed': -1},
    ],
)  # fmt: skip
def test_senseless_arguments_are_refused_before_any_work(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        synthesize_blur.synthesize(tmp_path / 'set', **arguments)
    assert not (tmp_path / 'set').exists()


# --- photographs of one's own, and a moving camera ----------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / 'photographs'
    folder.mkdir()
    image = synthesize_blur.read_photograph('astronaut.png')[:, :, ::-1]
    for name, top in (('a.jpg', 0), ('b.v2.png', 100), ('c.webp', 200)):
        Image.fromarray(image[top : top + 96, 150:270]).save(folder / name, quality=95)
    return folder


def test_a_camera_in_motion(tmp_path, photographs):
    made = synthesize_blur.synthesize(tmp_path / 'set', sharp_dir=photographs, model='shake6d', shake=(5, 5))
    assert made == {'train': 6}
    files = contents(tmp_path / 'set')
    names = {f'{stem}-{n}.png' for stem in ('a', 'b.v2', 'c') for n in (1, 2)}
    assert {str(path) for path in files} == {
        'settings.json',
        *(f'train/{role}/{name}' for role in ('input', 'target') for name in names),
    }
    for name in names:
        sharp, blurred = (
            np.asarray(Image.open(tmp_path / 'set/train' / role / name)) for role in ('target', 'input')
        )
        assert sharp.shape == blurred.shape and 40 <= len(sharp) <= 96
        assert np.abs(blurred.astype(int) - sharp).mean() > 1
        # the astronaut's colours, in the order of the file
        assert (
            sharp.mean(axis=(0, 1)).argmax()
            == np.asarray(Image.open(photographs / 'c.webp')).mean((0, 1)).argmax()
        )


def test_a_camera_in_motion_before_the_built_in_photographs(tmp_path, small):
    assert synthesize_blur.synthesize(tmp_path, model='shake6d', per_image=1) == {'train': 1, 'val': 1}
    assert synthesize_blur.synthesize(tmp_path, model='shake6d', per_image=1) == {'train': 0, 'val': 0}
    with pytest.raises(FileExistsError, match='--overwrite'):
        synthesize_blur.synthesize(tmp_path, per_image=1)


def test_kernels_on_photographs_of_ones_own(tmp_path, photographs):
    synthesize_blur.synthesize(
        tmp_path / 'set', sharp_dir=photographs, per_image=1, blur_length=(0, 0), noise=0
    )
    for role in ('input', 'target'):
        found = np.asarray(Image.open(tmp_path / f'set/train/{role}/b.v2-1.png'))
        np.testing.assert_array_equal(found, np.asarray(Image.open(photographs / 'b.v2.png')))


def test_processes_write_the_same_bytes(tmp_path, photographs):
    for workers in ('0', '2'):
        command = [
            '--output',
            tmp_path / workers,
            '--sharp_dir',
            photographs,
            '--model',
            'shake6d',
            '--workers',
            workers,
        ]
        subprocess.run([sys.executable, SCRIPT, *command], check=True, capture_output=True)
    assert contents(tmp_path / '0') == contents(tmp_path / '2')


@pytest.mark.parametrize('workers', [0, 1])
def test_what_cannot_be_written_is_a_sentence(tmp_path, photographs, workers):
    command = ['--output', 'set', '--sharp_dir', photographs, '--per_image', '1', '--workers', str(workers)]
    limited = f'ulimit -f 8; exec "{sys.executable}" "$@"'  # a file may have 8 KiB, as on a disk that is full
    result = subprocess.run(
        ['bash', '-c', limited, 'bash', '-B', SCRIPT, *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert re.search(r'set/train/\w+/a-1\.png: cannot be written: File too large$', result.stderr.strip())


def test_a_process_that_dies_is_a_sentence(tmp_path, photographs, capsys, monkeypatch):
    monkeypatch.setattr(synthesize_blur, 'write_image', lambda *_: os._exit(3))
    with pytest.raises(SystemExit) as refusal:
        synthesize_blur.main(
            ['--output', str(tmp_path / 'set'), '--sharp_dir', str(photographs), '--workers', '1']
        )
    assert refusal.value.code == 1 and 'exited unexpectedly' in capsys.readouterr().err


def test_ctrl_c(tmp_path, small, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesize_blur, 'write_image', interrupted)
    assert synthesize_blur.main(['--output', str(tmp_path)]) == 130


def test_photographs_that_are_none(tmp_path, photographs):
    (photographs / 'a.jpg').write_bytes(b'none')
    with pytest.raises(ValueError, match=r'a\.jpg: is empty, cut short, or not an image'):
        synthesize_blur.synthesize(tmp_path / 'set', sharp_dir=photographs, model='shake6d')
    (tmp_path / 'empty').mkdir()
    for name, text in (('nowhere', 'cannot be read as a folder'), ('empty', 'there is no image in it')):
        with pytest.raises(ValueError, match=text):
            synthesize_blur.synthesize(tmp_path / 'other', sharp_dir=tmp_path / name)
    assert not (tmp_path / 'other').exists()


def test_the_sheet_shows_sharp_and_blurred(tmp_path, photographs):
    sheet = tmp_path / 'look.png'
    settings = {'sharp_dir': photographs, 'per_image': 1, 'sheet': sheet}
    synthesize_blur.synthesize(tmp_path / 'set', **settings)
    found = np.asarray(Image.open(sheet))
    assert found.shape == (2 * 256, 4 * 256, 3)  # three pairs, two in a row
    target, blurred = (
        np.asarray(Image.open(tmp_path / f'set/train/{role}/b.v2-1.png')) for role in ('target', 'input')
    )
    np.testing.assert_array_equal(found[:96, 512:632], target)
    np.testing.assert_array_equal(found[:96, 768:888], blurred)
    assert not found[256:, 512:].any()
    sheet.unlink()
    assert synthesize_blur.synthesize(tmp_path / 'set', **settings) == {'train': 0} and sheet.exists()

    synthesize_blur.synthesize(tmp_path / 'set', **{**settings, 'sheet': tmp_path / 'look.jpg'})
    with Image.open(tmp_path / 'look.jpg') as again:
        assert again.format == 'JPEG' and again.size == (4 * 256, 2 * 256)

    (tmp_path / 'set/train/input/a-1.png').write_bytes(b'none')
    with pytest.raises(ValueError, match=r'a-1\.png: is empty, cut short, or not an image'):
        synthesize_blur.synthesize(tmp_path / 'set', **settings)


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        ({'model': 'other'}, 'model: found other; allowed: kernel, shake6d'),
        ({'shake': (1, 2)}, 'shake: found .*; allowed: nothing, with the model kernel'),
        ({'model': 'shake6d', 'noise': 1}, 'noise: found 1; allowed: nothing, with the model shake6d'),
        ({'model': 'shake6d', 'blur_length': (1, 2)}, 'blur_length: found .*; allowed: nothing'),
        ({'model': 'shake6d', 'shake': (3, 2)}, r'shake: found \[3, 2\]; allowed: \[lo, hi\]'),
        ({'parameters': {'video': 1}}, 'parameters: found .*; allowed: nothing, with the model kernel'),
        (
            {'model': 'shake6d', 'parameters': {'shook': 1}},
            'parameters: found shook; allowed: shake, exposure, ',
        ),
        ({'model': 'shake6d', 'parameters': {'video': 2}}, 'video: found 2; allowed: a chance from 0 to 1'),
        (
            {'model': 'shake6d', 'parameters': {'shake': [0, 1]}, 'shake': (0, 1)},
            r'found shake=\[0, 1\] beside shake',
        ),
        ({'workers': -1}, 'workers: found -1; allowed: 0 or more'),
        ({'sheet': 'look.webp'}, 'sheet: found look.webp; allowed: a file ending in .png or .jpg'),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(tmp_path, arguments, text):
    with pytest.raises(ValueError, match=text):
        synthesize_blur.synthesize(tmp_path / 'set', **arguments)
    assert not (tmp_path / 'set').exists()


# --- command line -------------------------------------------------------------------------------------------


def test_command_line(tmp_path, small, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ['--output', 'some/set', '--per_image', '2', '--blur_length', '4', '5', '--noise', '0']
    synthesize_blur.main(command)
    assert 'some/set: 2 training and 2 validation pairs' in capsys.readouterr().out
    settings = json.loads((tmp_path / 'some/set/settings.json').read_text())
    assert (settings['blur_length'], settings['noise'], settings['per_image']) == ([4.0, 5.0], 0.0, 2)

    synthesize_blur.main(command)
    assert 'nothing to do' in capsys.readouterr().out

    with pytest.raises(SystemExit) as refusal:
        synthesize_blur.main([*command, '--seed', '5'])
    assert refusal.value.code == 1 and '--overwrite' in capsys.readouterr().err
    synthesize_blur.main([*command, '--seed', '5', '--overwrite'])


def test_help_starts_anywhere(tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT, '--help'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(
        flag in result.stdout for flag in ('--output', '--seed', '--per_image', '--blur_length', '--noise')
    )


def test_the_command_line_has_the_defaults_of_the_function(monkeypatch):
    parameters = inspect.signature(synthesize_blur.synthesize).parameters.values()
    given = {}
    monkeypatch.setattr(synthesize_blur, 'synthesize', lambda **kwargs: given.update(kwargs) or {'train': 0})
    synthesize_blur.main([])
    assert given == {parameter.name: parameter.default for parameter in parameters}
    assert given['output'] == SCRIPT.parents[1] / 'datasets' / 'synthetic_blur'


def test_parameters_are_those_of_the_dataset(tmp_path, photographs):
    """A camera that stands still sees the photograph as it is."""
    still = ['shake=[0, 0]', 'foreground=0', 'scale=[1, 1]', 'jpeg=0', 'video=1']
    where = ['--output', str(tmp_path / 'set'), '--sharp_dir', str(photographs)]
    synthesize_blur.main([*where, '--model', 'shake6d', '--per_image', '1', '--parameters', *still])
    for role in ('input', 'target'):
        found = np.asarray(Image.open(tmp_path / f'set/train/{role}/b.v2-1.png'))
        np.testing.assert_array_equal(found, np.asarray(Image.open(photographs / 'b.v2.png')))
    settings = json.loads((tmp_path / 'set' / 'settings.json').read_text())
    assert settings['parameters']['video'] == 1 and settings['parameters']['shake'] == [0, 0]
    assert settings['parameters']['fov'] == [40, 80]  # as it is by default


def test_parameters_are_read_as_in_option_files(tmp_path, photographs, capsys):
    where = ['--output', str(tmp_path / 'set'), '--sharp_dir', str(photographs), '--model', 'shake6d']
    where += ['--per_image', '1', '--parameters', 'shot_noise=[0, 1e-3]', '--parameters', 'jpeg=0']
    assert synthesize_blur.main(where) == 0
    parameters = json.loads((tmp_path / 'set' / 'settings.json').read_text())['parameters']
    assert parameters['shot_noise'] == [0, 0.001] and parameters['jpeg'] == 0
    with pytest.raises(SystemExit) as refusal:
        synthesize_blur.main([*where, 'jpeg=1'])
    assert refusal.value.code == 2
    assert '--parameters: found jpeg 2 times; allowed: once' in capsys.readouterr().err


@pytest.mark.parametrize('setting', ['video', '=1', 'video=', 'shake=[0'])
def test_a_parameter_that_is_none_is_a_sentence(tmp_path, capsys, setting):
    with pytest.raises(SystemExit):
        synthesize_blur.main(['--output', str(tmp_path / 'set'), '--model', 'shake6d', '--parameters', setting])
    assert f'found {setting}; allowed: KEY=VALUE' in capsys.readouterr().err
    assert not (tmp_path / 'set').exists()
