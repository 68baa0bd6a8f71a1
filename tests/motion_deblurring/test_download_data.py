"""Downloads from a file URL, and from a stand-in for gdown: what is kept, replaced and refused."""

import collections
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import zipfile
from functools import partial
from hashlib import sha256
from http.client import IncompleteRead
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import stand_in_drive
import torch
from stand_in_drive import Drive, RefusedError, files, zipped
from tqdm import tqdm

from basicsr.data import download
from basicsr.tasks import ARCHIVES, MOTION_DEBLURRING
from basicsr.utils import cli
from basicsr.utils.files import ROOT
from basicsr.utils.remote import RemoteFile

SCRIPT = ROOT / 'Motion_Deblurring' / 'download_data.py'
CONTENT = np.random.default_rng(0).bytes(300_000)
PAIRS = 3


def run(*arguments):
    return cli.run('Motion_Deblurring.download_data', ['--output', 'out', '--data', *arguments])


said = partial(stand_in_drive.said, program='download_data.py')


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['download_data.py'])
    # A signal may leave the lock of all progress bars taken, which a process forked by a later test would wait for.
    monkeypatch.setattr(tqdm, '_lock', threading.RLock(), raising=False)
    return tmp_path


# Weights

WEIGHTS = 'out/motion_deblurring.pth'


@pytest.fixture
def published(tmp_path_factory, monkeypatch):
    """The file at the URL of the published weights."""
    path = tmp_path_factory.mktemp('server') / 'motion_deblurring.pth'
    path.write_bytes(CONTENT)
    remote = RemoteFile(path.as_uri(), sha256(CONTENT).hexdigest())
    monkeypatch.setattr(download, 'published_files', lambda folder: {remote: {}})
    return path


def test_weights_are_downloaded_once(here, published, capsys):
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}
    complete = f'{here / WEIGHTS} is complete; its terms: https://github.com/swz30/Restormer\n'
    assert said(capsys) == ([], complete)
    published.unlink()
    for force in ([], ['--force']):
        assert run('weights', *force) == 0
        assert said(capsys) == ([], f'{here / WEIGHTS} exists already, and is complete\n')
    assert files(here) == {WEIGHTS: CONTENT}


FAILURES = {
    'another file': (None, 'its SHA-256 is not that of the published weights'),
    'no server': (URLError('Name or service not known'), 'Name or service not known'),
    'cut short': (IncompleteRead(b'x'), 'IncompleteRead'),
    'reset': (ConnectionResetError(104, 'Connection reset by peer'), 'Connection reset by peer'),
    'silent': (TimeoutError('timed out'), 'timed out'),
    'wordless': (TimeoutError(), 'TimeoutError'),
}


@pytest.mark.parametrize(('error', 'words'), FAILURES.values(), ids=list(FAILURES))
@pytest.mark.parametrize('before', [None, bytes(len(CONTENT))], ids=['nothing', 'another file'])
def test_a_download_that_fails_changes_nothing(here, published, capsys, monkeypatch, error, words, before):
    if before is not None:
        (here / 'out').mkdir()
        (here / WEIGHTS).write_bytes(before)
    there = files(here)
    published.write_bytes(bytes(len(CONTENT)))

    def fails(*_):
        assert socket.getdefaulttimeout() == download.TIMEOUT  # PyTorch has none
        raise error

    if error:
        monkeypatch.setattr(torch.hub, 'download_url_to_file', fails)
    assert run('weights', '--force') == 1
    (text,) = said(capsys)[0]
    assert text.startswith(f'{published.as_uri()}: the download failed: ') and words in text
    assert files(here) == there and socket.getdefaulttimeout() is None


@pytest.mark.parametrize('content', [b'', bytes(len(CONTENT))], ids=['empty', 'zeros'])
def test_another_file_is_replaced_with_force_only(here, published, capsys, content):
    (here / 'out').mkdir()
    (here / WEIGHTS).write_bytes(content)
    assert run('weights') == 1
    assert said(capsys)[0] == [
        f'{here / WEIGHTS}: its SHA-256 is not that of the published weights; move it, or replace it with --force'
    ]
    assert files(here) == {WEIGHTS: content}
    assert run('weights', '--force') == 0
    assert files(here) == {WEIGHTS: CONTENT}


def test_a_full_disk_leaves_no_part(here, published, capsys, small_files):
    with small_files(100_000):
        assert run('weights') == 1
    (error,) = said(capsys)[0]
    assert error.endswith(': the download failed: [Errno 27] File too large; nothing was kept')
    assert files(here) == {}


# Data sets


def archive_of(folders=('test/GoPro/input', 'test/GoPro/target'), names=('a.png', 'b.png', 'c.png'), extra=()):
    """The bytes of a zip archive; `extra`: more members, each (name or ZipInfo, bytes)."""
    pixel = cv2.imencode('.png', np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    members = [
        (f'{folder}/{name}', pixel + f'{folder[-1]}{name}'.encode()) for folder in folders for name in names
    ]
    return zipped([*members, *extra])


@pytest.fixture
def drive(monkeypatch):
    """Every set has PAIRS pairs."""
    drive = Drive()
    drive.install(monkeypatch)
    archives = []
    for archive in ARCHIVES['Motion_Deblurring']:
        (one,) = archive.sets
        archives.append(archive._replace(sets=(one._replace(number=PAIRS),)))
        drive.archives[archive.drive_id] = archive_of([f'{one.place}/{kind}' for kind in ('input', 'target')])
    monkeypatch.setitem(ARCHIVES, 'Motion_Deblurring', tuple(archives))
    return drive


IDS = {archive.sets[0].place: archive.drive_id for archive in ARCHIVES['Motion_Deblurring']}
GOPRO, HIDE = IDS['test/GoPro'], IDS['test/HIDE']
PLACES = ('train/GoPro', 'test/GoPro', 'test/HIDE', 'test/RealBlur_J', 'test/RealBlur_R')


def unpacked(*places):
    return {
        f'out/{place}/{kind}/{name}.png' for place in places for kind in ('input', 'target') for name in 'abc'
    }


def test_weights_and_sets_together(here, drive, published):
    assert run('weights', 'GoPro') == 0
    assert files(here).keys() == {WEIGHTS, *unpacked('test/GoPro')}


@pytest.mark.parametrize('top', ['', 'train/', 'some/where/else/', 'GoPro/', './'])
def test_the_folders_are_found_anywhere_in_the_archive(here, drive, top):
    extra = [
        ('read me.txt', b''),
        ('.', b''),
        ('__MACOSX/input/._a.png', b''),
        (f'{top}input_crops/a-1.png', b''),
        (f'{top}other/', b''),
    ]
    drive.archives[GOPRO] = archive_of([f'{top}input', f'{top}target'], extra=extra)
    assert run('GoPro') == 0
    assert files(here).keys() == unpacked('test/GoPro')
    assert files(here)['out/test/GoPro/input/a.png'].endswith(b'ta.png')


def test_crops_beside_the_frames_stay(here, drive):
    crops = here / 'out' / 'train' / 'GoPro' / 'input_crops'
    crops.mkdir(parents=True)
    (crops / 'a-1.png').write_bytes(b'crop')
    assert run('train') == 0
    assert files(here).keys() == unpacked('train/GoPro') | {'out/train/GoPro/input_crops/a-1.png'}


def test_archives_are_kept_on_demand_and_used_if_there(here, drive, capsys):
    assert run('GoPro', '--keep_archives') == 0
    assert files(here).keys() == unpacked('test/GoPro') | {'out/GoPro_test.zip'}
    said(capsys)
    assert run('GoPro') == 0  # it may have been kept on purpose
    assert said(capsys)[1].endswith(f'; {here / "out" / "GoPro_test.zip"} is not needed for it any more\n')
    assert files(here).keys() == unpacked('test/GoPro') | {'out/GoPro_test.zip'}
    shutil.rmtree(here / 'out' / 'test')
    drive.error = AssertionError('nothing has to be downloaded')
    assert run('GoPro') == 0
    assert files(here).keys() == unpacked('test/GoPro')


@pytest.mark.parametrize('module', ['none', 'old'])
def test_without_gdown_the_message_tells_how_to_install_it(here, drive, capsys, monkeypatch, module):
    if module == 'old':
        monkeypatch.setattr(drive, 'download', lambda url, output, resume: None)
    else:
        monkeypatch.setattr(download, 'gdown', None)
    assert run('test') == 2
    missing = "downloading data sets needs gdown 6.4 or later: pip install 'gdown>=6.4'\n"
    assert capsys.readouterr().err.count(missing) == 1 and files(here) == {}
    (here / 'out' / 'GoPro_test.zip').write_bytes(drive.archives[GOPRO])  # downloaded in a browser
    assert run('GoPro') == 0
    assert run('GoPro') == 0


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (
            RefusedError('page'),
            'Google Drive gives no access to the file, usually because it was downloaded too often',
        ),
        (
            RuntimeError('several\nlines'),
            'the download from Google Drive failed: RuntimeError: several lines; ',
        ),
    ],
    ids=['quota', 'other'],
)
def test_refusals_of_google_drive(here, drive, capsys, error, words):
    drive.error = error
    assert run('GoPro') == 1
    (text,) = said(capsys)[0]
    assert text.startswith(f'{here / "out" / "GoPro_test.zip"}: {words}')
    if isinstance(error, RefusedError):
        assert f'or download https://drive.google.com/uc?id={GOPRO} in a browser to this very name' in text
    assert files(here) == {}


def test_one_that_fails_does_not_keep_the_others(here, drive, capsys):
    drive.archives[HIDE] = b'<html>'
    assert run('test', '--force') == 1 and len(drive.calls) == 4  # a new archive is not downloaded again
    assert files(here).keys() == unpacked('test/GoPro', 'test/RealBlur_J', 'test/RealBlur_R')
    (error,) = said(capsys)[0]
    assert error == (
        f'{here / "out" / "HIDE_test.zip"}: Google Drive answered without a zip archive; nothing was kept'
    )


def test_two_commands_do_not_get_one_set(here, drive, capsys):
    """The other one is another process, as the lock is between processes."""
    (here / 'out').mkdir()
    lock = here / 'out' / '.GoPro_test.zip.lock'
    code = (
        f'import fcntl; f = open({str(lock)!r}, "a+b"); fcntl.lockf(f, 2); print("held", flush=True); input()'
    )
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b'held\n'
        assert run('GoPro', 'HIDE') == 1
        other.communicate(b'\n')
    errors, out = said(capsys)
    assert errors == [f'{here / "out" / "GoPro_test.zip"}: another process holds the lock']
    assert 'HIDE is complete' in out and drive.calls == [HIDE]
    assert run('GoPro') == 0  # the lock is gone with its holder
    assert not lock.exists()


def test_ctrl_c_while_gdown_works(here, drive):
    drive.error = KeyboardInterrupt()
    assert run('test') == 130
    assert len(drive.calls) == 1 and files(here) == {}


LINK = zipfile.ZipInfo('test/GoPro/input/link.png')
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('../evil.png', "found '../evil.png' in it, a path that leads out of the folder"),
        ('test/GoPro/input/../../../../evil.png', 'a path that leads out of the folder'),
        ('test\\GoPro\\input\\..\\..\\evil.png', 'a path that leads out of the folder'),
        ('C:/evil.png', 'a path that leads out of the folder'),
        ('\\evil.png', 'a path that leads out of the folder'),
        (LINK, "found 'test/GoPro/input/link.png' in it, a link"),
    ],
    ids=repr,
)
def test_an_archive_that_would_write_elsewhere_is_refused(here, drive, capsys, name, words):
    drive.archives[GOPRO] = archive_of(extra=[(name, b'evil')])
    assert run('GoPro', '--force') == 1
    (error,) = said(capsys)[0]
    assert error.startswith(f'{here / "out" / "GoPro_test.zip"}: found ') and words in error
    assert error.endswith('; nothing was unpacked')
    assert files(here).keys() == {'out/GoPro_test.zip'}
    assert len(drive.calls) == 1  # another download would be no better


OTHER_NAMES = archive_of(
    [],
    extra=[
        (f'{kind}/{name}.png', b'') for kind, names in (('input', 'abc'), ('target', 'abd')) for name in names
    ],
)


@pytest.mark.parametrize(
    ('archive', 'words'),
    [
        (
            archive_of(['a/input', 'b/target']),
            'found 3 a/input/*.png, 3 b/target/*.png; allowed: one folder with input/* and target/*; nothing was',
        ),
        (
            archive_of(['a/input', 'a/target', 'b/input', 'b/target']),
            'found 2 such folders: a, b; allowed: one folder with input/* and target/*; nothing was unpacked',
        ),
        (archive_of([]), 'found no files; allowed: '),
        (
            archive_of(names=['a.png', 'b.png']),
            'found 2 (input/*) and 2 (target/*) files; allowed: 3 of each, with the same names',
        ),
        (archive_of(extra=[('test/GoPro/input/d.png', b'')]), 'found 4 (input/*) and 3 (target/*) files; '),
        (OTHER_NAMES, 'found 3 (input/*) and 3 (target/*) files; '),
        (archive_of(['hide/input', 'hide/target']), 'found the set hide in it; allowed: GoPro'),
    ],
    ids=['apart', 'twice', 'empty', 'few', 'lonely', 'other names', 'another set'],
)
def test_an_archive_of_something_else_is_refused(here, drive, capsys, archive, words):
    drive.archives[GOPRO] = archive
    assert run('GoPro') == 1
    assert words in said(capsys)[0][0]
    assert files(here).keys() == {'out/GoPro_test.zip'}
    drive.archives[GOPRO] = archive_of()
    assert run('GoPro') == 1
    assert said(capsys)[0][0].endswith('; --force downloads it anew') and len(drive.calls) == 1
    assert run('GoPro', '--force') == 0
    assert files(here).keys() == unpacked('test/GoPro')


def damaged(kind):
    data = bytearray(archive_of())
    if kind == 'bytes':
        data[data.index(b'input/b.png') + 20] ^= 255
    else:
        for mark, place in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
            for header in re.finditer(mark, bytes(data)):
                data[header.start() + place] |= 1
    return bytes(data)


@pytest.mark.parametrize('kind', ['bytes', 'password'])
def test_a_damaged_archive(here, drive, capsys, kind):
    good, drive.archives[GOPRO] = drive.archives[GOPRO], damaged(kind)
    for _ in range(2):  # just downloaded, and there from before
        assert run('GoPro') == 1
        (error,) = said(capsys)[0]
        assert error.startswith(f'{here / "out" / "GoPro_test.zip"}: cannot be unpacked: ')
        assert error.endswith('; --force downloads it anew')
        assert files(here).keys() == {'out/GoPro_test.zip'}
        assert not (here / 'out' / 'test' / 'GoPro').exists()  # evaluate.py would take it for a set
    before, drive.error = files(here), RefusedError('too often')
    assert run('GoPro', '--force') == 1
    assert files(here) == before  # until there is another
    drive.error, drive.archives[GOPRO] = None, good
    assert run('GoPro', '--force') == 0
    assert files(here).keys() == unpacked('test/GoPro')
    assert len(drive.calls) == 3


def test_any_wrong_byte_in_an_archive_ends_in_a_sentence(here, drive, capsys):
    """Whatever the library makes of it; most single bytes are noticed, and none does harm."""
    data = archive_of(names=['a.png', 'b.png', 'c.png'])
    (here / 'out').mkdir()
    generator = np.random.default_rng(0)
    for place in generator.integers(len(data), size=60):
        broken = bytearray(data)
        broken[place] ^= int(generator.integers(1, 256))
        (here / 'out' / 'GoPro_test.zip').write_bytes(broken)
        status = run('GoPro')
        assert len(said(capsys)[0]) == status
        left = files(here).keys() - {'out/GoPro_test.zip'}
        assert left == (set() if status else unpacked('test/GoPro'))
        shutil.rmtree(here / 'out' / 'test', ignore_errors=True)


def test_a_disk_without_room_for_the_images(here, drive, capsys, monkeypatch):
    disk = collections.namedtuple('disk', ['total', 'used', 'free'])(0, 0, 100)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: disk)
    assert run('GoPro') == 1
    (error,) = said(capsys)[0]
    assert error.startswith(f'{here / "out" / "test" / "GoPro"}: cannot be written: No space left on device (')
    assert files(here).keys() == {'out/GoPro_test.zip'}


def test_a_set_that_is_there_and_wrong_is_replaced_by_force_alone(here, drive, capsys):
    (here / 'out/test/GoPro/input').mkdir(parents=True)  # an empty folder is none
    assert run('GoPro') == 0
    whole = files(here)
    (here / 'out/test/GoPro/input/b.png').unlink()
    (here / 'out/test/GoPro/target/mine.png').write_bytes(b'')
    before = files(here)
    capsys.readouterr()
    assert run('GoPro') == 1
    (error,) = said(capsys)[0]
    assert error == (
        f'{here / "out" / "test" / "GoPro"}: found 2 (input/*) and 4 (target/*) files; allowed: 3 of each, with '
        'the same names; move the existing files, or replace them with --force'
    )
    assert files(here) == before and len(drive.calls) == 1
    assert run('GoPro', '--force') == 0
    assert files(here) == whole


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_nothing_is_left_unpacked_by_a_command_that_is_ended(here, drive, monkeypatch, number, status):
    extract = zipfile.ZipFile.extract

    def extract_then_stop(file, info, path):
        done = extract(file, info, path)
        if info.filename.endswith('b.png'):
            os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(zipfile.ZipFile, 'extract', extract_then_stop)
    assert run('GoPro') == status
    assert files(here).keys() == {'out/GoPro_test.zip'}


# Table, command line


def test_the_readmes_match_the_table():
    readme = (ROOT / 'Motion_Deblurring' / 'README.md').read_text(encoding='utf-8')
    pairs = {one.place: one.number for archive in ARCHIVES['Motion_Deblurring'] for one in archive.sets}
    assert [*pairs] == [*PLACES] and len(set(IDS.values())) == 5
    assert f'| GoPro | training | {pairs["train/GoPro"]:,} |' in readme
    for name in ('GoPro', 'HIDE'):
        assert f'| {name} | test | {pairs[f"test/{name}"]:,} |' in readme
    assert pairs['test/RealBlur_J'] == pairs['test/RealBlur_R']
    assert f'| RealBlur-J, RealBlur-R | test | {pairs["test/RealBlur_R"]} each |' in readme
    for place in PLACES[1:]:
        assert f'\n  {place}/{{input,target}}\n' in readme
    assert {one.name for one in MOTION_DEBLURRING.test_sets} == {place.split('/')[1] for place in PLACES[1:]}
    weights = (ROOT / 'Motion_Deblurring' / 'pretrained_models' / 'README.md').read_text(encoding='utf-8')
    url, digest, _ = MOTION_DEBLURRING.published_weights()
    for row in (f'| URL | <{url}> |', f'| sha256 | `{digest}` |'):
        assert row in weights


@pytest.mark.parametrize(
    'arguments', [[], ['--data'], ['--data', 'Set5'], ['--data', 'test', '--outputs', 'x']]
)
def test_wrong_arguments(capsys, arguments):
    assert cli.run('Motion_Deblurring.download_data', arguments) == 2
    assert 'error: ' in capsys.readouterr().err


@pytest.mark.slow
def test_help_starts_anywhere(here):
    result = subprocess.run(
        [sys.executable, SCRIPT, '--help'], cwd=here, capture_output=True, text=True, check=True
    )
    assert all(word in result.stdout for word in ('--data', '--output', '--force', 'RealBlur_J', 'weights'))
