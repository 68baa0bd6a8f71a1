"""Crops of frames as files: which pixels, which names, and repeating a command that was ended."""

import os
import shlex
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import written_images
from written_images import files, image, read, write

from basicsr.data.packed_image_dataset import Dataset_PackedImage
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.utils import cli
from basicsr.utils.files import ROOT
from Motion_Deblurring import generate_patches_gopro

SCRIPT = ROOT / 'Motion_Deblurring' / 'generate_patches_gopro.py'
SMALL = ['--crop_size', '8', '--stride', '4', '--workers', '0']


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with three training pairs, '2' of 16 bit, and two test pairs in `sets`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['generate_patches_gopro.py'])
    for kind in ('input', 'target'):
        for name, dtype in (('2', np.uint16), ('b-1', np.uint8), ('10', np.uint8)):
            write(tmp_path / f'sets/train/GoPro/{kind}/{name}.png', image(dtype=dtype))
        for name in ('t1', 't2'):
            write(tmp_path / f'sets/test/GoPro/{kind}/{name}.png', image(300, 261))
    return tmp_path


def run(*arguments, small=SMALL):
    return cli.run('Motion_Deblurring.generate_patches_gopro', ['--datasets', 'sets', *small, *arguments])


def refusal(capsys, *arguments, status=1):
    return written_images.refusal(capsys, lambda: run(*arguments), status)


def crops(here, place='train/GoPro'):
    found = files(here / 'sets' / place)
    return {name: data for name, data in found.items() if name.split('/')[0].endswith('_crops')}


# Which pixels, under which names


@pytest.mark.parametrize('workers', ['0', '1'])
def test_a_frame_of_720p(tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    columns, rows = np.meshgrid(np.arange(1280), np.arange(720))
    frame = np.stack([columns // 256 * 8 + rows // 256, columns % 256, rows % 256], axis=2).astype(np.uint8)
    for split in ('train', 'test'):
        for kind, pixels in (('input', frame), ('target', 255 - frame)):
            write(tmp_path / f'sets/{split}/GoPro/{kind}/GOPR0372_07_00-000047.png', pixels)
    assert run('--workers', workers, '--val', small=[]) == 0
    corners = [(0, 0), (0, 256), (0, 512), (0, 768), (208, 0), (208, 256), (208, 512), (208, 768)]
    train, val = tmp_path / 'sets/train/GoPro', tmp_path / 'sets/val/GoPro'
    for folder, pixels in (('input_crops', frame), ('target_crops', 255 - frame)):
        assert len(list((train / folder).iterdir())) == 8
        for number, (row, column) in enumerate(corners, 1):
            np.testing.assert_array_equal(
                read(train / folder / f'GOPR0372_07_00-000047-{number}.png'),
                pixels[row : row + 512, column : column + 512],
            )
        np.testing.assert_array_equal(
            read(val / folder / 'GOPR0372_07_00-000047.png'), pixels[232:488, 512:768]
        )
        assert len(list((val / folder).iterdir())) == 1


def test_small_frames_and_their_depth(here):
    assert run() == 0
    assert not (here / 'sets' / 'val').exists()
    train = here / 'sets/train/GoPro'
    corners = [(row, column) for row in (0, 3) for column in (0, 4, 8, 10)]
    expected = set()
    for kind in ('input', 'target'):
        for name in ('2', 'b-1', '10'):
            frame = read(train / kind / f'{name}.png')
            for number, (row, column) in enumerate(corners, 1):
                crop = read(train / f'{kind}_crops' / f'{name}-{number}.png')
                np.testing.assert_array_equal(crop, frame[row : row + 8, column : column + 8])
                assert crop.dtype == (np.uint16 if name == '2' else np.uint8)
                expected.add(f'{kind}_crops/{name}-{number}.png')
    assert crops(here).keys() == expected


def test_validation_crops_alone(here):
    assert run('--only_val') == 0
    assert crops(here) == {}
    for kind in ('input', 'target'):
        for name in ('t1', 't2'):
            np.testing.assert_array_equal(
                read(here / f'sets/val/GoPro/{kind}_crops/{name}.png'),
                read(here / f'sets/test/GoPro/{kind}/{name}.png')[22:278, 2:258],
            )
    assert len(crops(here, 'val/GoPro')) == 4


def test_crops_equal_those_of_a_pack(here, capsys):
    """The pack is made by the command that the program prints."""
    assert run() == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f'{here}/sets/train/GoPro: 24 pairs of crops, of 3 pairs of images'
    python, script, *arguments = shlex.split(out.splitlines()[1].rpartition(': ')[2])
    assert (python, script) == ('python', 'scripts/prepare_data.py')
    assert cli.run('scripts.prepare_data', [*arguments, '--workers', '0']) == 0
    train = here / 'sets/train/GoPro'
    cut = Dataset_PairedImage(str(train / 'input_crops'), str(train / 'target_crops'))
    packed = Dataset_PackedImage(str(here / 'sets/train/GoPro.pack'))
    assert len(cut) == len(packed) == 24
    for one, other in zip(cut, packed, strict=True):
        assert one['name'] == other['name']
        for kind in ('lq', 'gt'):
            assert one[kind].equal(other[kind])


def test_the_printed_command_counts_from_the_repository():
    args = generate_patches_gopro.parser().parse_args([])
    folder = 'Motion_Deblurring/Datasets/train/GoPro'
    assert generate_patches_gopro.packing(args) == (
        f'python scripts/prepare_data.py --crop_size 512 --stride 256 --input_dir {folder}/input '
        f'--target_dir {folder}/target --output {folder}.pack'
    )


def test_any_number_of_workers_makes_the_same(here, capsys):
    assert run('--val') == 0
    alone = crops(here), crops(here, 'val/GoPro')
    for name in ('train/GoPro/input_crops', 'train/GoPro/target_crops', 'val'):
        (here / 'sets' / name).rename(here / name.replace('/', '_'))
    assert run('--val', '--workers', '2') == 0
    assert (crops(here), crops(here, 'val/GoPro')) == alone
    assert '3/3' in capsys.readouterr().err


# Again


def test_existing_crops_are_not_written_again(here, capsys):
    run()
    whole = crops(here)
    folder = here / 'sets/train/GoPro/input_crops'
    (folder / '2-1.png').write_bytes(whole['input_crops/2-1.png'][:-5])  # cut short
    (folder / '10-8.png').write_bytes(b'')
    (folder / 'b-1-3.png').unlink()
    (folder / '.0123456789abcdef.tmp').write_bytes(b'of a kill')
    others = [here / 'sets/train/GoPro' / name for name in whole]
    others = [path for path in others if path.exists() and path.name not in ('2-1.png', '10-8.png')]
    before = {path: path.stat().st_ino for path in others}
    capsys.readouterr()
    assert run() == 0
    assert crops(here) == whole
    assert {path: path.stat().st_ino for path in others} == before
    said = '24 pairs of crops, of 3 pairs of images (45 of the 48 files existed already)'
    assert said in capsys.readouterr().out

    mine = folder / '.mine.tmp'  # is not taken for a leftover
    mine.write_bytes(b'mine')
    run()
    assert mine.read_bytes() == b'mine'


@pytest.mark.parametrize('workers', ['0', '1'])
def test_another_image_under_the_name_of_a_crop_stays(here, capsys, workers):
    run()
    path = here / 'sets/train/GoPro/target_crops/10-8.png'
    write(path, image(8, 8))
    before = crops(here)
    assert refusal(capsys, '--workers', workers) == (
        f'{path}: differs from this crop of the frame; delete the crops of other frames or settings, and run the '
        'command again'
    )
    assert refusal(capsys, '--stride', '5').startswith(str(here / 'sets/train/GoPro/input_crops'))
    assert crops(here) == before


def test_images_that_are_no_crops_are_named(here, capsys):
    folder = here / 'sets/train/GoPro/target_crops'
    for name in ('10-9.png', 'mine.jpg', '.hidden.png'):
        write(folder / name, image(8, 8))
    (folder / 'notes.txt').touch()
    assert refusal(capsys) == (
        f'{folder}: found 2 images that are not crops of these frames, and training would use: 10-9, mine; move or '
        'delete them'
    )
    for name in ('10-9.png', 'mine.jpg'):
        (folder / name).unlink()
    assert run() == 0


def many_frames(folder, count):
    frame = cv2.imencode('.png', image(200, 200))[1].tobytes()
    for kind in ('input', 'target'):
        (folder / f'sets/train/GoPro/{kind}').mkdir(parents=True)
        for index in range(count):
            (folder / f'sets/train/GoPro/{kind}/{index}.png').write_bytes(frame)


@pytest.mark.parametrize(
    ('number', 'status'),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_command_that_was_ended_is_completed_by_the_next(tmp_path, monkeypatch, number, status):
    """The signal reaches all its processes at once, as from a terminal."""
    many_frames(tmp_path, 100)
    small = ['--crop_size', '128', '--stride', '72']
    command = [sys.executable, SCRIPT, '--datasets', 'sets', *small, '--workers', '1']
    folder = tmp_path / 'sets/train/GoPro/input_crops'
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not folder.is_dir() or len(list(folder.iterdir())) < 10:
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, number)
        error = process.communicate()[1]
    assert process.returncode == status
    assert 'Traceback' not in error
    began = crops(tmp_path)
    assert 10 <= len(began) < 100 * 4 * 2
    assert number == signal.SIGKILL or all(name.endswith('.png') for name in began)
    monkeypatch.chdir(tmp_path)
    assert run('--workers', '0', small=small) == 0
    ended = crops(tmp_path)
    assert len(ended) == 100 * 4 * 2 and all(name.endswith('.png') for name in ended)
    for kind in ('input', 'target'):
        (tmp_path / f'sets/train/GoPro/{kind}_crops').rename(tmp_path / f'{kind}_crops')
    assert run('--workers', '0', small=small) == 0
    assert crops(tmp_path) == ended


# What cannot be cut


@pytest.mark.parametrize(
    ('arguments', 'folder', 'data'),
    [
        ([], 'train/GoPro/target', 'train'),
        (['--val'], 'test/GoPro/input', 'GoPro'),
        (['--only_val'], 'test/GoPro/target', 'GoPro'),
    ],
)
def test_missing_frames_are_explained(here, capsys, arguments, folder, data):
    (here / 'sets' / folder).rename(here / 'elsewhere')
    before = files(here)
    assert refusal(capsys, *arguments) == (
        f'{here / "sets" / folder}: found no such folder; allowed: the frames, which python '
        f'Motion_Deblurring/download_data.py --data {data} gets'
    )
    assert files(here) == before


@pytest.mark.parametrize('workers', ['0', '1'])
def test_frames_that_are_no_pairs(here, capsys, workers):
    lq, gt = (here / f'sets/train/GoPro/{kind}/b-1.png' for kind in ('input', 'target'))
    frame = gt.read_bytes()
    for spoil, said in (
        (lambda: write(gt, image(11, 17)), f'{gt}: found 17x11; allowed: the size of its partner {lq}, 18x11'),
        (lambda: gt.write_bytes(frame[:-20]), f'{gt}: is damaged or cut short (its end is missing)'),
        (gt.unlink, f'1 image has no partner of the same name: {lq}'),
    ):
        spoil()
        assert refusal(capsys, '--workers', workers) == said
    gt.write_bytes(b'')
    other = here / 'sets/train/GoPro/input/2.png'
    whole = other.read_bytes()
    other.write_bytes(b'')
    assert run('--workers', workers) == 1
    assert capsys.readouterr().err.endswith(f'\n{other}: is empty\n{gt}: is empty\n')
    gt.write_bytes(frame)
    other.write_bytes(whole)
    assert run('--workers', workers) == 0


@pytest.mark.parametrize('workers', ['0', '1'])
def test_a_full_disk(here, capsys, workers, small_files):
    with small_files(300):
        said = refusal(capsys, '--workers', workers)
    assert said == f'{here}/sets/train/GoPro/input_crops/2-1.png: cannot be written: File too large'
    assert not [name for name in crops(here) if not name.endswith('.png')]
    assert run() == 0


def test_a_place_that_is_no_folder(here, capsys):
    (here / 'sets/train/GoPro/input_crops').write_bytes(b'')
    assert refusal(capsys) == f'{here}/sets/train/GoPro: cannot be written: File exists'


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--crop_size', '0'], 'argument --crop_size: found 0; allowed: 1 or more'),
        (['--stride', '-1'], 'argument --stride: found -1; allowed: 1 or more'),
        (['--workers', '-1'], 'argument --workers: found -1; allowed: 0 or more'),
        (['--val', '--only_val'], 'argument --only_val: not allowed with argument --val'),
    ],
)
def test_wrong_arguments(here, capsys, arguments, said):
    assert refusal(capsys, *arguments, status=2) == f'error: {said}'
    assert crops(here) == {}
