"""Downloads from a server in this process, and from a stand-in for gdown: what is kept, gone on with, refused."""

import collections
import hashlib
import http.server
import importlib.machinery
import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import types
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from basicsr.tasks import TASKS
from basicsr.utils import download
from basicsr.utils.download import RemoteFile
from basicsr.utils.files import ROOT

SCRIPT = ROOT / 'Motion_Deblurring' / 'download_data.py'
_spec = importlib.util.spec_from_file_location('download_data', SCRIPT)
download_data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(download_data)

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAIRS = 3


def run(*arguments):
    return download_data.main(['--output', 'out', '--data', *arguments])


def said(capsys):
    """The sentences on standard error, without progress bars, and what is on standard output."""
    out, error = capsys.readouterr()
    assert 'Traceback' not in error
    start = 'download_data.py: '
    lines = re.split(r'[\r\n]+', error)
    return [line.removeprefix(start) for line in lines if line.startswith(start)], out


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The working directory; no proxy of this machine is between us and ourselves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(sys, 'argv', ['download_data.py'])
    return tmp_path


# A server


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT, as well or badly as its attributes say."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content = CONTENT
        self.ranges = True  # whether Range is understood
        self.shift = 0  # by which it is misunderstood
        self.kind = None  # the Content-Type
        self.length = True  # whether the answer has a Content-Length
        self.cut = None  # bytes after which the connection is closed
        self.status = None  # for every request
        self.moved = False  # whether one is sent elsewhere first
        self.when_cut = lambda: None
        self.requests = []

    def handle_error(self, *_):
        """A client has hung up."""

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}/v1.0/motion_deblurring.pth'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get('Range'))
        if server.moved and self.path != '/elsewhere':
            self.send_response(302)
            self.send_header('Location', '/elsewhere')
            self.end_headers()
            return
        if server.status:
            self.send_error(server.status)
            return
        start, size = 0, len(server.content)
        if self.headers['Range'] and server.ranges:
            start = int(re.fullmatch(r'bytes=(\d+)-', self.headers['Range'])[1]) + server.shift
            if start >= size:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{size - 1}/{size}')
        else:
            self.send_response(200)
        if server.kind:
            self.send_header('Content-Type', server.kind)
        if server.length:
            self.send_header('Content-Length', str(size - start))
        self.end_headers()
        self.wfile.write(server.content[start : start + server.cut if server.cut else None])
        if server.cut:
            self.wfile.flush()
            server.when_cut()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        monkeypatch.setattr(download_data, 'WEIGHTS', RemoteFile(server.url, len(CONTENT), SHA256))
        yield server
        server.shutdown()
        thread.join()


WEIGHTS = 'out/motion_deblurring.pth'
PART = f'{WEIGHTS}.part'


# Weights


def test_the_whole_file(here, server, capsys):
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}
    errors, out = said(capsys)
    assert errors == []
    assert out == f'{here / WEIGHTS} is there, and whole; its licence allows non-commercial use only\n'


def test_a_server_that_sends_one_elsewhere(here, server):
    server.moved = True
    (here / 'out').mkdir()
    (here / PART).write_bytes(CONTENT[:1000])
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}
    assert server.requests == ['bytes=1000-'] * 2


def test_a_connection_that_is_cut_is_gone_on_with(here, server, capsys):
    server.cut = 100_000
    assert run('weights') == 1
    assert files(here) == {PART: CONTENT[:100_000]}
    errors, out = said(capsys)
    assert out == '' and errors == [
        f'{server.url}: the connection was lost after 100,000 of 300,000 bytes (it was closed); the same command '
        'goes on from there'
    ]
    server.cut = 50_000
    assert run('weights') == 1
    assert files(here) == {PART: CONTENT[:150_000]}
    server.cut = None
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}
    assert server.requests == [None, 'bytes=100000-', 'bytes=150000-']


def test_a_server_that_does_not_know_ranges_starts_anew(here, server):
    server.cut = 100_000
    assert run('weights') == 1
    server.cut, server.ranges = None, False
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}
    assert server.requests == [None, 'bytes=100000-']


def test_a_server_that_does_not_say_how_much_comes(here, server, capsys):
    server.length = False
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}
    (here / WEIGHTS).unlink()
    server.content = CONTENT + b'!'
    assert run('weights') == 1
    assert said(capsys)[0] == [f'{server.url}: found a file of more than 300,000 bytes; allowed: 300,000']
    server.content = CONTENT[:-1]
    assert run('weights') == 1
    assert 'the connection was lost after 299,999 of 300,000 bytes' in said(capsys)[0][0]
    assert files(here) == {PART: CONTENT[:-1]}


def test_a_server_that_begins_elsewhere_is_refused(here, server, capsys):
    server.cut = 100_000
    run('weights')
    server.cut, server.shift = None, 1
    assert run('weights') == 1
    assert 'found bytes from 100001 on in the answer; allowed: from 100000 on' in said(capsys)[0][-1]
    assert files(here) == {PART: CONTENT[:100_000]}


@pytest.mark.parametrize('content', [CONTENT[:-1], CONTENT + b'!', b''], ids=['short', 'long', 'empty'])
@pytest.mark.parametrize('begun', [0, 100_000])
def test_a_file_of_another_size_is_refused_before_it_comes(here, server, capsys, content, begun):
    (here / 'out').mkdir()
    before = {PART: CONTENT[:begun]} if begun else {}
    for name, data in before.items():
        (here / name).write_bytes(data)
    server.content = content
    assert run('weights') == 1
    assert said(capsys)[0] == [f'{server.url}: found a file of {len(content):,} bytes; allowed: 300,000']
    assert files(here) == before


@pytest.mark.parametrize('begun', [0, 100_000, 300_000, 300_001])
def test_a_file_of_another_checksum_is_not_kept(here, server, capsys, begun):
    """Also where it was wrong from before."""
    (here / 'out').mkdir()
    (here / PART).write_bytes(bytes(begun))
    if not begun:
        server.content = bytes(len(CONTENT))
    assert run('weights') == 1
    (error,) = said(capsys)[0]
    assert re.fullmatch(
        rf'{server.url}: found a file with the sha256 [0-9a-f]{{64}}; allowed: {SHA256}; nothing of it was kept',
        error,
    )
    assert files(here) == {}
    server.content = CONTENT
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}


def test_a_part_that_is_whole_needs_no_server(here, server):
    (here / 'out').mkdir()
    (here / PART).write_bytes(CONTENT)
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT} and server.requests == []


@pytest.mark.parametrize('status', [403, 404, 500, 503])
def test_a_status_of_http(here, server, capsys, status):
    server.status = status
    assert run('weights') == 1
    (error,) = said(capsys)[0]
    assert error.startswith(f'{server.url}: the server answers with HTTP status {status} (')
    assert files(here) == {}


def test_a_server_that_is_not_there(here, server, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{free.getsockname()[1]}/a.pth'
    monkeypatch.setattr(download_data, 'WEIGHTS', RemoteFile(url, len(CONTENT), SHA256))
    assert run('weights') == 1
    assert said(capsys)[0] == [f'{url}: cannot be reached: Connection refused']
    assert files(here) == {}


def test_a_machine_that_is_offline(here, server, capsys, monkeypatch):
    def no_name(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', no_name)
    assert run('weights') == 1
    (error,) = said(capsys)[0]
    assert error == (
        f'{server.url}: cannot be reached: its name is not found, maybe because this machine is offline (Name or '
        'service not known)'
    )


def test_a_server_that_falls_silent(here, server, capsys, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 2)
    go_on = threading.Event()
    server.cut, server.when_cut = 100_000, go_on.wait
    try:
        while PART not in files(here):  # a machine that is busy is silent before it answers, too
            assert run('weights') == 1
            assert 'no answer in 2 seconds' in said(capsys)[0][0]
    finally:
        go_on.set()
    ((name, data),) = files(here).items()
    assert name == PART and data == CONTENT[: len(data)] and len(data) > 30_000


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_part_alone_is_left_by_a_command_that_is_ended(here, server, number, status):
    never = threading.Event()

    def stop():
        while not (here / PART).stat().st_size:
            time.sleep(0.001)
        os.kill(os.getpid(), number)
        never.wait(5)

    server.cut, server.when_cut = 131_072, stop
    try:
        assert run('weights') == status
    except SystemExit as ended:
        assert ended.code == status == 143
    finally:
        never.set()
    assert files(here) == {PART: CONTENT[: len(files(here)[PART])]}
    server.cut = None
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}


def test_what_is_there_and_right_is_kept(here, server, capsys):
    (here / 'out').mkdir()
    (here / WEIGHTS).write_bytes(CONTENT)
    for force in ([], ['--force']):
        assert run('weights', *force) == 0
        assert said(capsys) == ([], f'{here / WEIGHTS} is there already, and whole\n')
    assert server.requests == [] and files(here) == {WEIGHTS: CONTENT}


@pytest.mark.parametrize('content', [b'', CONTENT[:-1], bytes(len(CONTENT))], ids=['empty', 'short', 'zeros'])
def test_what_is_there_and_wrong_is_replaced_by_force_alone(here, server, capsys, content):
    (here / 'out').mkdir()
    (here / WEIGHTS).write_bytes(content)
    assert run('weights') == 1
    (error,) = said(capsys)[0]
    assert error == (
        f'{here / WEIGHTS}: found another file than the published weights, by its size or checksum; allowed: these, '
        'or none; --force replaces it'
    )
    assert server.requests == [] and files(here) == {WEIGHTS: content}
    server.cut = 1000
    assert run('weights', '--force') == 1
    assert files(here) == {WEIGHTS: content, PART: CONTENT[:1000]}
    server.cut = None
    assert run('weights', '--force') == 0
    assert files(here) == {WEIGHTS: CONTENT}


def test_a_full_disk(here, server, capsys, small_files):
    with small_files(100_000):
        assert run('weights') == 1
    assert said(capsys)[0] == [f'{here / WEIGHTS}: cannot be written: File too large']
    assert files(here).keys() == {PART}
    assert run('weights') == 0
    assert files(here) == {WEIGHTS: CONTENT}


def test_a_disk_without_room_is_noticed_before(here, server, capsys, monkeypatch):
    disk = collections.namedtuple('disk', ['total', 'used', 'free'])(0, 0, 299_999)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: disk)
    assert run('weights') == 1
    (error,) = said(capsys)[0]
    assert error.startswith(f'{here / WEIGHTS}: cannot be written: No space left on device (0 MB are needed')
    assert files(here) == {}


def test_two_commands_at_once_do_not_mix(here, server, capsys):
    """The second is another process, as the lock is between processes."""
    seconds = []

    def second():
        code = (
            'import sys; from pathlib import Path; from basicsr.utils.download import *\n'
            f'fetch(RemoteFile({server.url!r}, {len(CONTENT)}, {SHA256!r}), Path({str(here / WEIGHTS)!r}))'
        )
        seconds.append(subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True))

    server.cut, server.when_cut = 100_000, second
    assert run('weights') == 1
    assert f'DownloadError: {here / PART}: another process is writing to it' in seconds[0].stderr
    assert files(here) == {PART: CONTENT[:100_000]}
    assert len(server.requests) == 1


def test_a_web_page_does_not_replace_what_is_there(here, server, capsys):
    """As a portal sends it, without a length."""
    (here / 'out').mkdir()
    (here / PART).write_bytes(CONTENT[:1000])
    server.ranges = server.length = False
    server.content, server.kind = b'<html>Please log in</html>', 'text/html; charset=utf-8'
    assert run('weights') == 1
    assert said(capsys)[0] == [f'{server.url}: found a web page in the answer; allowed: the file']
    assert files(here) == {PART: CONTENT[:1000]}


# Data sets


def archive_of(folders=('test/GoPro/input', 'test/GoPro/target'), names=('a.png', 'b.png', 'c.png'), extra=()):
    """The bytes of a zip archive; `extra`: more members, each (name or ZipInfo, bytes)."""
    pixel = cv2.imencode('.png', np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as file:
        for folder in folders:
            for name in names:
                file.writestr(f'{folder}/{name}', pixel + f'{folder[-1]}{name}'.encode())
        for name, data in extra:
            file.writestr(name, data)
    return buffer.getvalue()


class Drive(types.ModuleType):
    """Stands in for gdown: `archives` by id, and what goes wrong."""

    def __init__(self):
        super().__init__('gdown')
        self.__spec__ = importlib.machinery.ModuleSpec('gdown', None)
        self.exceptions = types.ModuleType('gdown.exceptions')
        self.exceptions.FileURLRetrievalError = type('FileURLRetrievalError', (Exception,), {})
        self.archives = {}
        self.error = None
        self.calls = []

    def download(self, url, output, resume, timeout=None):
        file_id = re.fullmatch(r'https://drive\.google\.com/uc\?id=([\w-]{33})', url)[1]
        assert resume and timeout == download.TIMEOUT and output.endswith('.zip.part')
        self.calls.append(file_id)
        if self.error:
            raise self.error
        with Path(output).open('wb') as file:
            file.write(self.archives[file_id])
        return output


@pytest.fixture
def drive(monkeypatch):
    """Every set has PAIRS pairs."""
    drive = Drive()
    monkeypatch.setitem(sys.modules, 'gdown', drive)
    monkeypatch.setitem(sys.modules, 'gdown.exceptions', drive.exceptions)
    for group in (download_data.TRAIN, download_data.TEST):
        for name, one in group.items():
            monkeypatch.setitem(group, name, one._replace(pairs=PAIRS))
            folders = [f'{one.place}/{kind}' for kind in ('input', 'target')]
            drive.archives[one.drive_id] = archive_of(folders)
    return drive


GOPRO = download_data.TEST['GoPro'].drive_id
PLACES = ('train/GoPro', 'test/GoPro', 'test/HIDE', 'test/RealBlur_J', 'test/RealBlur_R')


def unpacked(*places):
    return {
        f'out/{place}/{kind}/{name}.png' for place in places for kind in ('input', 'target') for name in 'abc'
    }


@pytest.mark.parametrize(
    ('arguments', 'places'),
    [
        (['train'], PLACES[:1]),
        (['test'], PLACES[1:]),
        (['HIDE', 'test', 'train'], PLACES),
        (['GoPro', 'RealBlur_R', 'GoPro'], ['test/GoPro', 'test/RealBlur_R']),
        (['RealBlur_J'], ['test/RealBlur_J']),
    ],
)
def test_sets_are_unpacked_where_they_belong(here, drive, capsys, arguments, places):
    assert run(*arguments) == 0
    assert files(here).keys() == unpacked(*places)
    errors, out = said(capsys)
    assert errors == []
    assert out.splitlines() == [f'{here / "out" / place} is there: 3 pairs' for place in places]
    calls = list(drive.calls)
    assert len(calls) == len(places)
    before = files(here)
    assert run(*arguments) == 0  # and what is there is kept
    assert said(capsys)[1].splitlines() == [
        f'{here / "out" / place} is there already: 3 pairs' for place in places
    ]
    assert drive.calls == calls and files(here) == before


def test_weights_and_sets_together(here, drive, server):
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


@pytest.mark.parametrize(
    'module', ['gdown', 'gdown.exceptions', 'without a timeout']
)  # the last two: old releases
def test_without_gdown_a_sentence_says_how_to_get_it(here, drive, capsys, monkeypatch, module):
    if module == 'without a timeout':
        monkeypatch.setattr(drive, 'download', lambda url, output, resume: None)
    else:
        monkeypatch.setitem(sys.modules, module, None)
    if module == 'gdown.exceptions':
        monkeypatch.delattr(drive, 'exceptions')
        monkeypatch.setattr(drive, '__path__', [], raising=False)
    with pytest.raises(SystemExit) as caught:
        run('test')
    assert caught.value.code == 2
    assert (
        "gdown is needed, which is not installed, or too old: pip install 'gdown>=6.4'\n"
        in capsys.readouterr().err
    )
    assert files(here) == {}
    (here / 'out').mkdir()
    archive = here / 'out' / 'GoPro_test.zip'
    archive.write_bytes(damaged('bytes'))  # of a browser
    assert run('GoPro', '--force') == 1
    (error,) = said(capsys)[0]
    assert '; to download it anew, the package gdown is needed, which is not installed' in error
    assert archive.read_bytes() == damaged('bytes')
    archive.write_bytes(drive.archives[GOPRO])
    assert run('GoPro') == 0
    assert run('GoPro') == 0


class Answer:
    status_code = 503


def network_error(response):
    error = type('ConnectionError', (OSError,), {})('long\nreport')
    error.response = response
    return error


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (
            'too often',
            'Google Drive gives no access to the file, as a rule because it was downloaded too often today; ',
        ),
        (
            network_error(None),
            'Google Drive cannot be reached, or the connection was lost (ConnectionError); the ',
        ),
        (network_error(Answer), 'Google Drive answers with HTTP status 503; '),
        (OSError(28, 'No space left on device'), 'cannot be written: No space left on device'),
        (
            RuntimeError('several\nlines'),
            'the download from Google Drive failed: several lines; the same command ',
        ),
    ],
    ids=['quota', 'offline', 'status', 'disk', 'other'],
)
def test_what_google_drive_and_gdown_refuse(here, drive, capsys, error, words):
    drive.error = drive.exceptions.FileURLRetrievalError('page') if error == 'too often' else error
    assert run('GoPro') == 1
    (text,) = said(capsys)[0]
    assert text.startswith(f'{here / "out" / "GoPro_test.zip"}: {words}')
    if error == 'too often':
        assert f'or download https://drive.google.com/uc?id={GOPRO} in a browser to this very name' in text
    assert files(here) == {}


def test_one_that_fails_does_not_keep_the_others(here, drive, capsys):
    drive.archives[download_data.TEST['HIDE'].drive_id] = b'<html>'
    assert run('test') == 1
    assert files(here).keys() == unpacked('test/GoPro', 'test/RealBlur_J', 'test/RealBlur_R')
    (error,) = said(capsys)[0]
    assert error == (
        f'{here / "out" / "HIDE_test.zip"}: found no zip archive in what came from Google Drive; nothing of it was kept'
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
    assert errors == [f'{here / "out" / "GoPro_test.zip"}: another process is at work on it']
    assert 'HIDE is there' in out and drive.calls == [download_data.TEST['HIDE'].drive_id]
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
        ('../evil.png', "found '../evil.png' in it, which leads out of the folder"),
        ('test/GoPro/input/../../../../evil.png', 'which leads out of the folder'),
        ('/tmp/evil.png', 'which leads out of the folder'),
        ('test\\GoPro\\input\\..\\..\\evil.png', 'which leads out of the folder'),
        ('C:/evil.png', 'which leads out of the folder'),
        ('C:evil.png', 'which leads out of the folder'),
        ('\\evil.png', 'which leads out of the folder'),
        ('../', 'which leads out of the folder'),
        (LINK, "found the link 'test/GoPro/input/link.png' in it"),
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


@pytest.mark.parametrize(
    ('archive', 'words'),
    [
        (archive_of(['a/input', 'b/target']), 'found no place (but a, b) with folders input and target in it'),
        (
            archive_of(['a/input', 'a/target', 'b/input', 'b/target']),
            'found 2 places with folders input and target',
        ),
        (archive_of([]), 'found no place (but nothing) with folders'),
        (archive_of(names=['a.png', 'b.png']), 'found 2 pairs; allowed: 3'),
        (
            archive_of(extra=[('test/GoPro/input/d.png', b'')]),
            'found 1 image without a partner of the same name: d',
        ),
        (archive_of(names=['a.txt']), 'found 0 pairs; allowed: 3'),
        (archive_of(['hide/input', 'hide/target']), 'found the set hide in it; allowed: GoPro'),
    ],
    ids=['apart', 'twice', 'empty', 'few', 'lonely', 'no images', 'another set'],
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
    elif kind == 'middle':
        data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    elif kind == 'password':
        for mark, place in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
            start = -1
            while (start := data.find(mark, start + 1)) >= 0:
                data[start + place] |= 1
    elif kind == 'method':
        start = -1
        while (start := data.find(b'PK\1\2', start + 1)) >= 0:
            data[start + 10] = 77
    elif kind == 'twice':
        with pytest.warns(UserWarning, match='Duplicate name'):
            data = archive_of(extra=[('test/GoPro/input/a.png', b'')])
    return bytes(data)


@pytest.mark.parametrize('kind', ['bytes', 'middle', 'password', 'method', 'twice'])
def test_a_damaged_archive(here, drive, capsys, kind):
    good, drive.archives[GOPRO] = drive.archives[GOPRO], damaged(kind)
    for _ in range(2):  # just downloaded, and there from before
        assert run('GoPro') == 1
        (error,) = said(capsys)[0]
        assert error.startswith(f'{here / "out" / "GoPro_test.zip"}: cannot be unpacked: ')
        assert error.endswith('; --force downloads it anew')
        assert files(here).keys() == {'out/GoPro_test.zip'}
        assert not (here / 'out' / 'test' / 'GoPro').exists()  # evaluate.py would take it for a set
    assert len(drive.calls) == 1
    before, drive.error = files(here), drive.exceptions.FileURLRetrievalError('too often')
    assert run('GoPro', '--force') == 1
    assert files(here) == before  # until there is another
    drive.error, drive.calls[1:] = None, []
    drive.archives[GOPRO] = good
    assert run('GoPro', '--force') == 0
    assert files(here).keys() == unpacked('test/GoPro')
    assert len(drive.calls) == 2


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


def test_an_archive_that_is_no_file(here, drive, capsys):
    (here / 'out' / 'GoPro_test.zip').mkdir(parents=True)
    assert run('GoPro', 'HIDE') == 1
    assert len(said(capsys)[0]) == 1
    assert files(here).keys() == unpacked('test/HIDE')


def test_a_set_that_is_there_and_wrong_is_replaced_by_force_alone(here, drive, capsys):
    run('GoPro')
    whole = files(here)
    (here / 'out/test/GoPro/input/b.png').unlink()
    (here / 'out/test/GoPro/target/mine.png').write_bytes(b'')
    before = files(here)
    capsys.readouterr()
    assert run('GoPro') == 1
    (error,) = said(capsys)[0]
    assert error == (
        f'{here / "out" / "test" / "GoPro"}: found input and target with other files than the 3 pairs; allowed: these, '
        'or nothing; --force replaces them'
    )
    assert files(here) == before and len(drive.calls) == 1
    assert run('GoPro', '--force') == 0
    assert files(here) == whole


def test_a_command_that_was_killed_while_it_unpacked_goes_on(here, drive, capsys):
    place = here / 'out' / 'test' / 'GoPro'
    run('GoPro', '--keep_archives')
    whole = files(here)
    # between the two folders
    shutil.rmtree(place / 'target')
    assert run('GoPro', '--keep_archives') == 0
    assert files(here) == whole
    # in the middle of the first
    (place / 'input').rename(place / '.0123456789abcdef.tmp')
    shutil.rmtree(place / 'target')
    assert run('GoPro', '--keep_archives') == 0
    assert files(here) == whole and len(drive.calls) == 1
    # one folder alone, and not of this archive
    shutil.rmtree(place / 'input')
    (place / 'target' / 'a.png').write_bytes(b'mine')
    before = files(here)
    capsys.readouterr()
    assert run('GoPro') == 1
    assert '--force replaces them' in said(capsys)[0][0]
    assert files(here) == before
    assert run('GoPro', '--keep_archives', '--force') == 0
    assert files(here) == whole


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_nothing_is_left_unpacked_by_a_command_that_is_ended(here, drive, monkeypatch, number, status):
    from basicsr.utils import archive

    write = archive._write

    def write_then_stop(file, info, path):
        write(file, info, path)
        if path.name == 'b.png':
            os.kill(os.getpid(), number)

    monkeypatch.setattr(archive, '_write', write_then_stop)
    try:
        assert run('GoPro') == status
    except SystemExit as ended:
        assert ended.code == status == 143
    assert files(here).keys() == {'out/GoPro_test.zip'}


# Facts, documentation, command line


def test_the_facts():
    task = TASKS['motion_deblurring']
    assert download_data.WEIGHTS.name == task.published
    assert ROOT / task.folder / 'pretrained_models' == download_data.PRETRAINED
    assert ROOT / task.folder / 'Datasets' == download_data.DATASETS
    assert re.fullmatch('[0-9a-f]{64}', download_data.WEIGHTS.sha256)
    sets = {**download_data.TRAIN, **download_data.TEST}
    assert [one.place for one in sets.values()] == [*PLACES]
    assert len({one.drive_id for one in sets.values()}) == len({one.archive for one in sets.values()}) == 5


def test_the_readmes_say_the_same():
    readme = (ROOT / 'Motion_Deblurring' / 'README.md').read_text(encoding='utf-8')
    sets = download_data.TEST
    assert f'| GoPro | training | {download_data.TRAIN["train"].pairs:,} |' in readme
    for name in ('GoPro', 'HIDE'):
        assert f'| {name} | test | {sets[name].pairs:,} |' in readme
    assert sets['RealBlur_J'].pairs == sets['RealBlur_R'].pairs
    assert f'| RealBlur-J, RealBlur-R | test | {sets["RealBlur_R"].pairs} each |' in readme
    for name in sets:
        assert f'\n  test/{name}/{{input,target}}\n' in readme
    weights = (ROOT / 'Motion_Deblurring' / 'pretrained_models' / 'README.md').read_text(encoding='utf-8')
    for row in (
        f'| URL | <{download_data.WEIGHTS.url}> |',
        f'| size | {download_data.WEIGHTS.size:,} bytes |',
        f'| sha256 | `{download_data.WEIGHTS.sha256}` |',
    ):
        assert row in weights


def test_every_command_in_the_documentation_is_one():
    found = 0
    for path in [
        *ROOT.glob('*.md'),
        *ROOT.glob('docs/*.md'),
        *ROOT.glob('Motion_Deblurring/**/README.md'),
        SCRIPT,
    ]:
        for line in path.read_text(encoding='utf-8').splitlines():
            command = line.strip().removeprefix('python ')
            if command != line.strip() and command.startswith('Motion_Deblurring/download_data.py'):
                download_data.parser().parse_args(shlex.split(command, comments=True)[1:])
                found += 1
    assert found >= 7


@pytest.mark.parametrize(
    'arguments', [[], ['--data'], ['--data', 'Set5'], ['--data', 'test', '--outputs', 'x']]
)
def test_wrong_arguments(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        download_data.main(arguments)
    assert caught.value.code == 2
    assert 'error: ' in capsys.readouterr().err


def test_help_starts_anywhere(here):
    result = subprocess.run(
        [sys.executable, SCRIPT, '--help'], cwd=here, capture_output=True, text=True, check=True
    )
    assert all(word in result.stdout for word in ('--data', '--output', '--force', 'RealBlur_J', 'weights'))
