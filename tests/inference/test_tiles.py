import numpy as np
import pytest
import torch

from basicsr.inference.tiles import checked_overlap, restore_tiles

SIZES = [(1, 1), (8, 8), (5, 40), (24, 17), (33, 50)]
TILES = [(8, 0), (8, 3), (8, 7), (16, 0), (16, 5), (16, 8), (16, 15), (24, 12), (64, 10)]


def parts(length, tile, overlap):
    """Of an axis: as far apart as the overlap allows, the last ends where the image does."""
    if length <= tile:
        return [(0, length)]
    found = [(0, tile)]
    while found[-1][1] < length:
        start = min(found[-1][1] - overlap, length - tile)
        found.append((start, start + tile))
    return found


def weight(position, length, overlap):
    """Of a pixel in its tile: a linear ramp from both ends, 1 in the middle."""
    return min((position + 1) / (overlap + 1), (length - position) / (overlap + 1), 1)


def blended(value, size, tile, overlap):
    """The mean over the tiles that cover a pixel, by definition; `value(top, left)` is all of a tile."""
    H, W = size
    total, weights = np.zeros(size), np.zeros(size)
    for top, bottom in parts(H, tile, overlap):
        for left, right in parts(W, tile, overlap):
            for y in range(top, bottom):
                for x in range(left, right):
                    w = weight(y - top, bottom - top, overlap) * weight(x - left, right - left, overlap)
                    total[y, x] += w * value(top, left)
                    weights[y, x] += w
    return total / weights


def coordinates(size, dtype=torch.float32):
    """Two channels that tell every pixel's row and column."""
    return torch.stack(torch.meshgrid(*(torch.arange(n, dtype=dtype) for n in size), indexing='ij'))[None]


def some_value(top, left):
    return float(np.sin(1 + 3 * top + 7 * left))


def constant_per_tile(x_BCHW):
    top, left = x_BCHW[0, :, 0, 0].tolist()
    return torch.full_like(x_BCHW, some_value(top, left))


@pytest.mark.parametrize(('tile', 'overlap'), TILES)
@pytest.mark.parametrize('size', SIZES)
def test_blending_by_definition(size, tile, overlap):
    found = restore_tiles(constant_per_tile, coordinates(size), tile, overlap)
    expected = torch.from_numpy(blended(some_value, size, tile, overlap)).float()
    torch.testing.assert_close(found[0, 0], expected, rtol=0, atol=2e-6)
    assert torch.equal(found[0, 0], found[0, 1])


@pytest.mark.parametrize(('tile', 'overlap'), TILES)
@pytest.mark.parametrize('size', SIZES)
def test_where_the_tiles_are(size, tile, overlap):
    """Once each, as far apart as the overlap allows."""
    places = []

    def note(x_BCHW):
        (top, left), (bottom, right) = x_BCHW[0, :, 0, 0].int().tolist(), x_BCHW[0, :, -1, -1].int().tolist()
        assert x_BCHW.shape[-2:] == (bottom + 1 - top, right + 1 - left)
        places.append(((top, bottom + 1), (left, right + 1)))
        return x_BCHW

    restore_tiles(note, coordinates(size), tile, overlap)
    rows, columns = (parts(length, tile, overlap) for length in size)
    assert sorted(places) == [(row, column) for row in rows for column in columns]


def test_images_of_a_batch_and_other_channels_out():
    """Six channels in, three out, as with two views of a dual-pixel sensor."""
    x = torch.rand(3, 6, 40, 30)
    found = restore_tiles(lambda tile: tile[:, :3] - tile[:, 3:], x, 16, 5)
    torch.testing.assert_close(found, x[:, :3] - x[:, 3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ('dtype', 'result'),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_sums_are_in_single_precision_at_least(dtype, result):
    size, tile, overlap = (40, 30), 16, 9
    found = restore_tiles(lambda x: constant_per_tile(x).to(dtype), coordinates(size), tile, overlap)
    assert found.dtype == result

    def rounded(top, left):
        return float(torch.tensor(some_value(top, left), dtype=torch.float64).to(dtype))

    expected = torch.from_numpy(blended(rounded, size, tile, overlap))
    torch.testing.assert_close(found[0, 0].double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ('tile', 'overlap', 'multiple', 'outcome'),
    [
        *((tile, 0, 8, f'tile: found {tile}; allowed: a positive multiple of 8') for tile in (0, -8, 4, 12)),
        *(
            (64, overlap, 8, f'tile_overlap: found {overlap}; allowed: 0 to 63, less than the tile')
            for overlap in (-1, 64, 65)
        ),
        *(
            (tile, overlap, multiple, overlap)
            for tile, overlap, multiple in ((8, 0, 8), (64, 63, 8), (12, 5, 6))
        ),
        *((tile, None, 8, default) for tile, default in ((8, 4), (16, 8), (64, 32), (512, 32))),
    ],
)
def test_allowed_overlaps_and_the_default(tile, overlap, multiple, outcome):
    if isinstance(outcome, int):
        assert checked_overlap(tile, overlap, multiple) == outcome
    else:
        with pytest.raises(ValueError, match=f'^{outcome}$'):
            checked_overlap(tile, overlap, multiple)
