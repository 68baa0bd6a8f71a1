"""evaluate.py of the task folders, on made-up test sets of every layout, against files that are read otherwise."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import pytest
import scipy.io
import torch

from basicsr import tasks
from basicsr.archs.restormer_arch import Restormer
from basicsr.metrics.defocus import calculate_mae, calculate_ssim_uniform
from basicsr.metrics.matlab_luma import calculate_psnr_y, calculate_ssim_y
from basicsr.metrics.psnr_ssim import calculate_ssim_3d
from basicsr.tasks import PROTOCOLS, TASKS
from basicsr.utils import cli
from basicsr.utils.checkpoint import save_checkpoint
from basicsr.utils.registry import METRIC_REGISTRY

TINY = {'dim': 4, 'num_blocks': [0, 1, 0, 0], 'num_refinement_blocks': 0, 'heads': [1, 2, 2, 4]}
SINGLE, DUAL = 'single_image_defocus_deblurring', 'dual_pixel_defocus_deblurring'
COLOUR, GREY = 'gaussian_color_denoising', 'gaussian_gray_denoising'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, and the repository root of the tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, 'ROOT', tmp_path)
    monkeypatch.setitem(sys.modules, 'lpips', None)  # not installed
    return tmp_path


def network(path='net.pth', seed=0, **options):
    """Saves a tiny network; returns it as a function of arrays (H, W, C) in [0, 1]."""
    torch.manual_seed(seed)
    net = Restormer(**TINY, **options).eval()
    save_checkpoint(path, net.state_dict(), {'type': 'Restormer', **TINY, **options}, 1)

    @torch.no_grad()
    def restore(x_HWC):
        result = net(torch.from_numpy(np.float32(x_HWC)).permute(2, 0, 1)[None])
        return np.clip(result[0].permute(1, 2, 0).numpy(), 0, 1)

    return restore


def picture(seed, dtype=np.uint8, size=(16, 24), channels=3):
    """Smooth, with some noise; OpenCV's channel order."""
    rng = np.random.default_rng(seed)
    scene = cv2.resize(rng.random((4, 5, channels)), size[::-1]).reshape(*size, channels)
    scene = np.clip(scene + rng.normal(0, 0.05, scene.shape), 0, 1)
    return np.rint(scene * np.iinfo(dtype).max).astype(dtype)


def write(path, seed, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture(seed, **options)
    assert cv2.imwrite(str(path), image)
    return image[..., ::-1] if image.shape[2] == 3 else image


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[..., ::-1]


def run(folder, *arguments, weights=True, status=0):
    """Runs a program; its figures are in out.json."""
    given = ['--data_dir', 'data', '--json', 'out.json']
    given += ['--weights', 'net.pth', '--device', 'cpu'] if weights else []
    assert cli.run(f'{folder}.evaluate', [*given, *map(str, arguments)]) == status


def written():
    return json.loads(Path('out.json').read_text())


def rows(out, title):
    """The table below a title: first column → the others."""
    lines = out.split(f'\n{title}')[1].split('\n\n')[0].splitlines()[1:]
    return {first: others for first, *others in (re.split('  +', line) for line in lines)}


def psnr(a, b):
    """PSNR of arrays in [0, 1]."""
    return -10 * np.log10(np.mean((np.float64(a) - b) ** 2))


def is_close(images, wanted, tolerance=1e-4):
    assert [image['name'] for image in images] == [one.pop('name') for one in wanted]
    for image, one in zip(images, wanted, strict=True):
        assert image.keys() == {'name', *one}
        assert {key: image[key] for key in one} == pytest.approx(one, abs=tolerance)


def refused(capsys, folder, *arguments, weights=True, status=2):
    capsys.readouterr()
    run(folder, *arguments, weights=weights, status=status)
    error = capsys.readouterr().err
    assert 'Traceback' not in error
    return error


# Deraining


def rain(x, gt):
    x, gt = (np.rint(image * 255).astype(np.uint8) for image in (x, gt))
    luma = {'psnr_y': calculate_psnr_y(x, gt), 'ssim_y': calculate_ssim_y(x, gt)}
    return {**luma, 'psnr': psnr(x / 255, gt / 255)}


def test_deraining_and_its_average(here, capsys):
    restore, wanted = network(), {}
    for number, name in enumerate(('Test100', 'Rain100L', 'Test1200')):
        wanted[name] = []
        for image in ('2', '10'):
            lq, gt = (
                write(here / f'data/{name}/{kind}/{image}.png', 10 * number + int(image) + offset) / 255
                for kind, offset in (('input', 100), ('target', 0))
            )
            before = {f'input_{key}': value for key, value in rain(lq, gt).items()}
            wanted[name].append({'name': image, **rain(restore(lq), gt), **before})
    (here / 'data/Test1200/input/2.png').write_bytes(b'')
    del wanted['Test1200'][0]
    run('Deraining', status=1)
    out, error = capsys.readouterr()
    content = written()
    for name, images in wanted.items():
        is_close(content['datasets'][name]['images'], images, 0.02)  # a level may be rounded otherwise
    assert rows(out, 'Rain100L: 2 images')['PSNR of Y'][2:] == ['38.99']
    assert 'Rain100H: skipped, as ' in error and 'python Deraining/download_data.py --data Rain100H' in error
    # The mean of the complete sets, without the published one.
    sets = [content['datasets'][name]['mean'] for name in ('Test100', 'Rain100L')]
    mean = {key: (sets[0][key] + sets[1][key]) / 2 for key in sets[0]}
    expected = {'datasets': ['Test100', 'Rain100L'], 'mean': pytest.approx(mean), 'published': {}}
    assert content['average'] == expected
    table = rows(out, 'average of Test100, Rain100L')
    assert table['SSIM of Y'] == [f'{mean["input_ssim_y"]:.4f}', f'{mean["ssim_y"]:.4f}']


def test_average_of_all_sets_beside_the_published_one(here, capsys):
    network()
    for number, one in enumerate(TASKS['deraining'].test_sets):
        for kind in ('input', 'target'):
            write(here / f'data/{one.name}/{kind}/1.png', number + 10 * (kind == 'input'))
    run('Deraining')
    table = rows(capsys.readouterr().out, 'average of Test100, Rain100H, Rain100L, Test2800, Test1200')
    assert [table[figure][2] for figure in ('PSNR of Y', 'SSIM of Y', 'PSNR')] == ['33.96', '0.935', '-']
    run('Deraining', '--datasets', 'test100')
    assert 'average' not in written()


# Defocus deblurring


def defocus(x, gt):
    return {
        'psnr': psnr(x, gt),
        'ssim_uniform': calculate_ssim_uniform(np.float64(x), gt, data_range=1),
        'mae': calculate_mae(np.float64(x), gt, data_range=1),
    }


def write_dpdd(here, names=('2', '10', '11'), target=None):
    """inputL, inputR, inputC and target, in 16 bits; returns kind → images."""
    kinds = ('inputL', 'inputR', 'inputC', 'target')
    return {
        kind: [
            write(here / f'data/DPDD/{kind}/{name}.png', 10 * number + 100 * offset, dtype=np.uint16)
            for number, name in enumerate(target if kind == 'target' and target else names)
        ]
        for offset, kind in enumerate(kinds)
    }


def write_labels(here, indoor=(1, 3), outdoor=(2,)):
    np.save(here / 'data/DPDD/indoor_labels.npy', np.array(indoor))
    np.save(here / 'data/DPDD/outdoor_labels.npy', np.array(outdoor))


@pytest.mark.parametrize('target', [None, ('3', '12', '20')])
def test_single_image_defocus_deblurring_on_the_high_byte(here, capsys, target):
    restore, images = network(), write_dpdd(here, target=target)
    write_labels(here)
    run('Defocus_Deblurring', '--task', SINGLE.title(), '--save_dir', 'saved')
    out, error = capsys.readouterr()
    wanted = []
    for name, lq, gt in zip(target or ('2', '10', '11'), images['inputC'], images['target'], strict=True):
        lq, gt = (lq >> 8) / 255, (gt >> 8) / 255
        before = {f'input_{key}': value for key, value in defocus(lq, gt).items()}
        wanted.append({'name': name, **defocus(restore(lq), gt), **before})
        saved = read(here / f'saved/DPDD/{name}.png')
        assert saved.dtype == np.uint8
        assert np.abs(saved - 255 * restore(lq)).max() <= 0.51
    found = written()['datasets']['DPDD']
    is_close(found['images'], wanted)
    if not target:
        own = ['--input_dir', 'data/DPDD/inputC', '--target_dir', 'data/DPDD/target']
        run('Defocus_Deblurring', '--task', SINGLE, *own)
        assert written()['datasets']['pairs']['images'] == found['images']
    by_order = 'DPDD: paired in natural order, as most names are not in all folders\n'
    assert (by_order in out) == (target is not None)
    assert 'LPIPS: left out, as the package lpips is not installed; `pip install lpips` gets it\n' in error
    mean = (found['images'][0]['psnr'] + found['images'][2]['psnr']) / 2
    assert found['parts']['indoor']['mean']['psnr'] == pytest.approx(mean, rel=1e-12)
    assert rows(out, 'DPDD: 3 images')['MAE'][2] == '0.038' and 'LPIPS' not in rows(out, 'DPDD: 3 images')
    assert rows(out, 'DPDD, indoor: 2 images')['PSNR'][1:] == [f'{mean:.4f}', '28.87']
    assert rows(out, 'DPDD, outdoor: 1 image')['PSNR'][1:] == [f'{found["images"][1]["psnr"]:.4f}', '23.24']


def test_dual_pixel_defocus_deblurring_in_16_bits(here, capsys):
    restore, images = network(inp_channels=6, dual_pixel_task=True), write_dpdd(here)
    run('Defocus_Deblurring', '--task', DUAL, '--save_dir', 'saved', '--limit', 2)
    out = capsys.readouterr().out
    wanted = []
    for index, name in enumerate(('2', '10')):
        left, right, gt = (images[kind][index] / 65535 for kind in ('inputL', 'inputR', 'target'))
        restored = restore(np.concatenate([left, right], axis=2))
        wanted.append({'name': name, **defocus(restored, gt)})
        saved = read(here / f'saved/DPDD/{name}.png')
        assert saved.dtype == np.uint16 and np.abs(saved - 65535 * restored).max() < 1
    is_close(written()['datasets']['DPDD']['images'], wanted)
    assert 'DPDD: measured without its parts; found no ' in out
    table = rows(out, 'DPDD: 2 of 3 images only; the published values are for the full set')
    assert table['PSNR'][::2] == ['-', '26.66']


@pytest.mark.parametrize(
    ('target', 'indoor', 'said'),
    [
        (None, (0, 1), 'indoor_labels.npy: found 0; allowed: positions from 1 to 3'),
        (None, (1.5, 4), 'indoor_labels.npy: found 1.5, 4.0; allowed: positions from 1 to 3'),
        (None, (2, 2), 'indoor_labels.npy: found a position more than once'),
        (('3', '12'), (1,), 'found 3 images; allowed: 2'),  # no name agrees, and the counts differ
        (('2', '10', '12'), (1,), '11.png; 1 image has no partner of the same name: '),  # most names agree
    ],
)
def test_bad_files_of_dpdd(here, capsys, target, indoor, said):
    network()
    write_dpdd(here, target=target)
    write_labels(here, indoor)
    assert said in refused(capsys, 'Defocus_Deblurring', '--task', SINGLE, status=1)


# Gaussian denoising


def noisy(gt, sigma):
    """The clean image in [0, 1] with the published noise."""
    noise = np.random.RandomState(0).normal(0, sigma / 255, gt.shape)
    return np.float32(np.float32(gt) + noise)


def rounded(x):
    return np.rint(np.clip(x, 0, 1) * 255) / 255


@pytest.mark.parametrize(('task', 'name'), [(COLOUR, 'CBSD68'), (GREY, 'Set12')])
def test_gaussian_denoising_of_all_levels_with_blind_weights(here, capsys, task, name):
    channels = 1 if task == GREY else 3
    restore = network(inp_channels=channels, out_channels=channels, LayerNorm_type='BiasFree')
    clean = {stem: write(here / f'data/{name}/{stem}', 5 + len(stem)) for stem in ('1.tif', '02.png')}
    run('Denoising', '--task', task, '--datasets', name, '--save_dir', 'saved')
    out = capsys.readouterr().out
    assert list(written()['datasets']) == [f'{name}_sigma{sigma}' for sigma in (15, 25, 50)]
    for sigma in (15, 25, 50):
        wanted = []
        for file, gt in clean.items():
            if channels == 1:
                gt = np.rint(gt @ np.array([0.299, 0.587, 0.114]))[..., None]
            lq, gt = noisy(gt / 255, sigma), gt / 255
            restored = rounded(restore(lq))
            name_of = file.split('.')[0]
            wanted.append({'name': name_of, 'psnr': psnr(restored, gt), 'input_psnr': psnr(rounded(lq), gt)})
            saved = cv2.imread(f'saved/{name}_sigma{sigma}/{name_of}.png', cv2.IMREAD_UNCHANGED)
            assert saved.dtype == np.uint8 and saved.ndim == (2 if channels == 1 else 3)
        is_close(written()['datasets'][f'{name}_sigma{sigma}']['images'], wanted, 0.02)
        table = rows(out, f'{name}_sigma{sigma}: 2 images')
        assert table[''][2:] == ['Restormer, blind, published', f'Restormer, sigma {sigma}, published']
    # Images restored elsewhere, by name.
    once = written()['datasets']
    restored = ['--task', task, '--datasets', name, '--restored_dir', 'saved']
    for given, weights in ((restored, False), (restored[:4], True)):
        run('Denoising', *given, '--sigma', '25', '50', weights=weights)
        found = written()
        assert found['datasets'] == {f'{name}_sigma{sigma}': once[f'{name}_sigma{sigma}'] for sigma in (25, 50)}
        assert ('weights' in found) == weights


def test_each_noise_level_with_its_weights(here, capsys):
    folder = here / 'Denoising/pretrained_models'
    folder.mkdir(parents=True)
    restore = {
        sigma: network(folder / f'gaussian_color_denoising_sigma{sigma}.pth', sigma, LayerNorm_type='BiasFree')
        for sigma in (15, 50)
    }
    gt = write(here / 'data/Kodak/1.png', 0) / 255
    run('Denoising', '--task', COLOUR, '--device', 'cpu', '--sigma', '50', '15', '50', weights=False)
    content = written()
    assert list(content['datasets']) == ['Kodak_sigma15', 'Kodak_sigma50'] and 'weights' not in content
    for sigma in (15, 50):
        found = content['datasets'][f'Kodak_sigma{sigma}']
        assert f'denoising_sigma{sigma}.pth' in found['weights']
        wanted = psnr(rounded(restore[sigma](noisy(gt, sigma))), gt)
        assert found['mean']['psnr'] == pytest.approx(wanted, abs=0.02)
    said = refused(capsys, 'Denoising', '--task', COLOUR, '--sigma', '15', '25', weights=False)
    assert 'sigma25.pth: found no published weights; python Denoising/download_data.py --data ' in said


def test_own_pairs_are_grey_for_a_grey_network(here):
    restore = network(inp_channels=1, out_channels=1, LayerNorm_type='BiasFree')
    lq, gt = (write(here / kind / '1.png', seed, channels=1) / 255 for seed, kind in enumerate(('a', 'b')))
    run('Denoising', '--task', GREY, '--input_dir', 'a', '--target_dir', 'b')
    (image,) = written()['datasets']['pairs']['images']
    assert image['psnr'] == pytest.approx(psnr(rounded(restore(lq)), gt), abs=0.02)


# Real denoising


def write_sidd(here, shape=(2, 3, 32, 32, 3)):
    folder, blocks = here / 'data/SIDD', {}
    folder.mkdir(parents=True)
    for seed, name in enumerate(('ValidationNoisyBlocksSrgb', 'ValidationGtBlocksSrgb')):
        pictures = [picture(10 * seed + number, size=shape[2:4]) for number in range(shape[0] * shape[1])]
        blocks[name] = np.stack(pictures).reshape(shape)
        scipy.io.savemat(folder / f'{name}.mat', {name: blocks[name]}, do_compression=bool(seed))
    return blocks.values()


def test_sidd(here, capsys):
    restore, (noisy, clean) = network(LayerNorm_type='BiasFree'), write_sidd(here)
    run('Denoising', '--task', 'real_denoising', '--save_dir', 'saved', '--datasets', 'SIDD', '--workers', 2)
    out = capsys.readouterr().out
    wanted, results = [], np.zeros(noisy.shape)
    for scene, block in np.ndindex(2, 3):
        lq, gt = noisy[scene, block] / 255, clean[scene, block] / 255
        results[scene, block] = restore(lq)
        wanted.append({'name': f'{scene + 1:04d}_{block + 1:02d}'})
        for start, x in (('', results[scene, block]), ('input_', lq)):
            wanted[-1][f'{start}psnr'] = psnr(x, gt)
            wanted[-1][f'{start}ssim_3d'] = calculate_ssim_3d(x, gt, data_range=1)
    found = written()['datasets']['SIDD']
    is_close(found['images'], wanted)
    assert rows(out, 'SIDD: 6 images')['PSNR'][2] == '40.02' and 'not written' not in out
    (here / 'saved').rename(here / 'elsewhere')
    uploaded = scipy.io.loadmat(here / 'elsewhere/SIDD/Idenoised.mat')['Idenoised']
    assert uploaded.dtype == np.float32 and uploaded.shape == noisy.shape
    np.testing.assert_allclose(uploaded, results, atol=1e-5)
    assert len(np.unique(np.rint(uploaded * 255) - uploaded * 255)) > 99  # not rounded
    run('Denoising', '--task', 'real_denoising', '--restored_dir', 'elsewhere', weights=False)
    assert written()['datasets']['SIDD'] == found
    (here / 'elsewhere/SIDD/Idenoised.mat').unlink()
    given = ('--task', 'real_denoising', '--restored_dir', 'elsewhere')
    text = refused(capsys, 'Denoising', *given, status=1, weights=False)
    assert f'{here}/elsewhere/SIDD/Idenoised.mat: cannot be read' in text and '(No such file' in text
    run('Denoising', '--task', 'real_denoising', '--save_dir', 'part', '--limit', 2)
    out = capsys.readouterr().out
    assert (
        f'SIDD: not written, as some of their results are missing: {here / "part/SIDD/Idenoised.mat"}\n' in out
    )
    assert not [*(here / 'part/SIDD').iterdir()]


@pytest.mark.parametrize('name', ['SIDD', 'DND'])
def test_an_upload_that_cannot_be_written_is_known_before_any_work(here, capsys, monkeypatch, name):
    network()
    write_sidd(here) if name == 'SIDD' else write_dnd(here)
    monkeypatch.setattr(Restormer, 'forward', None)  # no image is restored
    (here / 'saved').write_bytes(b'')  # a file
    given = ['--task', 'real_denoising', '--datasets', name, '--save_dir', 'saved/folder']
    assert f'saved/folder/{name}' in refused(capsys, 'Denoising', *given, status=1)
    if name == 'SIDD':
        (here / 'saved').unlink()
        monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=0))
        assert f'{here}/saved/folder/SIDD: No space left' in refused(capsys, 'Denoising', *given, status=1)


NOISY = 'ValidationNoisyBlocksSrgb'
UNREADABLE = 'cannot be read as a file of MATLAB 7 or older'


def hdf5(path):
    with h5py.File(path, 'w', userblock_size=512) as file:
        file[NOISY] = np.zeros((3, 32, 32, 3, 2), np.uint8)
    with path.open('r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\0\2IM')


def variable(shape, dtype=np.uint8, name=NOISY):
    return lambda path: scipy.io.savemat(path, {name: np.zeros(shape, dtype)})


BAD = {
    'cut short': (lambda path: path.write_bytes(path.read_bytes()[:2000]), UNREADABLE),
    'empty': (lambda path: path.write_bytes(b''), UNREADABLE),
    'no MATLAB file': (lambda path: path.write_bytes(b'<html>' * 99), UNREADABLE),
    'version 7.3': (hdf5, UNREADABLE),
    'other variable': (variable((2, 3, 32, 32, 3), name='x'), f'found no variable {NOISY}'),
    'other axes': (variable((6, 32, 32, 3)), 'uint8, shape (6, 32, 32, 3); allowed: '),
    'other type': (variable((2, 3, 32, 32, 3), float), 'of float64, shape'),
    'other size': (variable((2, 2, 32, 32, 3)), 'found shape (2, 3, 32, 32, 3); allowed'),
}


@pytest.mark.parametrize(('spoil', 'said'), BAD.values(), ids=list(BAD))
def test_bad_files_of_sidd(here, capsys, spoil, said):
    network()
    write_sidd(here)
    spoil(here / f'data/SIDD/{NOISY}.mat')
    assert said in refused(capsys, 'Denoising', '--task', 'real_denoising', status=1)


def write_dnd(here, images=2, boxes=3):
    """Returns the boxes' pixels. Box: (y1, x1, y2, x2) from 1, with its ends."""
    folder, cut = here / 'data/DND', []
    (folder / 'images_srgb').mkdir(parents=True)
    with h5py.File(folder / 'info.mat', 'w') as info:
        references = info.create_dataset('info/boundingboxes', (1, images), h5py.ref_dtype)
        for number in range(images):
            noisy = np.float32(picture(number, size=(40, 48)) / 255)
            with h5py.File(folder / f'images_srgb/{number + 1:04d}.mat', 'w') as file:
                file['InoisySRGB'] = noisy.T
            places = [(1 + 8 * box, 3 + 8 * box, 16 + 8 * box, 26 + 8 * box) for box in range(boxes)]
            info[f'boxes/{number}'] = np.array(places, np.float64).T
            references[0, number] = info[f'boxes/{number}'].ref
            cut.append([noisy[8 * box : 16 + 8 * box, 2 + 8 * box : 26 + 8 * box] for box in range(boxes)])
    return cut


def test_dnd_writes_files_to_upload(here, capsys):
    restore, cut = network(LayerNorm_type='BiasFree'), write_dnd(here)
    run('Denoising', '--task', 'real_denoising', '--save_dir', 'saved')
    out = capsys.readouterr().out
    assert out.endswith('\nDND: 6 images\n')
    names = [image['name'] for image in written()['datasets']['DND']['images']]
    assert names == [f'000{image}_0{box}' for image in (1, 2) for box in (1, 2, 3)]
    for number, boxes in enumerate(cut):
        content = scipy.io.loadmat(here / f'saved/DND/mat/{number + 1:04d}.mat')
        assert content['Idenoised'].shape == (1, 3) and content['Idenoised'].dtype == object
        for found, box in zip(content['Idenoised'][0], boxes, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, restore(box), atol=1e-5)
        assert content['israw'].tolist() == [[0]] and content['eval_version'].tolist() == ['1.0']
    # The boxes of an incomplete image are not written.
    run('Denoising', '--task', 'real_denoising', '--save_dir', 'part', '--limit', 4)
    assert [path.name for path in (here / 'part/DND/mat').iterdir()] == ['0001.mat']
    assert f'are missing: {here / "part/DND/mat/0002.mat"}\n' in capsys.readouterr().out


def test_dnd_has_nothing_to_measure(here, capsys, monkeypatch):
    network()
    write_dnd(here)
    given = ['Denoising', '--task', 'real_denoising', '--datasets', 'DND']
    said = refused(capsys, *given)
    assert 'DND: skipped, as its ground truth is not public; --save_dir FOLDER writes files to upload\n' in said
    monkeypatch.setitem(sys.modules, 'h5py', None)
    monkeypatch.delitem(sys.modules, 'h5py')
    monkeypatch.setattr('importlib.util.find_spec', lambda _: None)
    said = refused(capsys, *given, '--save_dir', 'saved')
    assert 'DND: skipped, as the package h5py is not installed; `pip install h5py`\n' in said


def other_boxes(folder):
    with h5py.File(folder / 'info.mat', 'r+') as info:
        del info['boxes/1']
        info['boxes/2'] = np.zeros((4, 7))
        info['info/boundingboxes'][0, 1] = info['boxes/2'].ref


BAD_DND = {
    'no HDF5': (lambda dnd: (dnd / 'info.mat').write_bytes(b'x' * 999), 'cannot be read as a file of DND'),
    'no boxes': (lambda dnd: h5py.File(dnd / 'info.mat', 'w').close(), 'cannot be read as a file of DND'),
    'other boxes': (other_boxes, 'found boxes of shapes (3, 4), (7, 4); allowed: as many for each image'),
    'an image less': (lambda dnd: (dnd / 'images_srgb/0002.mat').unlink(), 'images_srgb: misses 0002.mat'),
}


@pytest.mark.parametrize(('spoil', 'said'), BAD_DND.values(), ids=list(BAD_DND))
def test_bad_files_of_dnd(here, capsys, spoil, said):
    network()
    write_dnd(here)
    spoil(here / 'data/DND')
    assert said in refused(capsys, 'Denoising', '--task', 'real_denoising', '--save_dir', 'saved', status=1)


def test_a_bad_image_of_dnd_is_left_out(here, capsys):
    network()
    write_dnd(here)
    (here / 'data/DND/images_srgb/0001.mat').write_bytes(b'x' * 999)
    said = refused(capsys, 'Denoising', '--task', 'real_denoising', '--save_dir', 'saved', status=1)
    assert said.count('not measured: ') == 3
    assert [path.name for path in (here / 'saved/DND/mat').iterdir()] == ['0002.mat']


# Refusals


OWN = ['--input_dir', 'a', '--target_dir', 'b']


@pytest.mark.parametrize(
    ('folder', 'arguments', 'said'),
    [
        ('Denoising', [], 'the following arguments are required: --task'),
        ('Denoising', ['--task', 'deraining'], "argument --task: invalid choice: 'deraining'"),
        ('Denoising', ['--task', GREY, '--datasets', 'cbsd68', 'Set12'],
         f'--datasets: found cbsd68; allowed: Set12, BSD68, Urban100, for {GREY}'),
        ('Denoising', ['--task', 'real_denoising', '--sigma', '15'],
         '--sigma: found with --task real_denoising; allowed: for Gaussian denoising'),
        ('Denoising', ['--task', GREY, '--sigma', 'blind', '15'], '--sigma: found blind 15; allowed'),
        ('Denoising', ['--task', GREY, '--sigma', '15', *OWN],
         '--sigma: found with --input_dir; allowed: one value, to choose the published weights'),
        ('Defocus_Deblurring', ['--task', DUAL, *OWN],
         'allowed: --data_dir FOLDER, with FOLDER/DPDD/inputL, FOLDER/DPDD/inputR, FOLDER/DPDD/target'),
    ],
)  # fmt: skip
def test_wrong_arguments(here, capsys, folder, arguments, said):
    network()
    assert said in refused(capsys, folder, *arguments)


@pytest.mark.parametrize(('inputs', 'outputs'), [(1, 1), (3, 3), (6, 6)])
def test_a_network_for_other_channels(here, capsys, inputs, outputs):
    network(inp_channels=inputs, out_channels=outputs)
    write_dpdd(here)
    said = f'makes {outputs} channels of {inputs}; allowed: 3 of 6, for {DUAL}'
    assert said in refused(capsys, 'Defocus_Deblurring', '--task', DUAL)


def test_every_metric_of_a_protocol_exists_and_every_published_figure_is_in_its_protocol():
    for task in TASKS.values():
        for one in task.test_sets:
            assert all(figure.metric in METRIC_REGISTRY for figure in PROTOCOLS[one.protocol].figures)
            keys = {figure.key for figure in PROTOCOLS[one.protocol].figures}
            for published in (one.published, *one.parts.values()):
                assert all(figures.keys() <= keys for figures in published.values())
