"""Writing PNG files."""

import struct

import numpy as np
import PIL.Image
import pytest
from image_files import GREY, KINDS, RGB, chunk, deep, png, read, refusal
from PIL import ImageCms

from basicsr.images.reader import decode_image, read_image
from basicsr.images.writer import write_png

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
GREY_PROFILE = SRGB[:16] + b'GRAY' + SRGB[20:]


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('kind', KINDS)
def test_round_trip(tmp_path, bits, kind):
    pixels = deep(KINDS[kind]) if bits == 16 else KINDS[kind]
    profile = GREY_PROFILE if kind.startswith('grey') else SRGB
    write_png(tmp_path / 'ö.png', pixels[::-1], profile)  # a view, not contiguous
    image = read_image(tmp_path / 'ö.png')
    np.testing.assert_array_equal(image.pixels, pixels[::-1])
    assert image.pixels.dtype == pixels.dtype
    assert image.icc_profile == profile
    assert [file.name for file in tmp_path.iterdir()] == ['ö.png']
    with PIL.Image.open(tmp_path / 'ö.png') as other:  # another reader agrees
        other.load()
        assert other.info['icc_profile'] == profile
        if bits == 8:
            np.testing.assert_array_equal(np.asarray(other), pixels[::-1])


def test_a_profile_for_another_colour_space_is_left_out(tmp_path):
    write_png(tmp_path / 'a.png', GREY, SRGB)
    assert read_image(tmp_path / 'a.png').icc_profile is None
    write_png(tmp_path / 'a.png', RGB, SRGB[:16] + b'CMYK' + SRGB[20:])
    assert read_image(tmp_path / 'a.png').icc_profile is None


def test_the_chunks_of_a_colour_space_survive(tmp_path):
    chunks = [
        chunk(b'cHRM', struct.pack('>8I', *range(30000, 30008))),
        chunk(b'gAMA', struct.pack('>I', 100000)),
        chunk(b'cICP', bytes([9, 16, 0, 1])),
        chunk(b'sRGB', b'\0'),
    ]
    for pixels in (RGB, deep(GREY)):
        image = decode_image(png(pixels, *chunks, chunk(b'tEXt', b'Comment\0hello')), 'a')
        write_png(tmp_path / 'a.png', image.pixels, image.icc_profile, image.colour_chunks)
        data = (tmp_path / 'a.png').read_bytes()
        assert b''.join(chunks) in data and b'hello' not in data
        np.testing.assert_array_equal(read(tmp_path / 'a.png'), pixels)


@pytest.mark.parametrize(
    'pixels',
    [RGB.astype(np.float32), RGB.astype(np.int64), RGB[..., :1], RGB[:0], RGB[None], RGB.astype(bool)],
    ids=lambda pixels: f'{pixels.shape} {pixels.dtype}',
)
def test_other_arrays_are_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match=r'image: found an array of .*; allowed: '):
        write_png(tmp_path / 'a.png', pixels)
    assert not list(tmp_path.iterdir())


def test_failures_are_sentences(tmp_path):
    path = tmp_path / 'none' / 'a.png'
    assert refusal(lambda: write_png(path, RGB)).startswith(f'{path}: cannot be written: ')
    wide = np.zeros((1, 1_000_001, 3), np.uint8)
    assert 'cannot be written: ' in refusal(lambda: write_png(tmp_path / 'a.png', wide))
    assert not list(tmp_path.iterdir())
