"""Crops of frames: the paper's, and properties of all."""

import numpy as np
import pytest

from basicsr.data.crops import centre_window, crop_windows, numbered


def test_the_papers_crops_of_a_720p_frame():
    assert crop_windows(720, 1280, size=512, stride=256) == [
        *((0, left, 512, 512) for left in (0, 256, 512, 768)),
        *((208, left, 512, 512) for left in (0, 256, 512, 768)),
    ]


@pytest.mark.parametrize(
    ('length', 'size', 'stride', 'starts'),
    [
        (10, 4, 2, [0, 2, 4, 6]),
        (11, 4, 2, [0, 2, 4, 6, 7]),
        (9, 4, 3, [0, 3, 5]),
        (8, 4, 4, [0, 4]),
        (5, 4, 9, [0, 1]),
        (4, 4, 2, [0]),
        (3, 4, 2, [0]),
        (1, 4, 2, [0]),
        (4, 1, 1, [0, 1, 2, 3]),
    ],
)
def test_starts_of_rows_and_columns(length, size, stride, starts):
    side = min(length, size)
    assert crop_windows(length, 1, size, stride) == [(start, 0, side, 1) for start in starts]
    assert crop_windows(1, length, size, stride) == [(0, start, 1, side) for start in starts]


@pytest.mark.parametrize('shape', [(20, 33), (16, 16), (7, 40), (7, 9), (17, 15)])
@pytest.mark.parametrize('stride', [1, 5, 8, 16])
def test_windows_cover_every_pixel_without_duplicates(shape, stride):
    covered = np.zeros(shape, int)
    windows = crop_windows(*shape, size=16, stride=stride)
    for top, left, height, width in windows:
        assert (height, width) == (min(shape[0], 16), min(shape[1], 16))
        part = covered[top : top + height, left : left + width]
        assert part.shape == (height, width)
        part += 1
    assert covered.min() >= 1
    assert len(set(windows)) == len(windows) and sorted(windows) == windows


@pytest.mark.parametrize(('size', 'stride'), [(0, 1), (1, 0), (-4, 2), (4, -2)])
def test_sizes_and_strides_below_1_are_refused(size, stride):
    with pytest.raises(ValueError, match=f'found {size} and {stride}; allowed: 1 or more'):
        crop_windows(9, 9, size, stride)


def test_names_count_row_by_row():
    assert list(numbered('a-1', crop_windows(5, 6, size=4, stride=2))) == [
        ('a-1-1', (0, 0, 4, 4)),
        ('a-1-2', (0, 2, 4, 4)),
        ('a-1-3', (1, 0, 4, 4)),
        ('a-1-4', (1, 2, 4, 4)),
    ]


def test_centre_window():
    assert centre_window(720, 1280, size=256) == (232, 512, 256, 256)
    assert centre_window(9, 6, size=4) == (2, 1, 4, 4)
    assert centre_window(3, 5, size=4) == (0, 0, 3, 4)


@pytest.mark.parametrize('stride', [204, 384, 416])
def test_the_two_rules_of_the_published_crops_give_the_same_offsets(stride):
    """DPDD: while they fit, then the last one if it is not among them. SIDD and DFWB: below the last one, then that."""
    for length in range(512, 1700):
        last = length - 512
        while_they_fit = [start for start in range(0, length, stride) if start + 512 <= length]
        if last not in while_they_fit:
            while_they_fit.append(last)
        below_the_last = [*(start for start in range(0, length, stride) if start < last), last]
        found = [window.left for window in crop_windows(512, length, size=512, stride=stride)]
        assert found == while_they_fit == below_the_last
