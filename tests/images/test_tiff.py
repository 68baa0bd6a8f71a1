"""Layouts of TIFF: samples as tifffile and Pillow write them."""

import itertools
import struct

import cv2
import numpy as np
import PIL.Image
import pytest
from image_files import GREY, KINDS, RGB, RGBA, RNG, check, deep, pillow, tiff


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('compression', [None, 'zlib'])
@pytest.mark.parametrize('separate', [False, True])
def test_every_layout(kind, compression, separate):
    if separate and kind == 'grey':
        pytest.skip('one plane')
    layouts = [{}, {'rowsperstrip': 7}, {'tile': (16, 16)}, *([{'predictor': True}] if compression else [])]
    for pixels, layout, order in itertools.product((KINDS[kind], deep(KINDS[kind])), layouts, '<>'):
        options = {**layout, 'compression': compression, 'byteorder': order, 'bigtiff': bool(layout)}
        stored = pixels
        if separate:
            stored, options['planarconfig'] = np.ascontiguousarray(np.moveaxis(pixels, 2, 0)), 'separate'
        check(tiff(stored, **options), pixels)


@pytest.mark.parametrize('compression', ['tiff_lzw', 'packbits', 'lzma', 'tiff_deflate'])
@pytest.mark.parametrize('kind', KINDS)
def test_compressions_of_bytes(kind, compression):
    pixels = KINDS[kind]
    image = PIL.Image.fromarray(pixels, 'LA') if kind == 'grey alpha' else PIL.Image.fromarray(pixels)
    check(pillow(image, 'TIFF', compression=compression), pixels)
    if kind == 'grey':
        check(pillow(deep(pixels), 'TIFF', compression=compression), deep(pixels))


def test_compressions_of_pictures():
    data = pillow(np.full((16, 16, 3), (200, 100, 50), np.uint8), 'TIFF', compression='jpeg', quality=98)
    check(data, np.full((16, 16, 3), (200, 100, 50), np.uint8), tolerance=3)
    bits = PIL.Image.fromarray(GREY).convert('1')
    for compression in ('group3', 'group4', 'tiff_ccitt'):
        check(pillow(bits, 'TIFF', compression=compression), np.asarray(bits.convert('L')))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_premultiplied_colours_are_divided_by_alpha(dtype):
    full = int(np.iinfo(dtype).max)
    straight = np.full((8, 8, 4), (full, full // 2, full // 4, full), np.int64)
    straight[:, 4:, 3] = full // 10
    straight[0, 0] = 0
    stored = straight.copy()
    stored[..., :3] = np.round(straight[..., :3] * (straight[..., 3:] / full))
    with np.errstate(invalid='ignore'):
        colours = np.nan_to_num(np.round(stored[..., :3] / (stored[..., 3:] / full))).clip(0, full)
    expected = np.concatenate([colours, stored[..., 3:]], axis=2).astype(dtype)
    check(tiff(stored.astype(dtype), extrasamples=['assocalpha']), expected)


def test_extra_samples_that_are_not_alpha_are_dropped():
    for rgba in (RGBA, deep(RGBA)):
        check(tiff(rgba, extrasamples=['unspecified']), rgba[..., :3])
        five = np.dstack([rgba, rgba[..., 0]])
        check(tiff(five, extrasamples=['unspecified', 'unassalpha']), five[..., [0, 1, 2, 4]])


def test_a_preview_is_read_if_it_is_the_only_image():
    check(tiff(RGB, subfiletype=1), RGB)


def test_white_may_be_zero():
    for pixels in (GREY, deep(GREY)):
        check(tiff(pixels, photometric='miniswhite'), np.iinfo(pixels.dtype).max - pixels)


def written_out(rows, bits, width, photometric, *tags):
    """A little-endian TIFF of packed rows in one strip; `tags` are (tag, 16-bit values)."""
    data = b''.join(rows)
    entries = {
        256: (4, width), 257: (4, len(rows)), 258: (3, bits), 259: (3, 1), 262: (3, photometric), 273: (4, 8),
        277: (3, 1), 278: (4, len(rows)), 279: (4, len(data)),
    }  # fmt: skip
    entries = {tag: (kind, 1, value) for tag, (kind, value) in entries.items()}
    data += bytes(len(data) % 2)
    for tag, values in tags:
        packed = struct.pack(f'<{len(values)}H', *values)
        entries[tag] = (3, len(values), values[0] if len(values) == 1 else 8 + len(data))
        data += packed
    directory = b''.join(struct.pack('<HHII', tag, *entries[tag]) for tag in sorted(entries))
    return (
        b'II*\0'
        + struct.pack('<I', 8 + len(data))
        + data
        + struct.pack('<H', len(entries))
        + directory
        + bytes(4)
    )


@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_few_bits_and_palettes_whose_map_holds_8_or_16_bits(bits):
    count = 1 << bits
    levels = RNG.integers(0, count, (5, 13)).astype(np.uint8)
    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]).tobytes() for row in levels]
    grey = (levels * (255 // (count - 1))).astype(np.uint8)
    check(written_out(rows, bits, 13, 1), grey)
    check(written_out(rows, bits, 13, 0), 255 - grey)
    colours = RNG.integers(0, 256, (3, count))
    for scale in (1, 256, 257):
        data = written_out(rows, bits, 13, 3, (320, (colours * scale).ravel().tolist()))
        check(data, colours.T.astype(np.uint8)[levels])


def test_palette_with_alpha():
    image = PIL.Image.fromarray(RGB).quantize(16).convert('PA')
    image.putalpha(PIL.Image.fromarray(GREY))
    check(pillow(image, 'TIFF'), np.asarray(image.convert('RGBA')))


def test_bits_in_reverse_order_and_sizes_left_out():
    reverse = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256))
    check(written_out([row.tobytes().translate(reverse) for row in GREY], 8, 30, 1, (266, [2])), GREY)
    data = written_out([row.tobytes() for row in GREY], 8, 30, 1)
    check(data.replace(struct.pack('<HHII', 279, 4, 1, 600), struct.pack('<HHII', 305, 4, 1, 600)), GREY)


def test_alpha_that_opencv_writes_without_a_tag():
    for rgba in (RGBA, deep(RGBA)):
        check(cv2.imencode('.tif', rgba[..., [2, 1, 0, 3]])[1].tobytes(), rgba)
    check(cv2.imencode('.tif', RGB[..., ::-1])[1].tobytes(), RGB)
