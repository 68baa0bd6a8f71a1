import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from basicsr import demo, tasks
from basicsr.archs.restormer_arch import Restormer
from basicsr.images.reader import read_image
from basicsr.images.writer import write_png
from basicsr.inference import Restorer, restorer
from basicsr.inference.strip_engine import StripEngine
from basicsr.tasks import TASKS
from basicsr.utils import cli
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.files import ROOT
from basicsr.utils.parallel import in_stages
from basicsr.utils.remote import RemoteFile

RNG = np.random.default_rng(0)
OPTIONS = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 1, 2, 2]}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A network that returns its input, as only the residual connection is left."""
    torch.manual_seed(0)
    net = Restormer(**OPTIONS)
    nn.init.zeros_(net.output.weight)
    path = tmp_path_factory.mktemp('weights') / 'identity.pth'
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **OPTIONS}, 1)
    return path


@pytest.fixture
def run(weights, tmp_path):
    def run(*arguments, source=tmp_path / 'in', results=tmp_path / 'out'):
        given = {'--input_dir': source, '--result_dir': results, '--weights': weights, '--device': 'cpu'}
        return cli.run('basicsr.demo', [*(str(word) for pair in given.items() for word in pair), *arguments])

    (tmp_path / 'in').mkdir()
    return run


@pytest.fixture(params=[False, True], ids=['in turn', 'threads'])
def threads(request, monkeypatch):
    """With threads as on a GPU, for which the device 'meta' stands in."""
    if request.param:
        monkeypatch.setattr(demo, 'in_stages', lambda *given: in_stages(*given[:-1], torch.device('meta')))


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def result(tmp_path, name='a.png'):
    return read_image(tmp_path / 'out' / 'motion_deblurring' / name).pixels


@pytest.mark.usefixtures('threads')
def test_a_folder_with_images_of_every_kind(run, tmp_path, capfd):
    source = tmp_path / 'in'
    expected = {
        '1x1.png': noise(1, 1, 3),
        '8x16.png': noise(8, 16, 3),
        'grey.png': noise(9, 17),
        'grey16.png': noise(9, 17, dtype=np.uint16),
        'grey alpha16.png': noise(9, 17, 2, dtype=np.uint16),
        'alpha.png': noise(12, 10, 4),
        'rgb16.png': noise(6, 10, 3, dtype=np.uint16),
        'Grüße 图.png': noise(6, 10, 3),
    }
    for name, pixels in expected.items():
        write_png(source / name, pixels)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = noise(6, 11, 3)
    PIL.Image.fromarray(turned).save(source / 'turned.webp', lossless=True, exif=exif)
    expected['turned.png'] = np.rot90(turned, -1)
    for name in ('same.jpg', 'same.png', 'SAME.bmp'):
        PIL.Image.fromarray(noise(8, 8, 3)).save(source / name)
        expected[f'{name}.png'] = read_image(source / name).pixels
    (source / 'empty.png').touch()
    (source / 'text.png').write_text('not an image')
    PIL.Image.fromarray(noise(64, 64, 3)).save(source / 'cut.jpg')
    (source / 'cut.jpg').write_bytes((source / 'cut.jpg').read_bytes()[:2000])
    (source / 'notes.txt').write_text('left alone')
    (source / 'folder').mkdir()

    assert run() == 1
    found = {path.name: read_image(path).pixels for path in (tmp_path / 'out' / 'motion_deblurring').iterdir()}
    assert found.keys() == expected.keys()
    for name, pixels in expected.items():
        assert found[name].dtype == pixels.dtype, name
        np.testing.assert_array_equal(found[name], pixels, err_msg=name)

    out, err = capfd.readouterr()
    assert 'identity.pth (params)' in out and 'device: cpu' in out
    assert f'12 of 15 images restored, in {tmp_path / "out" / "motion_deblurring"}' in out
    others, *refused = err.splitlines()
    assert others == f'left alone in {source}: 1 .txt file, 1 folder'
    assert sorted(line.split(': ')[:2] for line in refused) == [
        ['not restored', str(source / name)] for name in ('cut.jpg', 'empty.png', 'text.png')
    ]
    assert run(results=source / 'results') == 1
    assert capfd.readouterr().err.startswith(f'left alone in {source}: 1 .txt file, 1 folder\n')


def test_one_file_is_restored_again_and_compared(run, tmp_path, capsys):
    pixels = noise(6, 9, 4, dtype=np.uint16)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    old = tmp_path / 'out' / 'motion_deblurring' / 'a.png'
    old.parent.mkdir(parents=True)
    old.write_bytes(b'an old result')
    for _ in range(2):
        assert run('--compare', '--task', 'Motion_Deblurring', source=tmp_path / 'in' / 'a.png') == 0
    np.testing.assert_array_equal(result(tmp_path), pixels)
    both = result(tmp_path, 'compare/a.png')
    np.testing.assert_array_equal(both, np.concatenate([pixels, pixels], axis=1))
    assert '1 of 1 images restored' in capsys.readouterr().out


def test_profiles_and_colour_chunks_are_kept(run, tmp_path):
    profile = bytes(16) + b'RGB ' + bytes(108)
    gamma = b'\0\0\0\4gAMA\0\1\x86\xa0\x31\xe8\x96\x5f'
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3), profile, gamma)
    assert run('--compare') == 0
    for name in ('a.png', 'compare/a.png'):
        image = read_image(tmp_path / 'out' / 'motion_deblurring' / name)
        assert (image.icc_profile, image.colour_chunks) == (profile, gamma)


# Windows, tiles, memory


def test_the_weights_of_the_repository_are_used_with_tlc(run, tmp_path, capsys):
    shipped = TASKS['motion_deblurring'].shipped_file
    pixels = noise(24, 400, 3)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    found = []
    for arguments, tlc in (([], True), (['--no-tlc'], False)):
        assert run('--weights', str(shipped), '--precision', 'fp32', *arguments) == 0
        assert ('fp32, TLC' in capsys.readouterr().out) == tlc
        found.append(result(tmp_path))
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
def test_windows_and_tiles(run, tmp_path, arguments, options):
    torch.manual_seed(1)
    net, path = Restormer(**OPTIONS), tmp_path / 'net.pth'
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **OPTIONS}, 1)
    pixels = noise(70, 400, 3, dtype=np.uint16)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    assert run('--weights', str(path), '--precision', 'fp32', *arguments) == 0
    found = result(tmp_path)
    np.testing.assert_array_equal(found, Restorer(net, 'cpu', 'fp32', **options)(pixels))
    if options:
        assert (found != Restorer(net, 'cpu', 'fp32')(pixels)).any()


def test_param_key_chooses_the_weights_and_the_choice_is_printed(run, tmp_path, capsys):
    identity, other = Restormer(**OPTIONS), Restormer(**OPTIONS)
    nn.init.zeros_(identity.output.weight)
    nets = {'generator.': identity, 'generator_ema.': other}
    path, pixels = tmp_path / 'net.safetensors', noise(16, 16, 3)
    params = {
        prefix + name: tensor for prefix, net in nets.items() for name, tensor in net.state_dict().items()
    }
    save_file(params, path)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    for key in ([], ['--param_key', 'generator']):
        assert run('--weights', str(path), *key) == 0
        assert f'weights: {path} (generator{"" if key else "_ema"}.)\n' in capsys.readouterr().out
        assert np.array_equal(result(tmp_path), pixels) == bool(key)
    assert run('--weights', str(path), '--param_key', 'params') == 2
    assert "nothing under 'params'; it has: generator_ema., generator., " in capsys.readouterr().err


@pytest.mark.usefixtures('threads')
def test_an_image_too_large_for_memory_is_named_and_the_others_are_restored(run, tmp_path, capsys, monkeypatch):
    source, small = tmp_path / 'in', noise(8, 16, 3)
    for name, pixels in (('a.png', small), ('large.png', noise(160, 160, 3)), ('z.png', small)):
        write_png(source / name, pixels)
    tiles = 28 * 160 * 160  # bytes that tiles need at full size
    enough_for_small = StripEngine(Restormer(**OPTIONS), strip_bytes=1).memory(64, 64) + tiles
    monkeypatch.setattr(restorer, 'free_memory', lambda device: enough_for_small)
    assert run('--precision', 'fp32') == 1
    folder = tmp_path / 'out' / 'motion_deblurring'
    assert sorted(path.name for path in folder.iterdir()) == ['a.png', 'z.png']
    np.testing.assert_array_equal(result(tmp_path, 'z.png'), small)
    out, err = capsys.readouterr()
    assert '2 of 3 images restored' in out
    (line,) = err.splitlines()
    assert line.startswith(f'not restored: {source / "large.png"}: an image of 160×160 pixels needs 0.')
    assert 'GB of memory on cpu' in line and 'GB are free; ' in line

    assert run('--precision', 'fp32', '--tile', '32', '--tile_overlap', '8') == 0  # as the message suggests
    assert '3 of 3 images restored' in capsys.readouterr().out


@pytest.mark.usefixtures('threads')
def test_json_alone_is_on_stdout(run, weights, tmp_path, capsys):
    source, folder = tmp_path / 'in', tmp_path / 'out' / 'motion_deblurring'
    write_png(source / 'a.png', noise(8, 8, 3))
    (source / 'b.png').write_text('no image')
    assert run('--json', '--precision', 'fp32', '--tlc', '16') == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    wrong = told['images'].pop()
    assert told == {
        'task': 'motion_deblurring',
        'weights': str(weights),
        'device': 'cpu',
        'precision': 'fp32',
        'tlc': 16,
        'images': [{'input': str(source / 'a.png'), 'output': str(folder / 'a.png')}],
    }
    assert wrong['input'] == str(source / 'b.png') and f'not restored: {wrong["error"]}' in err
    assert '1 of 2 images restored' in err


@pytest.mark.usefixtures('threads')
def test_a_result_without_its_comparison_is_reported(run, tmp_path, capsys):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    (tmp_path / 'out' / 'motion_deblurring' / 'compare' / 'a.png').mkdir(parents=True)
    assert run('--compare') == 1
    out, err = capsys.readouterr()
    assert '1 of 1 images restored' in out
    assert err.startswith('not compared: ') and 'compare/a.png: cannot be written' in err


@pytest.mark.usefixtures('threads')
@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_quietly_and_leaves_complete_files(run, tmp_path, capfd, monkeypatch, number, status):
    pixels = noise(8, 8, 3)
    for name in ('1.png', '2.png', '3.png'):
        write_png(tmp_path / 'in' / name, pixels)
    restored = []

    def restore(restorer, image):
        restored.append(image)
        if len(restored) == 2:
            os.kill(os.getpid(), number)
        return image

    monkeypatch.setattr(Restorer, '__call__', restore)
    assert run() == status
    assert capfd.readouterr().err == ''
    folder = tmp_path / 'out' / 'motion_deblurring'
    assert [path.name for path in folder.iterdir()] == ['1.png']
    np.testing.assert_array_equal(result(tmp_path, '1.png'), pixels)


# Inputs are never overwritten


@pytest.mark.usefixtures('threads')
def test_the_result_folder_as_input(run, tmp_path, capsys):
    folder = tmp_path / 'out' / 'motion_deblurring'
    (folder / 'compare').mkdir(parents=True)
    write_png(folder / 'a.png', noise(8, 8, 3))
    write_png(folder / 'compare' / 'c.png', noise(8, 8, 3))
    PIL.Image.fromarray(noise(8, 8, 3)).save(folder / 'b.bmp')
    before = {path: path.read_bytes() for path in folder.rglob('*.*')}
    assert run(source=folder) == run('--compare', source=folder / 'compare') == 1
    after = {path: path.read_bytes() for path in folder.rglob('*.*')}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {folder / 'b.png'}
    assert capsys.readouterr().err.count('would overwrite the input') == 2


@pytest.mark.parametrize('link', ['symlink', 'hard link', 'folder'])
def test_a_result_that_is_an_input_by_another_name(run, tmp_path, capsys, link):
    source, folder = tmp_path / 'in', tmp_path / 'out' / 'motion_deblurring'
    for name in ('a.png', 'b.png'):
        write_png(source / name, noise(8, 8, 3))
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    if link == 'folder':
        folder.parent.mkdir()
        folder.symlink_to(source)
    else:
        folder.mkdir(parents=True)
        if link == 'symlink':
            (folder / 'a.png').symlink_to(source / 'b.png')  # another image of this run
        else:
            os.link(source / 'b.png', folder / 'a.png')
    assert run() == 1
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    out, err = capsys.readouterr()
    assert 'would overwrite the input' in err
    assert f'{0 if link == "folder" else 1} of 2 images restored' in out


# Tasks


@pytest.mark.parametrize(
    ('task', 'options', 'shape'),
    [
        ('Deraining', {}, (9, 17, 3)),
        ('Single_Image_Defocus_Deblurring', {}, (9, 17, 3)),
        ('Real_Denoising', {'LayerNorm_type': 'BiasFree'}, (9, 17, 3)),
        ('Gaussian_Color_Denoising', {'LayerNorm_type': 'BiasFree'}, (9, 17, 3)),
        ('Gaussian_Gray_Denoising', {'LayerNorm_type': 'BiasFree', 'inp_channels': 1, 'out_channels': 1}, (9, 17)),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)  # fmt: skip
def test_the_papers_names_of_tasks(run, tmp_path, task, options, shape):
    """Weights without a description, as the published ones."""
    torch.manual_seed(2)
    net, path = Restormer(**OPTIONS, **options), tmp_path / 'net.pth'
    save_checkpoint(path, net.state_dict(), None, 1)
    pixels = noise(*shape)
    write_png(tmp_path / 'in' / 'a.png', pixels)
    assert run('--task', task, '--weights', str(path), '--precision', 'fp32') == 0
    found = read_image(tmp_path / 'out' / task.lower() / 'a.png').pixels
    np.testing.assert_array_equal(found, Restorer(net, 'cpu', 'fp32')(pixels))


@pytest.mark.parametrize(
    ('task', 'channels', 'status', 'text'),
    [
        ('deraining', 3, 0, ''),
        ('deraining', 1, 0, 'for images of 1 channel; the published ones for deraining take 3: check'),
        ('gaussian_gray_denoising', 3, 0, 'for images of 3 channels; the published ones for gaussian_gray_denoising'),
        ('deraining', 6, 2, 'network: found one that takes 6 channels; allowed: 1 or 3, as images have, for derain'),
        ('dual_pixel_defocus_deblurring', 3, 2, 'found one that takes 3 channels; allowed: 6, as two views have, f'),
    ],
)  # fmt: skip
def test_a_network_with_other_channels_than_the_task_is_named(
    run, tmp_path, capsys, task, channels, status, text
):
    net = Restormer(
        **OPTIONS, inp_channels=channels, out_channels=min(channels, 3), dual_pixel_task=channels == 6
    )
    path = tmp_path / 'net.pth'
    save_checkpoint(path, net.state_dict(), None, 1)
    write_png(tmp_path / 'in' / 'a.png', noise(9, 17, 3))
    views = ['--right_dir', str(tmp_path / 'in')] if task.startswith('dual') else []
    assert run('--task', task, '--weights', str(path), *views) == status
    error = capsys.readouterr().err
    assert (f'{path}: ' in error and text in error) if text else not error


@pytest.mark.usefixtures('threads')
def test_two_folders_of_views(run, tmp_path, capsys):
    torch.manual_seed(2)
    options = {**OPTIONS, 'inp_channels': 6, 'dual_pixel_task': True}
    net, path = Restormer(**options), tmp_path / 'net.pth'
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **options}, 1)
    views = {}
    (tmp_path / 'right').mkdir()
    for name in ('a', 'b', 'c'):
        for folder in ('in', 'right'):
            views[folder, name] = noise(9, 17 + (name == 'c' and folder == 'in'), 3, dtype=np.uint16)
            write_png(tmp_path / folder / f'{name}.png', views[folder, name])
    given = ['--task', 'Dual_Pixel_Defocus_Deblurring', '--weights', str(path), '--precision', 'fp32']
    given += ['--right_dir', str(tmp_path / 'right'), '--compare']
    assert run(*given) == 1
    results = tmp_path / 'out' / 'dual_pixel_defocus_deblurring'
    for name in ('a', 'b'):
        found, left = read_image(results / f'{name}.png').pixels, views['in', name]
        np.testing.assert_array_equal(found, Restorer(net, 'cpu', 'fp32')(left, views['right', name]))
        both = np.concatenate([left, found], axis=1)
        np.testing.assert_array_equal(read_image(results / 'compare' / f'{name}.png').pixels, both)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f'not restored: {tmp_path / "right" / "c.png"}: right: found uint16 of shape (9, 17, 3); '
    )

    (tmp_path / 'right' / 'c.png').unlink()
    assert run(*given) == 2
    assert '3 left and 2 right views, not in pairs: c.png' in capsys.readouterr().err
    # A right view is an input that no result may replace.
    (results.parent / 'views').mkdir()
    results.rename(tmp_path / 'old')
    results.symlink_to(tmp_path / 'right')
    (tmp_path / 'in' / 'c.png').unlink()
    assert run(*given) == 1
    assert 'would overwrite the input' in capsys.readouterr().err
    np.testing.assert_array_equal(read_image(tmp_path / 'right' / 'a.png').pixels, views['right', 'a'])


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """A repository without files, whose published weights have the checksums of those made here."""
    monkeypatch.setattr(tasks, 'ROOT', tmp_path / 'repository')
    return tmp_path / 'repository'


@pytest.mark.parametrize(
    'task', [task for task in TASKS.values() if not task.shipped], ids=lambda task: task.name
)
def test_missing_weights_are_named_with_their_place_and_the_command(no_weights, tmp_path, capsys, task):
    given = ['--input_dir', str(tmp_path / 'in'), '--task', task.name.title()]
    if 'dual' in task.name:
        given += ['--right_dir', str(tmp_path / 'in')]
    (tmp_path / 'in').mkdir()
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    for sigma in [None, *task.sigmas]:
        assert cli.run('basicsr.demo', [*given, *(['--sigma', sigma] if sigma else [])]) == 2
        said = capsys.readouterr().err
        name = (
            f'{task.name}_{"blind" if sigma in (None, "blind") else "sigma" + sigma}'
            if task.sigmas
            else task.name
        )
        what = name if task.folder == 'Denoising' or task.folder == 'Defocus_Deblurring' else 'weights'
        assert (
            f'{no_weights}/{task.folder}/pretrained_models/{name}.pth: found no weights for {task.name}; '
            in said
        )
        assert f'python {task.folder}/download_data.py --data {what} downloads https://github.com/' in said
        assert f'/v1.0/{name}.pth to that place' in said


def test_sigma_chooses_the_weights(no_weights, run, tmp_path, capsys):
    for sigma, name in ((None, 'blind'), ('BLIND', 'blind'), ('15', 'sigma15'), ('50', 'sigma50')):
        torch.manual_seed(len(name))
        net = Restormer(**OPTIONS)
        path = no_weights / 'Denoising' / 'pretrained_models' / f'gaussian_color_denoising_{name}.pth'
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, net.state_dict(), None, 1)
        write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
        given = ['--input_dir', str(tmp_path / 'in'), '--result_dir', str(tmp_path / 'out'), '--device', 'cpu']
        given += ['--task', 'gaussian_color_denoising', *(['--sigma', sigma] if sigma else [])]
        assert cli.run('basicsr.demo', given) == 0
        assert f'weights: {path} (params)\n' in capsys.readouterr().out


def test_weights_of_another_task_are_named_by_their_checksum(
    no_weights, run, weights, tmp_path, capsys, monkeypatch
):
    """Deraining and two deblurring tasks have files of one size and one shape."""
    known = RemoteFile(
        'https://x/deraining.pth', sha256(weights.read_bytes()).hexdigest(), weights.stat().st_size
    )
    monkeypatch.setitem(TASKS, 'deraining', replace(TASKS['deraining'], weights={'': known}))
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    assert run('--task', 'deraining') == 0
    capsys.readouterr()
    sentence = (
        f'{weights}: found the published weights for deraining (deraining.pth); allowed: those for motion_deb'
    )
    assert run() == 2 and sentence in capsys.readouterr().err
    default = no_weights / 'Defocus_Deblurring' / 'pretrained_models' / 'single_image_defocus_deblurring.pth'
    default.parent.mkdir(parents=True)
    default.write_bytes(weights.read_bytes())
    given = ['--input_dir', str(tmp_path / 'in'), '--result_dir', str(tmp_path / 'out')]
    assert cli.run('basicsr.demo', ['--task', 'Single_Image_Defocus_Deblurring', *given]) == 2
    assert f'{default}: found the published weights for deraining (' in capsys.readouterr().err


# Wrong arguments


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--task', 'none'], "task: found 'none'; allowed: motion_deblurring"),
        (['--device', 'gpu'], "device: found 'gpu'; allowed: auto, cpu"),
        (['--device', 'cuda:99'], 'device: found cuda:99'),
        (['--precision', 'int8'], "precision: found 'int8'; allowed: auto, fp32, bf16, fp16"),
        (['--precision', 'fp16'], 'precision: found fp16 on a CPU'),
        (['--weights', '{tmp}/none.pth'], 'none.pth'),
        (['--weights', '{tmp}/in/a.png'], 'a.png is not a PyTorch checkpoint'),
        (['--input_dir', '{tmp}/none'], 'none: no such file or folder'),
        (['--input_dir', '{tmp}/empty'], 'empty: contains no images'),
        (['--input_dir', ''], '--input_dir: found an empty name; allowed: a file or folder'),
        (['--result_dir', ''], '--result_dir: found an empty name; allowed: a file or folder'),
        (['--result_dir', '{tmp}/in/a.png'], 'in/a.png: cannot be written: '),
        (
            ['--task', 'dual_pixel_defocus_deblurring'],
            '--right_dir: found nothing; allowed: the right views, for dual',
        ),
        (
            ['--right_dir', '{tmp}/in'],
            '--right_dir: found with --task motion_deblurring; allowed: with dual_pixel',
        ),
        (['--sigma', '15'], '--sigma: found with --weights; allowed: one of them'),
        (['--web'], '--input_dir: found with --web; allowed: without it'),
        (['--host', '0.0.0.0'], '--host: found without --web; allowed: with it'),
        (['--tiles'], 'unrecognized arguments: --tiles'),
        (['--tlc', '7'], 'tlc: found 7; allowed: a window of a positive multiple of 8'),
        (['--tlc', 'wide'], "argument --tlc: invalid int value: 'wide'"),
        (['--tile', '12'], 'tile: found 12; allowed: a positive multiple of 8'),
        (['--tile', '64', '--tile_overlap', '64'], 'tile_overlap: found 64; allowed: 0 to 63'),
        (['--tile', '64', '--tile_overlap', '-1'], 'tile_overlap: found -1; allowed: 0 to 63'),
    ],
    ids=' '.join,
)
def test_a_wrong_argument_is_one_sentence_and_status_2(run, tmp_path, capsys, arguments, text):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    (tmp_path / 'empty').mkdir()
    assert run(*(argument.replace('{tmp}', str(tmp_path)) for argument in arguments)) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / 'in' / 'a.png').exists()


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--port', '0'], '--port: found 0; allowed: 1 to 65535'),
        (['--task', 'dual_pixel_defocus_deblurring'], '--task: found dual_pixel_defocus_deblurring with --web'),
    ],
)
def test_a_wrong_argument_of_the_page_is_one_sentence_and_status_2(capsys, arguments, says):
    assert cli.run('basicsr.demo', ['--web', *arguments]) == 2
    assert says in capsys.readouterr().err


def test_the_page_says_which_package_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    monkeypatch.delitem(sys.modules, 'basicsr.web', raising=False)
    assert cli.run('basicsr.demo', ['--web']) == 2
    assert "--web: the package gradio is required; pip install 'gradio>=6'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('task', 'text'),
    [
        (
            'deraining',
            "found '10'; allowed: none for deraining, only with --task gaussian_color_denoising or --task gau",
        ),
        ('gaussian_gray_denoising', "found '10'; allowed: blind, 15, 25, 50"),
    ],
)
def test_a_wrong_sigma_is_one_sentence(tmp_path, capsys, task, text):
    assert cli.run('basicsr.demo', ['--task', task, '--sigma', '10', '--input_dir', str(tmp_path)]) == 2
    assert f'--sigma: {text}' in capsys.readouterr().err


def test_a_read_only_result_folder_is_refused_before_any_work(run, tmp_path, capsys, monkeypatch):
    write_png(tmp_path / 'in' / 'a.png', noise(8, 8, 3))
    mkdir = Path.mkdir

    def read_only(folder, *mode, **how):
        if folder.parent.name == 'motion_deblurring':
            raise PermissionError(errno.EACCES, 'Permission denied')
        mkdir(folder, *mode, **how)

    monkeypatch.setattr(Path, 'mkdir', read_only)
    assert run() == 2
    assert f'--result_dir {tmp_path / "out"}: cannot be written: Permission denied' in capsys.readouterr().err


# As a program


def test_relative_paths_from_another_working_directory(weights, tmp_path):
    pixels = noise(5, 6, 3)
    (tmp_path / 'photos').mkdir()
    write_png(tmp_path / 'photos' / 'a.png', pixels)
    arguments = ['--input_dir', 'photos', '--result_dir', 'sharp', '--device', 'cpu', '--weights', weights]
    program = [sys.executable, ROOT / 'demo.py', *arguments]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    np.testing.assert_array_equal(read_image(tmp_path / 'sharp/motion_deblurring/a.png').pixels, pixels)
