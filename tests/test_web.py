"""The page of `demo.py --web`, used in a browser. SCREENSHOTS=FOLDER keeps pictures of it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest

from basicsr.images.reader import read_image
from basicsr.images.writer import write_png
from basicsr.inference import Restorer
from basicsr.utils.files import ROOT

pytest.importorskip('gradio')
from basicsr.web import Pages

playwright = pytest.importorskip('playwright.sync_api')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium'),
    pytest.mark.timeout(300),
]

# Runs demo.py with 0.4 GB of memory, and writes to a file to which addresses it connects and which names it looks up.
PROGRAM = """
import sys
log = open(sys.argv.pop(1), 'w', buffering=1)
def note(event, args):
    if event == 'socket.connect' and isinstance(args[1], tuple):
        print(args[1][0], file=log)
    elif event == 'socket.getaddrinfo':
        print(args[0], file=log)
sys.addaudithook(note)
from basicsr.inference import restorer
from basicsr.utils.cli import run
restorer.free_memory = lambda device: 400_000_000
sys.exit(run('basicsr.demo', ['--web', *sys.argv[1:]]))
"""
HERE = ('127.0.0.1', 'localhost', '::1')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp('server')) as server:
        yield server


@contextmanager
def serving(folder, *arguments, **environment):
    temporary = folder / 'temporary'
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM, folder / 'addresses.txt', '--precision', 'fp32', *arguments],
        env={**os.environ, 'TMPDIR': str(temporary), 'PYTHONPATH': str(ROOT), **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=(folder / 'errors.txt').open('w'),
        text=True,
    )
    process.url = re.search(r'http://\S+', process.stdout.readline())[0]
    process.temporary, process.addresses = temporary, folder / 'addresses.txt'
    yield process
    process.terminate()
    assert process.wait(20) == 143
    assert (folder / 'errors.txt').read_text() == ''
    left = [each.name for each in temporary.iterdir() if not each.name.startswith('torchinductor')]
    assert not left
    assert set(process.addresses.read_text().split()) <= {*HERE}


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def page(server, browser, request):
    """The page in a new tab, which asks nobody but the server for anything."""
    page = browser.new_page(viewport={'width': 1280, 'height': 800})
    hosts = set()
    page.on('request', lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(server.url)
    page.get_by_role('button', name='Restore').wait_for()
    yield page
    page.close()
    assert hosts <= {'127.0.0.1', None}, hosts  # None: data and blobs


def drop(page, path):
    page.locator('input[type=file]').first.set_input_files(path)


def keep_screenshot(page, name):
    if folder := os.environ.get('SCREENSHOTS'):
        time.sleep(1)  # for pictures to fade in
        page.screenshot(path=Path(folder, f'{name}.png'))


def files_of(server):
    """Files of the server on disk, except the empty ones that gradio leaves."""
    return [path for path in server.temporary.rglob('*') if path.is_file() and path.stat().st_size]


def until(condition):
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_photograph_of_16_bits_is_restored_and_downloaded(server, page, tmp_path):
    image = np.random.default_rng(0).integers(0, 65535, (45, 70, 3), np.uint16)
    name = '._my_ photo [1](2).png'  # a name that starts with a dot, and looks like Markdown
    write_png(tmp_path / name, image)
    drop(page, tmp_path / name)
    page.get_by_text(f'{name}: 70×45 pixels, 16 bits').wait_for()
    page.get_by_role('button', name='Restore').click()
    page.get_by_text('restored on cpu, fp32, TLC').wait_for()
    page.get_by_role('button', name='Download PNG').wait_for()
    sizes = page.locator('img:visible').evaluate_all(
        'all => all.map(each => [each.naturalWidth, each.naturalHeight])'
    )
    assert sizes.count([70, 45]) == 2  # of the slider
    with page.expect_download() as download:
        page.get_by_role('button', name='Download PNG').click()
    assert download.value.suggested_filename == name.lstrip('.')  # Chromium's habit
    download.value.save_as(tmp_path / 'result.png')
    result = read_image(tmp_path / 'result.png').pixels
    assert result.dtype == np.uint16
    expected = Restorer.from_checkpoint(precision='fp32')(image)
    np.testing.assert_allclose(result.astype(int), expected.astype(int), atol=8)  # another number of threads

    assert files_of(server)
    page.close()
    assert until(lambda: not files_of(server)), files_of(server)


def test_example_is_restored_with_a_progress_bar(page):
    keep_screenshot(page, 'empty')
    page.get_by_role('button', name=re.compile('Thumbnail 2')).click()
    page.get_by_text('1280×720 pixels, 8 bits').wait_for()
    keep_screenshot(page, 'before')
    page.get_by_role('button', name='Restore').click()
    page.get_by_text(re.compile(r'Restoring - \d+')).wait_for()
    keep_screenshot(page, 'during')
    page.get_by_text('restored on').wait_for()
    keep_screenshot(page, 'after')
    page.get_by_role('button', name='Stop').wait_for(state='hidden')


def test_restoring_stops(page):
    page.get_by_role('button', name=re.compile('Thumbnail 1')).click()
    page.get_by_text('1280×720 pixels, 8 bits').wait_for()
    page.get_by_role('button', name='Restore').click()
    page.get_by_role('button', name='Stop').click()
    page.get_by_text('stopped').wait_for()
    page.get_by_role('button', name='Stop').wait_for(state='hidden')
    assert page.get_by_role('button', name='Restore').is_enabled()


def test_restoring_stops_before_its_turn(server, browser, page, tmp_path):
    page.get_by_role('button', name=re.compile('Thumbnail 1')).click()
    page.get_by_text('1280×720 pixels, 8 bits').wait_for()
    write_png(tmp_path / 'photo.png', np.zeros((40, 40), np.uint8))
    other = browser.new_page()
    other.goto(server.url)
    drop(other, tmp_path / 'photo.png')
    other.get_by_text('40×40 pixels').wait_for()
    for each in (page, other):
        each.get_by_role('button', name='Restore').click()
        each.get_by_role('button', name='Stop').wait_for()
    other.get_by_role('button', name='Stop').click()
    other.wait_for_timeout(500)
    page.get_by_role('button', name='Stop').click()
    other.get_by_text('stopped').wait_for()
    other.close()


def test_a_file_that_cannot_be_opened_replaces_the_photograph(page, tmp_path):
    write_png(tmp_path / 'photo.png', np.zeros((40, 40), np.uint8))
    (tmp_path / 'text.png').write_text('not an image')
    drop(page, tmp_path / 'photo.png')
    page.get_by_text('40×40 pixels').wait_for()
    page.get_by_role('button', name='Restore').click()
    page.get_by_role('button', name='Download PNG').wait_for()
    drop(page, tmp_path / 'text.png')
    page.get_by_text('cannot be opened').wait_for()
    assert page.get_by_role('button', name='Download PNG').is_hidden()
    assert page.locator('img:visible').evaluate_all('all => all.every(each => each.naturalWidth == 1280)')


def send(server, event, session, data=(), **more):
    """Sends an event as a browser does, with any data. Returns the answers up to the last one."""
    api = f'{server.url}gradio_api/queue'
    functions = json.load(urlopen(f'{server.url}config'))['dependencies']
    (number,) = (each['id'] for each in functions if event in [target[1] for target in each['targets']])
    body = {'fn_index': number, 'session_hash': session, 'data': list(data), 'event_data': more}
    urlopen(Request(f'{api}/join', json.dumps(body).encode(), {'content-type': 'application/json'}))
    return urlopen(f'{api}/data?session_hash={session}').read().decode()


def test_names_of_sessions_are_not_paths(server, tmp_path):
    (tmp_path / 'file').touch()
    for session in (str(tmp_path), os.path.relpath(tmp_path, next(server.temporary.glob('restormer-*/pages')))):
        assert 'pixels' in send(server, 'select', session, index=0, value={})
        send(server, 'unload', session)
    assert [*tmp_path.iterdir()] == [tmp_path / 'file']


def test_only_uploads_are_taken(server, page, tmp_path):
    write_png(tmp_path / 'photo.png', np.zeros((40, 40), np.uint8))
    drop(page, tmp_path / 'photo.png')
    page.get_by_text('40×40 pixels').wait_for()
    opened, upload = sorted(server.temporary.rglob('photo.png'))
    data = [{'path': str(path), 'meta': {'_type': 'gradio.FileData'}} for path in (opened, upload)]
    assert 'photo.png: is not an upload' in send(server, 'upload', 'other', data[:1])
    assert opened.exists()
    assert '40×40 pixels' in send(server, 'upload', 'other', data[1:])
    page.reload()  # the same photograph in two pages: one deletes its files, the other keeps them
    assert until(lambda: not opened.exists())
    assert [path.parent.parent.parent.name for path in server.temporary.rglob('photo.png')] == ['pages']
    send(server, 'unload', 'other')
    assert until(lambda: not files_of(server)), files_of(server)


def test_an_upload_that_is_broken_off_is_deleted_later(server):
    head = 'POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n'
    head += 'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n'
    head += 'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    with socket.create_connection(('127.0.0.1', urlsplit(server.url).port)) as connection:
        connection.sendall(head.encode() + bytes(3_000_000))
        assert until(lambda: [*server.temporary.glob('restormer-*/uploads/tmp*')])
    time.sleep(0.5)
    part = max(server.temporary.glob('restormer-*/uploads/tmp*'), key=lambda path: path.stat().st_size)
    pages = Pages(part.parent.parent, None, {})
    pages.sweep()
    assert part.stat().st_size > 1_000_000
    os.utime(part, (time.time() - 700,) * 2)
    pages.sweep()
    assert not part.exists()


def test_it_serves_at_an_ipv6_address_without_proxy_or_public_link(tmp_path):
    wrong = 'http://127.0.0.1:9'
    with serving(
        tmp_path, '--host', '::1', HTTP_PROXY=wrong, http_proxy=wrong, NO_PROXY='', GRADIO_SHARE='true'
    ) as server:
        assert server.url.startswith('http://[::1]:')
        assert b'Restormer' in urlopen(server.url).read()


def test_a_file_that_is_no_image_is_refused_in_a_sentence(page, tmp_path):
    (tmp_path / 'photo.png').write_text('not an image')
    drop(page, tmp_path / 'photo.png')
    assert_refused(page, 'photo.png')


def test_an_image_that_does_not_fit_into_memory_is_refused_in_a_sentence(page, tmp_path):
    write_png(tmp_path / 'photo.png', np.zeros((3000, 3000, 3), np.uint8))
    drop(page, tmp_path / 'photo.png')
    page.get_by_text('3000×3000 pixels, 8 bits').wait_for()
    page.get_by_role('button', name='Restore').click()
    assert_refused(page, 'an image of 3000×3000 pixels needs')
    keep_screenshot(page, 'refused')


def assert_refused(page, says):
    page.get_by_text(says).wait_for()
    assert page.get_by_text('Traceback').count() == 0
    page.get_by_role('button', name='Stop').wait_for(state='hidden')


def test_settings_are_used_and_wrong_ones_are_refused(page, tmp_path):
    write_png(tmp_path / 'photo.png', np.zeros((40, 40), np.uint8))
    drop(page, tmp_path / 'photo.png')
    page.get_by_text('40×40 pixels').wait_for()
    page.get_by_text('Advanced').click()
    page.get_by_label('off', exact=True).check()
    page.get_by_role('button', name='Restore').click()
    page.get_by_text(re.compile('restored on cpu, fp32$')).wait_for()
    page.get_by_label('Precision').click()
    page.get_by_role('option', name='fp16').click()
    page.get_by_role('button', name='Restore').click()
    page.get_by_text('precision: found').wait_for()


def test_without_a_photograph_it_asks_for_one(page):
    page.get_by_role('button', name='Restore').click()
    page.get_by_text('choose a photograph first').wait_for()


def test_it_answers_to_its_own_name_alone(server):
    with pytest.raises(HTTPError, match='400'):
        urlopen(Request(server.url, headers={'host': f'evil.example:{urlsplit(server.url).port}'}))


def test_it_listens_on_this_computer_alone(server):
    connections = psutil.Process(server.pid).net_connections(kind='inet')
    assert {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN} == {'127.0.0.1'}
