"""Packs: what is in them, against the images and a reader of its own; and that there is a whole one or none."""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from basicsr.data.paired_image_dataset import Dataset_PairedImage

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'prepare_data.py'
_spec = importlib.util.spec_from_file_location('prepare_data', SCRIPT)
prepare_data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(prepare_data)

RNG = np.random.default_rng(0)
ARGUMENTS = ['--input_dir', 'lq', '--target_dir', 'gt', '--output', 'my.pack', '--workers', '0']


def image(height=9, width=13, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype)


def write(path, rgb):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, rgb[..., ::-1])[1].tobytes())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a few pairs: '2', of 16 bit, and 7 to 12."""
    monkeypatch.chdir(tmp_path)
    for number in (2, *range(7, 13)):
        for kind in ('lq', 'gt'):
            write(tmp_path / kind / f'{number}.png', image(dtype=np.uint16 if number == 2 else np.uint8))
    return tmp_path


def run(*arguments):
    return prepare_data.main([*ARGUMENTS, *arguments])


def refusal(capsys, *arguments, status=1):
    """The one sentence that is said of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        prepare_data.main(list(arguments) or ARGUMENTS)
    assert caught.value.code == status
    out, error = capsys.readouterr()
    assert out == '' and 'Traceback' not in error
    return error.splitlines()[-1].partition(': ')[2]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def stored(pack, image, channels):
    """The bytes of an image, and the image, by the description of the format alone."""
    data = (pack / 'pixels.bin').read_bytes()[image['offset'] :]
    kind = {'uint8': 'u1', 'uint16': '<u2'}[image['dtype']]
    shape = image['height'], image['width'], channels
    pixels = np.frombuffer(data, kind, count=int(np.prod(shape))).reshape(shape)
    return pixels.tobytes(), pixels


# What is in a pack


@pytest.mark.parametrize('channels', [1, 3])
def test_every_pixel_is_where_the_index_says(here, channels):
    assert run('--channels', str(channels)) == 0
    assert sorted(path.name for path in (here / 'my.pack').iterdir()) == ['index.json', 'pixels.bin']
    index = json.loads((here / 'my.pack' / 'index.json').read_text())
    assert {name: index[name] for name in ('format', 'channels', 'crop_size', 'stride')} == {
        **{'format': 1, 'channels': channels},
        **{'crop_size': None, 'stride': None},
    }
    assert [pair['name'] for pair in index['pairs']] == ['2', '7', '8', '9', '10', '11', '12']
    end = 0
    for pair in index['pairs']:
        for kind in ('lq', 'gt'):  # in this order
            assert end <= pair[kind]['offset'] < end + 2
            data, pixels = stored(here / 'my.pack', pair[kind], channels)
            end = pair[kind]['offset'] + len(data)
            assert pair[kind]['crc32'] == zlib.crc32(data)
            file = cv2.imread(f'{kind}/{pair["name"]}.png', cv2.IMREAD_UNCHANGED)
            expected = file[..., ::-1] if channels == 3 else cv2.cvtColor(file, cv2.COLOR_BGR2GRAY)[..., None]
            np.testing.assert_array_equal(pixels, expected)
            assert pixels.dtype.itemsize == (2 if pair['name'] == '2' else 1)
    assert index['size'] == end == (here / 'my.pack' / 'pixels.bin').stat().st_size


def test_frames_of_720p_are_stored_once_and_trained_on_in_the_papers_crops(tmp_path, monkeypatch, capsys):
    from basicsr.data.packed_image_dataset import Dataset_PackedImage

    monkeypatch.chdir(tmp_path)
    columns, rows = np.meshgrid(np.arange(1280), np.arange(720))
    frame = np.stack([columns // 256 * 8 + rows // 256, columns % 256, rows % 256], axis=2).astype(np.uint8)
    for kind in ('lq', 'gt'):
        write(tmp_path / kind / 'GOPR0372_07_00-000047.png', frame)
    assert run('--crop_size', '512', '--stride', '256') == 0
    assert capsys.readouterr().out == '1 pairs, 8 training crops, 0.00553 GB, in my.pack\n'
    assert (tmp_path / 'my.pack' / 'pixels.bin').stat().st_size == 2 * 720 * 1280 * 3
    dataset = Dataset_PackedImage(str(tmp_path / 'my.pack'))
    corners = [(row, column) for row in (0, 208) for column in (0, 256, 512, 768)]
    for number, (pair, (row, column)) in enumerate(zip(dataset, corners, strict=True), 1):
        assert pair['name'] == f'GOPR0372_07_00-000047-{number}'
        expected = frame[row : row + 512, column : column + 512].transpose(2, 0, 1)
        np.testing.assert_array_equal(pair['gt'].numpy(), expected)


def test_names_of_degraded_images_by_template(here):
    for path in (here / 'lq').iterdir():
        path.rename(path.with_stem(f'{path.stem}_blur'))
    assert run('--filename_tmpl', '{}_blur') == 0
    index = json.loads((here / 'my.pack' / 'index.json').read_text())
    assert [pair['name'] for pair in index['pairs']] == ['2', '7', '8', '9', '10', '11', '12']


@pytest.mark.parametrize('workers', [1, 2])
def test_any_number_of_workers_makes_the_same_pack(here, workers, capsys):
    assert run() == run('--output', 'other.pack', '--workers', str(workers)) == 0
    assert contents(here / 'my.pack') == contents(here / 'other.pack')
    assert '7/7' in capsys.readouterr().err


def test_only_a_few_images_are_decoded_ahead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        for kind in ('lq', 'gt'):
            write(tmp_path / kind / f'{number}.png', image(2, 2))
    decoded, written, ahead = multiprocessing.Value('i'), [], []
    read, write_pair = Dataset_PairedImage.read, prepare_data.write_pair

    def counted(dataset, index):
        with decoded.get_lock():
            decoded.value += 1
        return read(dataset, index)

    def slow(file, name, images):
        time.sleep(0.02)
        ahead.append(decoded.value - len(written))
        written.append(name)
        return write_pair(file, name, images)

    monkeypatch.setattr(Dataset_PairedImage, 'read', counted)
    monkeypatch.setattr(prepare_data, 'write_pair', slow)
    assert run('--workers', '1') == 0
    assert len(written) == 30 and 1 < max(ahead) <= 4


# Checking


def test_a_whole_pack_is_whole(here, capsys):
    run('--crop_size', '8', '--stride', '4')
    capsys.readouterr()
    assert prepare_data.main(['--verify', 'my.pack']) == 0
    assert capsys.readouterr().out == 'my.pack is whole: 7 pairs, 42 training crops, 5.63e-06 GB\n'


def test_every_damaged_pair_is_named(here, capsys):
    run()
    pixels = here / 'my.pack' / 'pixels.bin'
    index = json.loads((here / 'my.pack' / 'index.json').read_text())
    data = bytearray(pixels.read_bytes())
    data[0] ^= 1  # the first byte there is, two in one pair, and the last one
    data[index['pairs'][3]['lq']['offset'] + 5] ^= 128
    data[index['pairs'][3]['gt']['offset'] + 7] ^= 4
    data[-1] ^= 1
    pixels.write_bytes(data)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        prepare_data.main(['--verify', 'my.pack'])
    out, error = capsys.readouterr()
    assert caught.value.code == 1 and out == ''
    lines = [line for line in error.splitlines() if line.strip() and 'verifying' not in line]
    assert lines[:3] == [
        'my.pack:2: is damaged: lq',
        'my.pack:9: is damaged: lq, gt',
        'my.pack:12: is damaged: gt',
    ]
    assert lines[3].endswith(': my.pack: 3 of 7 pairs are damaged') and len(lines) == 4


def test_each_single_byte_is_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind in ('lq', 'gt'):
        write(tmp_path / kind / 'a.png', image(2, 3))
    run()
    pixels = tmp_path / 'my.pack' / 'pixels.bin'
    whole = pixels.read_bytes()
    for place in range(len(whole)):
        pixels.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert refusal(capsys, '--verify', 'my.pack') == 'my.pack: 1 of 1 pairs are damaged'


def test_a_pack_that_cannot_be_opened_is_not_whole(here, capsys):
    run()
    pixels, index = (here / 'my.pack' / name for name in ('pixels.bin', 'index.json'))
    pixels.write_bytes(pixels.read_bytes()[:-1])
    said = refusal(capsys, '--verify', 'my.pack')
    assert said.startswith(f'{pixels}: found 5626 bytes; allowed: 5627')
    index.write_bytes(index.read_bytes().replace(b'uint8', b'uint9', 1))
    assert refusal(capsys, '--verify', 'my.pack').startswith(f'{index}: is damaged')
    assert refusal(capsys, '--verify', 'no.pack').startswith(f'{here / "no.pack"}: cannot be read as a pack')


# A pack or none


@pytest.fixture
def untouched(here):
    """Nothing but what was there before is there after the test."""
    before = contents(here), sorted(here.iterdir())
    yield
    after = contents(here), sorted(here.iterdir())
    assert after == before


def test_what_is_there_already_is_refused(here, capsys):
    (here / 'my.pack').mkdir()
    (here / 'file.pack').write_bytes(b'precious')
    (here / 'link.pack').symlink_to('nowhere')
    before = contents(here), sorted(here.iterdir())
    for name in ('my.pack', 'file.pack', 'link.pack'):
        assert refusal(capsys, *ARGUMENTS, '--output', name) == (
            f'--output: found {name}, which is there already; allowed: a new name'
        )
        assert (contents(here), sorted(here.iterdir())) == before


@pytest.mark.parametrize('workers', ['0', '1'])
class TestNothingIsLeftBehindBy:
    def test_images_without_partners(self, here, capsys, workers):
        (here / 'gt' / '9.png').unlink()
        said = refusal(capsys, *ARGUMENTS, '--workers', workers)
        assert said == f'1 degraded image has no partner of the same name: {here / "lq" / "9.png"}'
        assert sorted(path.name for path in here.iterdir()) == ['gt', 'lq']

    def test_pairs_of_different_size(self, here, capsys, workers):
        write(here / 'gt' / '12.png', image(8, 13))
        said = refusal(capsys, *ARGUMENTS, '--workers', workers)
        assert said == (
            f'{here / "gt" / "12.png"}: found 13x8; allowed: the size of its partner '
            f'{here / "lq" / "12.png"}, 13x9'
        )
        assert sorted(path.name for path in here.iterdir()) == ['gt', 'lq']

    def test_an_unreadable_image(self, here, capsys, workers):
        (here / 'lq' / '12.png').write_bytes(b'no image')
        said = refusal(capsys, *ARGUMENTS, '--workers', workers)
        assert said == f'{here / "lq" / "12.png"}: is empty, cut short, or not an image'
        assert sorted(path.name for path in here.iterdir()) == ['gt', 'lq']

    def test_a_full_disk(self, here, capsys, workers, untouched, small_files):
        with small_files(4000):
            said = refusal(capsys, *ARGUMENTS, '--workers', workers)
        assert said == 'my.pack: cannot be written: File too large'

    @pytest.mark.parametrize('place', ['first', 'last'])
    def test_ctrl_c(self, here, monkeypatch, workers, place, untouched):
        stop_at(monkeypatch, '2' if place == 'first' else '12', signal.SIGINT)
        assert run('--workers', workers) == 130

    def test_being_terminated(self, here, monkeypatch, workers, untouched):
        before = signal.getsignal(signal.SIGTERM)
        stop_at(monkeypatch, '9', signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            run('--workers', workers)
        assert caught.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is before


def stop_at(monkeypatch, name, number):
    """The process gets a signal after a pair of this name is written."""
    write_pair = prepare_data.write_pair

    def write_then_stop(file, pair, images):
        result = write_pair(file, pair, images)
        if pair == name:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(prepare_data, 'write_pair', write_then_stop)


def test_nothing_is_left_behind_by_a_decoding_process_that_dies(here, monkeypatch, capsys, untouched):
    main = os.getpid()

    def die(dataset, index):
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Dataset_PairedImage, 'read', die)
    assert refusal(capsys, *ARGUMENTS, '--workers', '1').startswith('DataLoader worker (pid')


def test_nothing_is_left_behind_by_a_folder_without_images(here, capsys):
    (here / 'none').mkdir()
    said = refusal(capsys, *ARGUMENTS, '--input_dir', 'none')
    assert said == f'{here / "none"}: there is no image in it'
    assert refusal(capsys, *ARGUMENTS, '--input_dir', 'nowhere').startswith(
        f'{here / "nowhere"}: cannot be read as a folder'
    )
    assert refusal(capsys, *ARGUMENTS, '--input_dir', 'none', '--output', 'new/folder/my.pack')
    said = refusal(capsys, *ARGUMENTS, '--output', 'lq/9.png/my.pack')
    assert said.startswith('lq/9.png/my.pack: cannot be written: ')
    assert sorted(path.name for path in here.iterdir()) == ['gt', 'lq', 'none']


def test_the_folder_of_the_pack_is_made(here):
    assert run('--output', 'new/folder/my.pack') == 0
    assert [path.name for path in (here / 'new' / 'folder').iterdir()] == ['my.pack']


def test_what_a_killed_command_has_left_is_removed_by_the_next_one(here):
    left = here / '.my.pack.tmp'
    left.mkdir()
    (left / 'pixels.bin').write_bytes(b'half of it')
    (here / '.my.pack.lock').touch()
    assert run() == 0
    assert sorted(path.name for path in here.iterdir()) == ['gt', 'lq', 'my.pack']


def test_two_commands_do_not_make_one_pack(here, capsys):
    (here / '.my.pack.lock').touch()
    code = 'import fcntl, sys; f = open(".my.pack.lock", "a+b"); fcntl.lockf(f, 2); print("held", flush=True); input()'
    with subprocess.Popen(
        [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=here
    ) as other:
        assert other.stdout.readline() == b'held\n'
        assert refusal(capsys, *ARGUMENTS) == 'my.pack: another process is at work on it'
        other.communicate(b'\n')
    assert sorted(path.name for path in here.iterdir()) == ['.my.pack.lock', 'gt', 'lq']


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_nothing_is_left_behind_by_a_command_that_is_ended_while_it_packs(tmp_path, number, status):
    """With all its processes at once, as a terminal does it."""
    frame = cv2.imencode('.png', image(512, 512))[1].tobytes()
    for kind in ('lq', 'gt'):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / '0.png').write_bytes(frame)
        for index in range(1, 3000):  # far more than it has time for
            (tmp_path / kind / f'{index}.png').hardlink_to(tmp_path / kind / '0.png')
    command = [sys.executable, SCRIPT, *ARGUMENTS, '--workers', '1']
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not any(path.stat().st_size for path in tmp_path.glob('.*.tmp/pixels.bin')):
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, number)
        error = process.communicate()[1]
    assert process.returncode == status
    assert 'Traceback' not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ['gt', 'lq']


# Command line


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], 'found no --input_dir, --target_dir, --output; allowed: '),
        (['--input_dir', 'lq', '--output', 'my.pack'], 'found no --target_dir; allowed: '),
        ([*ARGUMENTS, '--output', 'my.bin'], '--output: found my.bin; allowed: a name that ends in .pack'),
        ([*ARGUMENTS, '--crop_size', '8'], 'found one of --crop_size and --stride; allowed: both or neither'),
        ([*ARGUMENTS, '--stride', '8'], 'found one of --crop_size and --stride; allowed: both or neither'),
        ([*ARGUMENTS, '--crop_size', '0', '--stride', '8'], '--crop_size: found 0; allowed: 1 or more'),
        ([*ARGUMENTS, '--crop_size', '8', '--stride', '-1'], '--stride: found -1; allowed: 1 or more'),
        ([*ARGUMENTS, '--workers', '-1'], '--workers: found -1; allowed: 0 or more'),
        ([*ARGUMENTS, '--channels', '2'], 'argument --channels: invalid choice: '),
        (['--verify', 'a.pack', '--output', 'b.pack'], '--verify: found --output beside it; allowed: '),
    ],
)
def test_wrong_arguments(here, capsys, untouched, arguments, said):
    with pytest.raises(SystemExit) as caught:
        prepare_data.main(arguments)
    assert caught.value.code == 2
    assert f'error: {said}' in capsys.readouterr().err


def test_a_template_without_a_place_for_the_name(here, capsys, untouched):
    assert refusal(capsys, *ARGUMENTS, '--filename_tmpl', 'x').startswith("filename_tmpl: found 'x'; allowed: ")


def test_help_starts_anywhere(tmp_path):
    result = subprocess.run(
        [sys.executable, SCRIPT, '--help'], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(flag in result.stdout for flag in ('--input_dir', '--crop_size', '--stride', '--verify'))
