import importlib.util
import io
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from basicsr.archs.restormer_arch import Restormer
from basicsr.images.reader import read_image
from basicsr.images.writer import write_png
from basicsr.inference import Restorer, restorer
from basicsr.inference.strip_engine import StripEngine
from basicsr.tasks import TASKS
from basicsr.utils import parallel
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.files import ROOT

RNG = np.random.default_rng(0)


def _load():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = _load()


OPTIONS = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Of a network whose result is exactly its input, as nothing but the residual is left."""
    torch.manual_seed(0)
    net = Restormer(**OPTIONS)
    nn.init.zeros_(net.output.weight)
    path = tmp_path_factory.mktemp('weights') / 'identity.pth'
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **OPTIONS}, 1)
    return path


@pytest.fixture
def run(weights, tmp_path):
    def run(*arguments, source=tmp_path / 'in', results=tmp_path / 'out'):
        given = [
            '--input_dir',
            str(source),
            '--result_dir',
            str(results),
            '--weights',
            str(weights),
            '--device',
            'cpu',
        ]
        return demo.main([*given, *arguments])

    (tmp_path / 'in').mkdir()
    return run


@pytest.fixture(params=[False, True], ids=['in turn', 'threads'])
def threads(request, monkeypatch):
    """As on a GPU: of the device 'meta' it is only said that it does the work."""
    staged = parallel.in_stages
    if request.param:
        monkeypatch.setattr(parallel, 'in_stages', lambda *given: staged(*given[:-1], torch.device('meta')))


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def pictures(folder):
    """Twenty-one good images of every kind, and what each must come out as."""
    expected = {}

    def png(name, pixels, icc_profile=None):
        write_png(folder / name, pixels, icc_profile)
        expected[name] = pixels

    png('1x1.png', noise(1, 1, 3))
    png('7x5.png', noise(7, 5, 3))
    png('8x16.png', noise(8, 16, 3))
    png('grey.png', noise(9, 17))
    png('grey16.png', noise(9, 17, dtype=np.uint16))
    png('alpha.png', noise(12, 10, 4))
    png('alpha16.png', noise(12, 10, 4, dtype=np.uint16))
    png('rgb16.png', noise(6, 10, 3, dtype=np.uint16))
    png('Grüße 图.png', noise(6, 10, 3))
    for orientation in range(1, 9):
        pixels = noise(6, 11, 3)
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        PIL.Image.fromarray(pixels).save(folder / f'exif{orientation}.webp', lossless=True, exif=exif)
        with PIL.Image.open(folder / f'exif{orientation}.webp') as image:
            expected[f'exif{orientation}.png'] = np.asarray(PIL.ImageOps.exif_transpose(image))
    for name in ('same.jpg', 'same.png', 'SAME.bmp'):
        PIL.Image.fromarray(noise(8, 8, 3)).save(folder / name)
        expected[f'{name}.png'] = read_image(folder / name).pixels
    tiff = noise(6, 10, 3, dtype=np.uint16)
    (folder / 'deep.TIF').write_bytes(cv2.imencode('.tif', tiff)[1].tobytes())
    expected['deep.png'] = tiff[..., ::-1]
    return expected


@pytest.mark.usefixtures('threads')
def test_a_folder_of_everything(run, tmp_path, capfd):
    source = tmp_path / 'in'
    expected = pictures(source)
    (source / 'empty.png').touch()
    (source / 'text.png').write_text('not an image')
    PIL.Image.fromarray(noise(64, 64, 3)).save(source / 'cut.jpg')
    (source / 'cut.jpg').write_bytes((source / 'cut.jpg').read_bytes()[:2000])
    (source / 'notes.txt').write_text('not meant')
    (source / 'folder').mkdir()

    assert run() == 1
    found = {path.name: read_image(path).pixels for path in (tmp_path / 'out' / 'motion_deblurring').iterdir()}
    assert found.keys() == expected.keys()
    for name, pixels in expected.items():
        assert found[name].dtype == pixels.dtype, name
        np.testing.assert_array_equal(found[name], pixels, err_msg=name)

    out, err = capfd.readouterr()
    assert 'identity.pth (params)' in out and 'device: cpu' in out
    assert f'21 of 24 images restored, in {tmp_path / "out" / "motion_deblurring"}' in out
    others, *refused = err.splitlines()
    assert others == f'left alone in {source}: 1 .txt file, 1 folder'
    assert sorted(line.split(': ')[1].split(' ')[0] for line in refused) == [
        str(source / name) for name in ('cut.jpg', 'empty.png', 'text.png')
    ]


def test_one_file_again_and_side_by_side(run, tmp_path, capsys):
    pixels = noise(6, 9, 4, dtype=np.uint16)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    old = tmp_path / 'out' / 'motion_deblurring' / 'a.png'
    old.parent.mkdir(parents=True)
    old.write_bytes(b'an old result')
    for _ in range(2):
        assert run('--compare', '--task', 'Motion_Deblurring', source=tmp_path / 'in' / 'a.png') == 0
    np.testing.assert_array_equal(read_image(old).pixels, pixels)
    both = read_image(old.parent / 'compare' / 'a.png').pixels
    np.testing.assert_array_equal(both, np.concatenate([pixels, pixels], axis=1))
    assert '1 of 1 images restored' in capsys.readouterr().out


def test_profiles_are_kept(run, tmp_path):
    profile = bytes(16) + b'RGB ' + bytes(108)
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3), profile)
    assert run() == 0
    assert read_image(tmp_path / 'out' / 'motion_deblurring' / 'a.png').icc_profile == profile


# Windows, tiles, memory


@pytest.fixture
def lively(tmp_path):
    """A network that does something, and the file of its weights."""
    torch.manual_seed(1)
    net = Restormer(**OPTIONS)
    path = tmp_path / 'lively.pth'
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **OPTIONS}, 1)
    return net, path


def test_the_weights_of_the_repository_are_used_with_tlc(run, tmp_path, capsys):
    shipped = TASKS['motion_deblurring'].shipped_file
    pixels = noise(24, 400, 3)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    found = []
    for arguments, tlc in (([], True), (['--no-tlc'], False)):
        assert run('--weights', str(shipped), '--precision', 'fp32', *arguments) == 0
        assert ('fp32, TLC' in capsys.readouterr().out) == tlc
        found.append(read_image(tmp_path / 'out' / 'motion_deblurring' / 'a.png').pixels)
        expected = Restorer.from_checkpoint(shipped, 'cpu', 'fp32', tlc=tlc)(pixels)
        np.testing.assert_array_equal(found[-1], expected)
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize(
    ('arguments', 'options'),
    [
        ([], {}),
        (['--tlc'], {'tlc': 384}),
        (['--tlc', '--no-tlc'], {}),
        (['--tlc', '64'], {'tlc': 64}),
        (['--tile', '64', '--tile_overlap', '16'], {'tile': 64, 'tile_overlap': 16}),
        (['--tile', '104'], {'tile': 104, 'tile_overlap': 32}),
        (['--tile', '64', '--tile_overlap', '0', '--tlc', '32'], {'tile': 64, 'tile_overlap': 0, 'tlc': 32}),
    ],
    ids=str,
)
def test_windows_and_tiles(run, lively, tmp_path, arguments, options):
    net, path = lively
    pixels = noise(70, 400, 3, dtype=np.uint16)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    assert run('--weights', str(path), '--precision', 'fp32', *arguments) == 0
    found = read_image(tmp_path / 'out' / 'motion_deblurring' / 'a.png').pixels
    np.testing.assert_array_equal(found, Restorer(net, 'cpu', 'fp32', **options)(pixels))
    if options:
        assert (found != Restorer(net, 'cpu', 'fp32')(pixels)).any()


@pytest.mark.parametrize(
    'arguments', [[], ['--tlc', '8'], ['--tile', '16', '--tile_overlap', '5']], ids=' '.join
)
def test_what_does_nothing_does_nothing_in_parts(run, tmp_path, arguments):
    pixels = noise(21, 40, 4)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    assert run(*arguments) == 0
    np.testing.assert_array_equal(read_image(tmp_path / 'out' / 'motion_deblurring' / 'a.png').pixels, pixels)


@pytest.mark.usefixtures('threads')
def test_an_image_too_large_for_the_memory_is_named_and_the_others_are_done(run, tmp_path, capsys, monkeypatch):
    source, small = tmp_path / 'in', noise(8, 16, 3)
    for name, pixels in (('a.png', small), ('large.png', noise(160, 160, 3)), ('z.png', small)):
        write_png(source / name, pixels)
    tiles = 28 * 160 * 160  # what tiles need at full size
    enough_for_small = StripEngine(Restormer(**OPTIONS), strip_bytes=1).memory(64, 64) + tiles
    monkeypatch.setattr(restorer, 'free_memory', lambda device: enough_for_small)
    assert run('--precision', 'fp32') == 1
    folder = tmp_path / 'out' / 'motion_deblurring'
    assert sorted(path.name for path in folder.iterdir()) == ['a.png', 'z.png']
    np.testing.assert_array_equal(read_image(folder / 'z.png').pixels, small)
    out, err = capsys.readouterr()
    assert '2 of 3 images restored' in out
    (line,) = err.splitlines()
    assert line.startswith(f'not restored: {source / "large.png"}: an image of 160×160 pixels needs 0.')
    assert 'GB of memory on cpu' in line and 'GB are free; ' in line

    assert run('--precision', 'fp32', '--tile', '32', '--tile_overlap', '8') == 0  # as the sentence says
    assert '3 of 3 images restored' in capsys.readouterr().out


def test_what_is_no_image_is_said(run, tmp_path, capsys):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    (tmp_path / 'in' / 'photo.HEIC').touch()
    (tmp_path / 'in' / 'more').mkdir()
    assert run() == 0
    out, err = capsys.readouterr()
    assert '1 of 1 images restored' in out
    said = f'left alone in {tmp_path / "in"}: 1 .heic file, 1 folder\n'
    assert err == said
    assert run(results=tmp_path / 'in' / 'results') == 0
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures('threads')
def test_a_result_without_its_comparison_is_said(run, tmp_path, capsys):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    (tmp_path / 'out' / 'motion_deblurring' / 'compare' / 'a.png').mkdir(parents=True)
    assert run('--compare') == 1
    out, err = capsys.readouterr()
    assert '1 of 1 images restored' in out
    assert err.startswith('not compared: ') and 'compare/a.png cannot be written' in err


def test_a_folder_without_the_right_to_write_is_known_before_any_work(run, tmp_path, capsys, monkeypatch):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    monkeypatch.setattr(os, 'access', lambda *_: False)
    with pytest.raises(SystemExit) as refusal:
        run()
    assert refusal.value.code == 2
    assert f'--result_dir {tmp_path / "out"}: nothing may be written there' in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show(run, tmp_path, monkeypatch):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    shown = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(shown, 'utf-8', errors='strict'))
    assert run(results=tmp_path / os.fsdecode(b'\xff')) == 0
    sys.stdout.flush()
    assert rb'1 of 1 images restored, in ' in shown.getvalue() and rb'\udcff' in shown.getvalue()


@pytest.mark.usefixtures('threads')
def test_sigterm_ends_it_as_ctrl_c_does(run, tmp_path, monkeypatch):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    monkeypatch.setattr(Restorer, '__call__', lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 143


# Inputs are never overwritten


@pytest.mark.usefixtures('threads')
def test_the_folder_of_results_as_input(run, tmp_path, capsys):
    folder = tmp_path / 'out' / 'motion_deblurring'
    folder.mkdir(parents=True)
    write_png(folder / 'a.png', noise(8, 8, 3))
    PIL.Image.fromarray(noise(8, 8, 3)).save(folder / 'b.bmp')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(source=folder) == 1
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.items() <= after.items()
    assert after.keys() == {'a.png', 'b.bmp', 'b.png'}
    assert 'would overwrite the input' in capsys.readouterr().err


@pytest.mark.parametrize('link', ['symlink', 'hard link', 'folder'])
def test_a_result_that_is_an_input_by_another_name(run, tmp_path, capsys, link):
    source, folder = tmp_path / 'in', tmp_path / 'out' / 'motion_deblurring'
    write_png(source / 'a.png', noise(8, 8, 3))
    write_png(source / 'b.png', noise(8, 8, 3))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    if link == 'folder':
        folder.parent.mkdir()
        folder.symlink_to(source)
    else:
        folder.mkdir(parents=True)
        if link == 'symlink':
            (folder / 'a.png').symlink_to(source / 'b.png')  # of another image of this run, too
        else:
            os.link(source / 'b.png', folder / 'a.png')
    assert run() == 1
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    out, err = capsys.readouterr()
    assert 'would overwrite the input' in err
    assert f'{0 if link == "folder" else 1} of 2 images restored' in out


def test_compare_does_not_overwrite_either(run, tmp_path):
    folder = tmp_path / 'out' / 'motion_deblurring' / 'compare'
    folder.mkdir(parents=True)
    write_png(folder / 'a.png', noise(8, 8, 3))
    before = (folder / 'a.png').read_bytes()
    assert run('--compare', source=folder) == 1
    assert (folder / 'a.png').read_bytes() == before


# Wrong arguments


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--task', 'derain'], "task: found 'derain'; allowed: motion_deblurring"),
        (['--device', 'gpu'], "device: found 'gpu'; allowed: auto, cpu"),
        (['--device', 'cuda:99'], 'device: found cuda:99'),
        (['--precision', 'int8'], "precision: found 'int8'; allowed: auto, fp32, bf16, fp16"),
        (['--precision', 'fp16'], 'precision: found fp16 on a CPU'),
        (['--weights', '{tmp}/none.pth'], 'none.pth: there is no such weights file'),
        (['--weights', '{tmp}/in/a.png'], 'a.png is not a PyTorch checkpoint'),
        (['--input_dir', '{tmp}/none'], 'none: there is no such file or folder'),
        (['--input_dir', '{tmp}/empty'], 'empty has no images in it'),
        (['--result_dir', '{tmp}/in/a.png'], 'cannot be made: '),
        (['--tiles'], 'unrecognized arguments: --tiles'),
        (['--tlc', '7'], 'tlc: found 7; allowed: a window of a positive multiple of 8'),
        (['--tlc', '0'], 'tlc: found 0; allowed: a window of a positive multiple of 8'),
        (['--tlc', 'wide'], "argument --tlc: invalid int value: 'wide'"),
        (['--tile', '12'], 'tile: found 12; allowed: a positive multiple of 8'),
        (['--tile', '0'], 'tile: found 0; allowed: a positive multiple of 8'),
        (
            ['--tile', '64', '--tile_overlap', '64'],
            'tile_overlap: found 64; allowed: 0 to 63, less than the tile',
        ),
        (['--tile', '64', '--tile_overlap', '-1'], 'tile_overlap: found -1; allowed: 0 to 63'),
    ],
    ids=' '.join,
)
def test_a_wrong_argument_is_one_sentence_and_status_2(run, tmp_path, capsys, arguments, says):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SystemExit) as caught:
        run(*(argument.replace('{tmp}', str(tmp_path)) for argument in arguments))
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert 'error: ' in last and says in last
    assert (tmp_path / 'in' / 'a.png').exists()


def test_every_option_has_help(capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(['--help'])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in (
        '--task',
        '--input_dir',
        '--result_dir',
        '--weights',
        '--device',
        '--precision',
        '--tlc',
        '--tile',
        '--tile_overlap',
        '--compare',
    ):
        assert option in text
    assert all(len(action.help) > 30 or action.dest == 'help' for action in demo.parser()._actions)


# As a program


def test_from_another_working_directory_with_relative_paths(weights, tmp_path):
    pixels = noise(5, 6, 3)
    (tmp_path / 'photos').mkdir()
    write_png(tmp_path / 'photos' / 'a.png', pixels)
    command = [
        sys.executable,
        ROOT / 'demo.py',
        '--input_dir',
        'photos',
        '--result_dir',
        'sharp',
        '--device',
        'cpu',
    ]
    done = subprocess.run(
        [*command, '--weights', weights], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, '')
    np.testing.assert_array_equal(read_image(tmp_path / 'sharp/motion_deblurring/a.png').pixels, pixels)


@pytest.mark.skipif(os.name != 'posix', reason='signals are POSIX')
@pytest.mark.parametrize('device', ['cpu', 'meta'])  # for the latter threads read and write
def test_ctrl_c_is_quiet(weights, tmp_path, device):
    for n in range(500):
        write_png(tmp_path / f'{n}.png', noise(64, 64, 3))
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import demo, torch
from basicsr.utils import parallel
staged = parallel.in_stages
parallel.in_stages = lambda *given: staged(*given[:-1], torch.device({device!r}))
sys.exit(demo.main())
"""
    command = [sys.executable, '-c', code, '--input_dir', tmp_path, '--result_dir', tmp_path / 'out']
    with subprocess.Popen(
        [*command, '--weights', weights, '--device', 'cpu'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while not list(tmp_path.glob('out/*/*.png')):
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        finally:
            process.kill()
    assert (process.returncode, err) == (130, '')
    assert all(read_image(path) for path in tmp_path.glob('out/*/*'))  # whole files only
