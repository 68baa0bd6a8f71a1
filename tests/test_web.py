"""The page of `demo.py --web`, used in a browser. SCREENSHOTS=FOLDER keeps pictures of it."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from basicsr.images.reader import read_image
from basicsr.images.writer import write_png
from basicsr.inference import Restorer
from basicsr.utils.files import ROOT

pytest.importorskip('gradio')
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
    folder = tmp_path_factory.mktemp('server')
    temporary = folder / 'temporary'
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM, folder / 'addresses.txt', '--precision', 'fp32'],
        env={**os.environ, 'TMPDIR': str(temporary), 'PYTHONPATH': str(ROOT)},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.url = re.search(r'http://\S+', process.stdout.readline())[0]
    process.temporary, process.addresses = temporary, folder / 'addresses.txt'
    yield process
    process.terminate()
    assert process.wait(20) == 143
    assert not [*temporary.glob('restormer-*')]  # nothing is left
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
    write_png(tmp_path / 'my photo.png', image)
    drop(page, tmp_path / 'my photo.png')
    page.get_by_text('my photo.png: 70×45 pixels, 16 bits').wait_for()
    page.get_by_role('button', name='Restore').click()
    page.get_by_text('restored on cpu, fp32, TLC').wait_for()
    page.get_by_role('button', name='Download PNG').wait_for()
    sizes = page.locator('img:visible').evaluate_all(
        'all => all.map(each => [each.naturalWidth, each.naturalHeight])'
    )
    assert sizes.count([70, 45]) == 2  # of the slider
    with page.expect_download() as download:
        page.get_by_role('button', name='Download PNG').click()
    assert download.value.suggested_filename == 'my photo.png'
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
    assert page.get_by_role('button', name='Stop').is_hidden()


def test_restoring_stops(page):
    page.get_by_role('button', name=re.compile('Thumbnail 1')).click()
    page.get_by_text('1280×720 pixels, 8 bits').wait_for()
    page.get_by_role('button', name='Restore').click()
    page.get_by_role('button', name='Stop').click()
    page.get_by_role('button', name='Stop').wait_for(state='hidden')
    assert page.get_by_role('button', name='Restore').is_enabled()


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda path: path.write_text('not an image'), 'photo.png'),
        (
            lambda path: write_png(path, np.zeros((3000, 3000, 3), np.uint8)),
            'an image of 3000×3000 pixels needs',
        ),
    ],
    ids=['text', 'large'],
)
def test_what_cannot_be_restored_is_refused_in_a_sentence(page, tmp_path, make, says):
    make(tmp_path / 'photo.png')
    drop(page, tmp_path / 'photo.png')
    if says.startswith('an image'):
        page.get_by_text('3000×3000 pixels, 8 bits').wait_for()
        page.get_by_role('button', name='Restore').click()
    page.get_by_text(says).wait_for()
    assert page.get_by_text('Traceback').count() == 0
    page.get_by_role('button', name='Stop').wait_for(state='hidden')
    keep_screenshot(page, 'refused')


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


def test_it_listens_on_this_computer_alone(server):
    connections = psutil.Process(server.pid).net_connections(kind='inet')
    assert {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN} == {'127.0.0.1'}
