"""What is said of the blur of a set, against closed forms."""

import json

import cv2
import numpy as np
import pytest

from scripts import blur_statistics


@pytest.fixture(scope='module')
def texture():
    """Grey, (256, 384), with detail of all sizes."""
    noise = np.random.default_rng(0).normal(0, 1, (256, 384)).astype(np.float32)
    layers = [cv2.GaussianBlur(noise, (0, 0), size) * size for size in (1, 2, 4, 8)]
    return 128 + 40 * sum(layers).astype(np.float32)


def write_set(folder, count=2, size=3.0):
    for number in range(count):
        sharp = np.random.default_rng(number).integers(0, 256, (140, 150, 3), dtype=np.uint8)
        blurred = cv2.GaussianBlur(sharp, (0, 0), size) if size else sharp
        for role, image in (('input', blurred), ('target', sharp)):
            (folder / role).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / role / f'{number}.png'), image)
    return folder


@pytest.mark.parametrize('sigma', [0.5, 1.0, 2.3, 6.0])
def test_the_extent_of_a_gaussian_is_its_own(texture, sigma):
    blurred = cv2.GaussianBlur(texture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    found = blur_statistics.extents(blurred, texture)
    assert len(found) == 6
    np.testing.assert_allclose(found, sigma, rtol=0.03)


@pytest.mark.parametrize('sigma', [1.0, 2.0, 4.0])
def test_a_strong_edge_beside_a_tile_gives_it_no_more_than_the_true_extent(sigma):
    """What spreads into a tile makes its blur look weaker, never stronger."""
    sharp = np.zeros((128, 256), np.float32)
    sharp[:, :128] = 100 + 3 * np.random.default_rng(0).standard_normal((128, 128))
    sharp[:, 131:] = 255
    blurred = cv2.GaussianBlur(sharp, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    weak, strong = blur_statistics.extents(blurred, sharp)
    assert strong == pytest.approx(sigma, rel=0.05) and weak <= 1.03 * sigma


@pytest.mark.parametrize('length', [8, 16, 24])
def test_the_extent_of_an_edge_that_moves(length):
    edges = np.where((np.arange(256) // 64) % 2, 200.0, 50.0).astype(np.float32)
    sharp = np.tile(edges, (128, 1))
    found = blur_statistics.extents(cv2.blur(sharp, (length, 1)), sharp)
    np.testing.assert_allclose(found, length / (2 * np.sqrt(np.pi)), rtol=0.06)


def test_no_blur_has_no_extent_and_a_shift_changes_nothing(texture):
    assert not blur_statistics.extents(texture, texture).any()
    blurred = cv2.GaussianBlur(texture, (0, 0), 2)
    shifted = blur_statistics.extents(blurred[:, 3:], texture[:, :-3])
    np.testing.assert_allclose(shifted, 2, rtol=0.05)
    assert blur_statistics.extents(2 * texture, texture).max() == 0  # more gradient than there was


def test_tiles_without_texture_are_left_out(texture):
    half = texture.copy()
    half[:, :134] = 100
    assert len(blur_statistics.extents(half, half)) == 4
    assert len(blur_statistics.extents(texture[:50, :70], texture[:50, :70])) == 1


def test_the_histogram_is_that_of_neighbours():
    ramp = np.tile(3.0 * np.arange(50), (20, 1))  # a gradient of 3 everywhere
    assert blur_statistics.histogram(ramp).tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert blur_statistics.histogram(np.zeros((9, 9))).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    diagonal = ramp[:, :20] + ramp[:, :20].T  # 3·√2
    assert blur_statistics.histogram(diagonal).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_the_psnr_of_a_set(tmp_path):
    for role, levels in (('input', (110, 120)), ('target', (100, 100))):
        (tmp_path / role).mkdir()
        for number, level in enumerate(levels):
            cv2.imwrite(str(tmp_path / role / f'{number}.png'), np.full((20, 20, 3), level, np.uint8))
    found = blur_statistics.statistics(tmp_path)
    one, other = 20 * np.log10(255 / 10), 20 * np.log10(255 / 20)
    assert found['psnr']['mean'] == found['psnr']['50 %'] == pytest.approx((one + other) / 2)
    assert found['level']['mean'] == pytest.approx(15) and found['level']['90 %'] == pytest.approx(19)
    assert found['pairs'] == 2 and np.isnan(found['extent']['mean'])  # nothing to measure blur by


def test_sets_stand_side_by_side(tmp_path, capsys):
    sets = [str(write_set(tmp_path / name, size=size)) for name, size in (('strong', 3.0), ('none', 0))]
    assert blur_statistics.main(sets) == 0
    printed = capsys.readouterr().out
    assert f'[1] {sets[0]}: 2 pairs' in printed
    rows = {line.strip().split('  ')[0]: line.split()[-2:] for line in printed.splitlines() if line}
    assert float(rows['within an image'][1]) == 0 and float(rows['128–'][0]) > 10
    assert rows['mean'][1] == '0.00' and 2.5 < float(rows['mean'][0]) < 3.5

    blur_statistics.main([*sets, '--json'])
    parsed = json.loads(capsys.readouterr().out)
    assert list(parsed) == sets
    assert parsed[sets[0]]['extent']['mean'] == pytest.approx(3, rel=0.1)
    assert parsed[sets[1]]['psnr']['mean'] == 100
    assert sum(parsed[sets[0]]['sharp_gradients'].values()) == pytest.approx(100)


def test_where_there_is_nothing_to_measure_blur_by_json_has_null(tmp_path, capsys):
    for role in ('input', 'target'):
        (tmp_path / role).mkdir()
        cv2.imwrite(str(tmp_path / role / 'flat.png'), np.full((20, 20, 3), 100, np.uint8))
    blur_statistics.main([str(tmp_path), '--json'])
    (values,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail).values()
    assert values['extent']['mean'] is None and values['psnr']['mean'] == 100


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_of_one_row_is_a_sentence(tmp_path, capsys, workers):
    for role in ('input', 'target'):
        (tmp_path / role).mkdir()
        cv2.imwrite(str(tmp_path / role / 'row.png'), np.zeros((1, 20, 3), np.uint8))
    with pytest.raises(SystemExit) as refusal:
        blur_statistics.main([str(tmp_path), '--workers', str(workers)])
    assert refusal.value.code == 1
    assert 'row.png: found 20x1 pixels; allowed: 2x2 or more' in capsys.readouterr().err


def test_ctrl_c(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(blur_statistics, 'extents', interrupted)
    assert blur_statistics.main([str(write_set(tmp_path))]) == 130


@pytest.mark.parametrize(
    ('arguments', 'status', 'text'),
    [
        (['nowhere'], 1, 'cannot be read as a folder'),
        (['x', '--workers', '-1'], 2, 'found -1; allowed: 0 or more'),
    ],
)
def test_mistakes_are_sentences(tmp_path, monkeypatch, capsys, arguments, status, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        blur_statistics.main(arguments)
    assert refusal.value.code == status and text in capsys.readouterr().err
