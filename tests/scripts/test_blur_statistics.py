"""scripts/blur_statistics.py against closed forms."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from basicsr.utils.cli import run
from basicsr.utils.files import ROOT
from scripts import blur_statistics
from scripts.blur_statistics import extents


@pytest.fixture(scope='module')
def texture():
    """Grey, (256, 384), with detail of all sizes."""
    noise = np.random.default_rng(0).normal(0, 1, (256, 384)).astype(np.float32)
    layers = [cv2.GaussianBlur(noise, (0, 0), size) * size for size in (1, 2, 4, 8)]
    return 128 + 40 * sum(layers).astype(np.float32)


def write_set(folder, pairs):
    for number, images in enumerate(pairs):
        for role, image in zip(('input', 'target'), images, strict=True):
            (folder / role).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / role / f'{number}.png'), image)
    return str(folder)


def flat(level, shape=(20, 20, 3)):
    return np.full(shape, level, np.uint8)


@pytest.mark.parametrize('sigma', [0.5, 1.0, 2.3, 6.0])
def test_extent_of_a_gaussian_is_its_standard_deviation(texture, sigma):
    found = extents(cv2.GaussianBlur(texture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), texture)
    assert len(found) == 6
    np.testing.assert_allclose(found, sigma, rtol=0.03)


@pytest.mark.parametrize('sigma', [1.0, 2.0, 4.0])
def test_strong_edge_beside_a_tile_does_not_raise_its_extent(sigma):
    """Light that spreads into a tile makes its blur look weaker, never stronger."""
    sharp = np.zeros((128, 256), np.float32)
    sharp[:, :128] = 100 + 3 * np.random.default_rng(0).standard_normal((128, 128))
    sharp[:, 131:] = 255
    weak, strong = extents(cv2.GaussianBlur(sharp, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), sharp)
    assert strong == pytest.approx(sigma, rel=0.05) and weak <= 1.03 * sigma


@pytest.mark.parametrize('length', [8, 16, 24])
def test_extent_of_a_moving_edge(length):
    sharp = np.tile(np.where((np.arange(256) // 64) % 2, 200.0, 50.0).astype(np.float32), (128, 1))
    found = extents(cv2.blur(sharp, (length, 1)), sharp)
    np.testing.assert_allclose(found, length / (2 * np.sqrt(np.pi)), rtol=0.06)


def test_extent_ignores_shifts_and_tiles_without_texture(texture):
    assert not extents(texture, texture).any()
    assert not extents(2 * texture, texture).any()  # more gradient than the sharp image
    blurred = cv2.GaussianBlur(texture, (0, 0), 2)
    np.testing.assert_allclose(extents(blurred[:, 3:], texture[:, :-3]), 2, rtol=0.05)
    half = texture.copy()
    half[:, :134] = 100
    assert len(extents(half, half)) == 4
    assert len(extents(texture[:50, :70], texture[:50, :70])) == 1


def test_histogram_of_gradients():
    ramp = np.tile(3.0 * np.arange(50), (20, 1))  # a gradient of 3 everywhere
    assert blur_statistics.histogram(ramp).tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert blur_statistics.histogram(np.zeros((9, 9))).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    diagonal = ramp[:, :20] + ramp[:, :20].T  # 3·√2
    assert blur_statistics.histogram(diagonal).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_psnr_and_level(tmp_path):
    write_set(tmp_path, [(flat(110), flat(100)), (flat(120), flat(100))])
    found = blur_statistics.statistics(tmp_path)
    one, other = 20 * np.log10(255 / 10), 20 * np.log10(255 / 20)
    assert found['psnr']['mean'] == found['psnr']['50 %'] == pytest.approx((one + other) / 2)
    assert found['level']['mean'] == pytest.approx(15) and found['level']['90 %'] == pytest.approx(19)
    assert found['pairs'] == 2 and np.isnan(found['extent']['mean'])  # no texture


def test_table_and_json_of_several_sets(tmp_path, capsys):
    sharp = [np.random.default_rng(n).integers(0, 256, (140, 150, 3), dtype=np.uint8) for n in range(2)]
    strong = write_set(tmp_path / 'strong', [(cv2.GaussianBlur(image, (0, 0), 3.0), image) for image in sharp])
    none = write_set(tmp_path / 'none', [(image, image) for image in sharp])
    assert run('scripts.blur_statistics', [strong, none]) == 0
    printed = capsys.readouterr().out
    assert f'[1] {strong}: 2 pairs' in printed
    rows = {line.strip().split('  ')[0]: line.split()[-2:] for line in printed.splitlines() if line}
    assert float(rows['within an image'][1]) == 0 and float(rows['128–'][0]) > 10
    assert rows['mean'][1] == '0.00' and 2.5 < float(rows['mean'][0]) < 3.5

    no_texture = write_set(tmp_path / 'flat', [(flat(100), flat(100))])
    assert run('scripts.blur_statistics', [strong, none, no_texture, '--json']) == 0
    parsed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert list(parsed) == [strong, none, no_texture]
    assert parsed[strong]['extent']['mean'] == pytest.approx(3, rel=0.1)
    assert parsed[none]['psnr']['mean'] == 100 and parsed[no_texture]['extent']['mean'] is None
    assert sum(parsed[strong]['sharp_gradients'].values()) == pytest.approx(100)


@pytest.mark.parametrize(
    ('arguments', 'status', 'text'),
    [
        (['row'], 1, 'row/input/0.png: found 20x1 pixels; allowed: 2x2 or more'),
        (['row', '--workers', '1'], 1, 'row/input/0.png: found 20x1 pixels; allowed: 2x2 or more'),
        (['nowhere'], 1, 'nowhere/input: '),
        (['row', '--workers', '-1'], 2, 'found -1; allowed: 0 or more'),
    ],
)
def test_mistakes_are_sentences(tmp_path, monkeypatch, capsys, arguments, status, text):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / 'row', [(flat(0, (1, 20, 3)),) * 2])
    assert run('scripts.blur_statistics', arguments) == status
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_program(tmp_path):
    folder = write_set(tmp_path / 'set', [(flat(110), flat(100))])
    command = [sys.executable, str(ROOT / 'scripts' / 'blur_statistics.py'), 'set', '--json']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)['set']['pairs'] == 1 and folder.endswith('set')
