"""scripts/prepare_data.py: what a pack holds, by an independent reader; and that there is a complete pack or none."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import pytest
import torch

from basicsr.data.gaussian_denoising_dataset import Dataset_GaussianDenoising
from basicsr.data.named_images import NamedImages
from basicsr.data.packed_image_dataset import Dataset_PackedImage
from basicsr.data.sampler import SampleKey
from basicsr.utils import cli
from basicsr.utils.errors import DataError
from basicsr.utils.files import ROOT
from scripts import prepare_data

SCRIPT = ROOT / 'scripts' / 'prepare_data.py'
RNG = np.random.default_rng(0)
ARGUMENTS = ['--input_dir', 'lq', '--target_dir', 'gt', '--output', 'my.pack', '--workers', '0']
NAMES = ['2', '7', '8', '9', '10', '11', '12']


def image(height=9, width=13, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype)


def write(path, rgb):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, rgb[..., ::-1])[1].tobytes())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a few pairs: '2', with 16 bits, and 7 to 12."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        for kind in ('lq', 'gt'):
            write(tmp_path / kind / f'{name}.png', image(dtype=np.uint16 if name == '2' else np.uint8))
    return tmp_path


def run(*arguments):
    return cli.run('scripts.prepare_data', [*ARGUMENTS, *arguments])


def refusal(capsys, *arguments, status=1):
    """The error message of a command that fails."""
    capsys.readouterr()
    assert cli.run('scripts.prepare_data', list(arguments) or ARGUMENTS) == status
    out, error = capsys.readouterr()
    assert out == '' and 'Traceback' not in error
    return error.splitlines()[-1].partition(': ')[2]


def verify(capsys):
    return refusal(capsys, '--verify', 'my.pack')


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def read_index(folder):
    return json.loads((folder / 'my.pack' / 'index.json').read_text())


def stored(pack, image, channels):
    """The pixels of an image, read by the description of the format alone."""
    data = (pack / 'pixels.bin').read_bytes()[image['offset'] :]
    kind = {'uint8': 'u1', 'uint16': '<u2'}[image['dtype']]
    shape = image['height'], image['width'], channels
    return np.frombuffer(data, kind, count=int(np.prod(shape))).reshape(shape)


# --- content of a pack --------------------------------------------------------------------------------------


@pytest.mark.parametrize('channels', [1, 3])
def test_every_pixel_is_where_the_index_says(here, channels):
    for path in (here / 'lq').iterdir():
        path.rename(path.with_stem(f'{path.stem}_blur'))
    assert run('--channels', str(channels), '--filename_tmpl', '{}_blur') == 0
    assert listing(here / 'my.pack') == ['index.json', 'pixels.bin']
    index = read_index(here)
    assert [index[name] for name in ('format', 'channels', 'crop_size', 'stride')] == [1, channels, None, None]
    assert [pair['name'] for pair in index['pairs']] == NAMES
    end = 0
    for pair in index['pairs']:
        for kind, suffix in (('lq', '_blur'), ('gt', '')):  # in this order
            assert end <= pair[kind]['offset'] < end + 2
            pixels = stored(here / 'my.pack', pair[kind], channels)
            end = pair[kind]['offset'] + pixels.nbytes
            assert pair[kind]['crc32'] == zlib.crc32(pixels.tobytes())
            file = cv2.imread(f'{kind}/{pair["name"]}{suffix}.png', cv2.IMREAD_UNCHANGED)
            expected = file[..., ::-1] if channels == 3 else cv2.cvtColor(file, cv2.COLOR_BGR2GRAY)[..., None]
            np.testing.assert_array_equal(pixels, expected)
            assert pixels.dtype.itemsize == (2 if pair['name'] == '2' else 1)
    assert index['size'] == end == (here / 'my.pack' / 'pixels.bin').stat().st_size


def test_clean_images_are_packed_once_and_get_noise(here, capsys):
    assert run('--bits', '8') == 0
    size = (here / 'my.pack' / 'pixels.bin').stat().st_size
    assert cli.run('scripts.prepare_data', ['--target_dir', 'gt', '--output', 'gt.pack', '--bits', '8']) == 0
    assert (here / 'gt.pack' / 'pixels.bin').stat().st_size <= size / 2
    capsys.readouterr()
    assert cli.run('scripts.prepare_data', ['--verify', 'gt.pack']) == 0
    settings = {'sigma_type': 'random', 'sigma_range': [0, 50], 'sigma_test': 25}
    assert capsys.readouterr().out.startswith(f'gt.pack is undamaged: {len(NAMES)} images, ')
    packed = Dataset_GaussianDenoising(str(here / 'gt.pack'), **settings)
    for name, (index, pair) in zip(NAMES, enumerate(packed), strict=True):
        file = cv2.imread(f'gt/{name}.png', cv2.IMREAD_UNCHANGED)[..., ::-1]
        np.testing.assert_array_equal(pair['gt'].permute(1, 2, 0), file >> 8 if name == '2' else file)
        if index:
            files = Dataset_GaussianDenoising(str(here / 'gt'), **settings)
            for key in (index, SampleKey(index, 5, 16, 0)):
                assert all(torch.equal(packed[key][kind], files[key][kind]) for kind in ('lq', 'gt'))
    with pytest.raises(DataError, match=r'gt\.pack: found clean images alone; allowed: a pack of pairs'):
        Dataset_PackedImage(str(here / 'gt.pack'))
    with pytest.raises(DataError, match=r'in_ch: found 1; allowed: 3, as in .*gt\.pack'):
        Dataset_GaussianDenoising(str(here / 'gt.pack'), in_ch=1)


def test_bits_8_keeps_the_high_byte(here):
    assert run('--bits', '8') == 0
    for pair in Dataset_PackedImage(str(here / 'my.pack')):
        for kind in ('lq', 'gt'):
            file = cv2.imread(f'{kind}/{pair["name"]}.png', cv2.IMREAD_UNCHANGED)[..., ::-1]
            high = file // 256 if pair['name'] == '2' else file
            np.testing.assert_array_equal(pair[kind].permute(1, 2, 0), high)


def test_frames_of_720p_are_stored_once_and_trained_on_in_the_papers_crops(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    columns, rows = np.meshgrid(np.arange(1280), np.arange(720))
    frame = np.stack([columns // 256 * 8 + rows // 256, columns % 256, rows % 256], axis=2).astype(np.uint8)
    for kind in ('lq', 'gt'):
        write(tmp_path / kind / 'GOPR0372_07_00-000047.png', frame)
    assert run('--crop_size', '512', '--stride', '256', '--output', 'new/folder/my.pack') == 0
    assert capsys.readouterr().out == '1 pairs, 8 training crops, 0.00553 GB, in new/folder/my.pack\n'
    pack = tmp_path / 'new' / 'folder' / 'my.pack'
    assert (pack / 'pixels.bin').stat().st_size == 2 * 720 * 1280 * 3
    corners = [(row, column) for row in (0, 208) for column in (0, 256, 512, 768)]
    for number, (pair, (row, column)) in enumerate(
        zip(Dataset_PackedImage(str(pack)), corners, strict=True), 1
    ):
        assert pair['name'] == f'GOPR0372_07_00-000047-{number}'
        expected = frame[row : row + 512, column : column + 512].transpose(2, 0, 1)
        np.testing.assert_array_equal(pair['gt'].numpy(), expected)


def test_any_number_of_workers_makes_the_same_pack(here, capsys):
    assert run() == run('--output', 'other.pack', '--workers', '2') == 0
    assert contents(here / 'my.pack') == contents(here / 'other.pack')
    assert '7/7' in capsys.readouterr().err


def test_only_a_few_images_are_decoded_ahead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(30):
        for kind in ('lq', 'gt'):
            write(tmp_path / kind / f'{number}.png', image(2, 2))
    decoded, written, ahead = multiprocessing.Value('i'), [], []
    read, write_pair = NamedImages.read, prepare_data.write_pair

    def counted(*pair):
        with decoded.get_lock():
            decoded.value += 1
        return read(*pair)

    def slow(*pair):
        time.sleep(0.02)
        ahead.append(decoded.value - len(written))
        written.append(pair)
        return write_pair(*pair)

    monkeypatch.setattr(NamedImages, 'read', counted)
    monkeypatch.setattr(prepare_data, 'write_pair', slow)
    assert run('--workers', '1') == 0
    assert len(written) == 30 and 1 < max(ahead) <= 4


# --- verification -------------------------------------------------------------------------------------------


def test_verify_names_every_damaged_pair(here, capsys):
    run('--crop_size', '8', '--stride', '4')
    capsys.readouterr()
    assert cli.run('scripts.prepare_data', ['--verify', 'my.pack']) == 0
    assert capsys.readouterr().out == 'my.pack is undamaged: 7 pairs, 42 training crops, 5.63e-06 GB\n'

    pixels = here / 'my.pack' / 'pixels.bin'
    index = read_index(here)
    data = bytearray(pixels.read_bytes())
    data[0] ^= 1  # the first byte, two in one pair, and the last one
    data[index['pairs'][3]['lq']['offset'] + 5] ^= 128
    data[index['pairs'][3]['gt']['offset'] + 7] ^= 4
    data[-1] ^= 1
    pixels.write_bytes(data)
    assert cli.run('scripts.prepare_data', ['--verify', 'my.pack']) == 1
    out, error = capsys.readouterr()
    *damaged, last = [line for line in error.splitlines() if line.strip() and 'verifying' not in line]
    expected = (('2', 'lq'), ('9', 'lq, gt'), ('12', 'gt'))
    assert damaged == [f'my.pack:{name}: is damaged: {kinds}' for name, kinds in expected]
    assert last.endswith(': my.pack: 3 of 7 pairs are damaged') and out == ''


def test_verify_refuses_what_cannot_be_opened(here, capsys):
    run()
    pixels, index = (here / 'my.pack' / name for name in ('pixels.bin', 'index.json'))
    pixels.write_bytes(pixels.read_bytes()[:-1])
    assert verify(capsys).startswith(f'{pixels}: found 5626 bytes; allowed: 5627')
    index.write_bytes(index.read_bytes().replace(b'uint8', b'uint9', 1))
    assert verify(capsys).startswith(f'{index}: is damaged')
    assert refusal(capsys, '--verify', 'no.pack').startswith(f'{here / "no.pack"}: cannot be read as a pack')


# --- a complete pack or none --------------------------------------------------------------------------------


@pytest.fixture
def untouched(here):
    """Fails if the test adds, changes or removes a file."""
    before = contents(here), sorted(here.iterdir())
    yield
    assert (contents(here), sorted(here.iterdir())) == before


def test_existing_output_is_refused(here, capsys):
    (here / 'my.pack').mkdir()
    (here / 'file.pack').write_bytes(b'precious')
    (here / 'link.pack').symlink_to('nowhere')
    before = contents(here), sorted(here.iterdir())
    for name in ('my.pack', 'file.pack', 'link.pack'):
        said = refusal(capsys, *ARGUMENTS, '--output', name, status=2)
        assert said == f'--output: {name} exists; allowed: a new name'
    assert (contents(here), sorted(here.iterdir())) == before


@pytest.mark.parametrize('workers', ['0', '1'])
class TestNothingIsLeftBehindBy:
    def test_wrong_images(self, here, capsys, workers):
        lq, gt = here / 'lq' / '12.png', here / 'gt' / '12.png'
        for spoil, said in (
            (lambda: write(gt, image(8, 13)), f'{gt}: found 13x8; allowed: the size of its partner {lq}, 13x9'),
            (lambda: lq.write_bytes(b'no image'), f'{lq}: '),
            (gt.unlink, f'1 image has no partner of the same name: {lq}'),
        ):
            spoil()
            assert refusal(capsys, *ARGUMENTS, '--workers', workers).startswith(said)
            assert listing(here) == ['gt', 'lq']

    def test_several_wrong_images_which_are_all_named(self, here, capsys, workers):
        (here / 'lq' / '7.png').write_bytes(b'GIF89a')
        (here / 'gt' / '7.png').write_bytes(b'')
        (here / 'gt' / '9.png').write_bytes((here / 'gt' / '9.png').read_bytes()[:-9])
        write(here / 'gt' / '12.png', image(8, 13))
        assert run('--workers', workers) == 1
        out, error = capsys.readouterr()
        problems = error.splitlines()[-3:]
        assert problems[0].startswith(f'{here}/lq/7.png: is a GIF image')
        assert problems[0].endswith(f'; {here}/gt/7.png: is empty')
        assert problems[1].startswith(f'{here}/gt/9.png: is damaged')
        assert problems[2].startswith(f'{here}/gt/12.png: found 13x8')
        assert out == '' and error.splitlines()[-4].endswith('these images cannot be used:')
        assert listing(here) == ['gt', 'lq']

    def test_a_full_disk(self, here, capsys, workers, untouched, small_files):
        with small_files(4000):
            said = refusal(capsys, *ARGUMENTS, '--workers', workers)
        assert said == 'my.pack: cannot be written: File too large'

    @pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal(self, monkeypatch, workers, number, status, untouched):
        write_pair = prepare_data.write_pair

        def write_then_stop(file, name, images):
            if name == '9':
                os.kill(os.getpid(), number)
            return write_pair(file, name, images)

        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(prepare_data, 'write_pair', write_then_stop)
        assert run('--workers', workers) == status
        assert signal.getsignal(signal.SIGTERM) is before


def test_dead_worker_leaves_nothing_behind(monkeypatch, capsys, untouched):
    main = os.getpid()

    def die(dataset, index):
        assert os.getpid() != main
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(NamedImages, 'read', die)
    assert refusal(capsys, *ARGUMENTS, '--workers', '1').startswith('DataLoader worker (pid')


def test_wrong_folders_leave_nothing_behind(here, capsys):
    (here / 'none').mkdir()
    assert refusal(capsys, *ARGUMENTS, '--input_dir', 'none').startswith(f'{here / "none"}: ')
    assert refusal(capsys, *ARGUMENTS, '--input_dir', 'nowhere').startswith(f'{here / "nowhere"}: ')
    assert refusal(capsys, *ARGUMENTS, '--input_dir', 'none', '--output', 'new/folder/my.pack')
    said = refusal(capsys, *ARGUMENTS, '--output', 'lq/9.png/my.pack')
    assert said.startswith('lq/9.png/my.pack: cannot be written: ')
    assert refusal(capsys, *ARGUMENTS, '--filename_tmpl', 'x').startswith("filename_tmpl: found 'x'; allowed: ")
    assert listing(here) == ['gt', 'lq', 'none']


def test_next_command_removes_what_a_killed_one_left(here):
    left = here / '.my.pack.tmp'
    left.mkdir()
    (left / 'pixels.bin').write_bytes(b'half of it')
    (here / '.my.pack.lock').touch()
    assert run() == 0
    assert listing(here) == ['gt', 'lq', 'my.pack']


def test_two_commands_do_not_make_one_pack(here, capsys):
    (here / '.my.pack.lock').touch()
    code = 'import fcntl, sys; f = open(".my.pack.lock", "a+b"); fcntl.lockf(f, 2); print("held", flush=True); input()'
    with subprocess.Popen(
        [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=here
    ) as other:
        assert other.stdout.readline() == b'held\n'
        assert refusal(capsys, *ARGUMENTS).startswith('my.pack: another process')
        other.communicate(b'\n')
    assert listing(here) == ['.my.pack.lock', 'gt', 'lq']


def test_program_that_is_interrupted_with_its_workers_leaves_nothing_behind(tmp_path):
    """Ctrl-C in a terminal reaches all processes at once."""
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
        os.killpg(process.pid, signal.SIGINT)
        error = process.communicate()[1]
    assert process.returncode == 130
    assert 'Traceback' not in error
    assert listing(tmp_path) == ['gt', 'lq']


# --- command line -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], '--target_dir and --output are required, or --verify'),
        (['--input_dir', 'lq', '--output', 'my.pack'], '--target_dir and --output are required'),
        ([*ARGUMENTS, '--output', 'my.bin'], '--output: found my.bin; allowed: a name that ends in .pack'),
        ([*ARGUMENTS, '--crop_size', '8'], 'found one of --crop_size and --stride; allowed: both or neither'),
        ([*ARGUMENTS, '--stride', '8'], 'found one of --crop_size and --stride; allowed: both or neither'),
        ([*ARGUMENTS, '--crop_size', '0', '--stride', '8'], '--crop_size: found 0; allowed: 1 or more'),
        ([*ARGUMENTS, '--crop_size', '8', '--stride', '0'], '--stride: found 0; allowed: 1 or more'),
        ([*ARGUMENTS, '--workers', '-1'], '--workers: found -1; allowed: 0 or more'),
        ([*ARGUMENTS, '--channels', '2'], 'argument --channels: invalid choice: '),
        (['--verify', 'a.pack', '--output', 'b.pack'], '--verify: found --output beside it; allowed: '),
    ],
)
def test_wrong_arguments(capsys, untouched, arguments, said):
    assert cli.run('scripts.prepare_data', arguments) == 2
    assert said in capsys.readouterr().err
