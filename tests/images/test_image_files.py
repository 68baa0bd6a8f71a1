import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.PngImagePlugin
import pytest
from PIL import ImageCms

from basicsr.images import reader
from basicsr.images.listing import left_alone, list_images, output_names
from basicsr.images.reader import read_image
from basicsr.images.writer import write_png
from basicsr.utils.errors import ImageFileError

RNG = np.random.default_rng(0)
GREY = cv2.resize(RNG.integers(0, 256, (4, 6), np.uint8), (30, 20), interpolation=cv2.INTER_CUBIC)
RGB = cv2.resize(RNG.integers(0, 256, (4, 6, 3), np.uint8), (30, 20), interpolation=cv2.INTER_CUBIC)
RGBA = np.dstack([RGB, GREY])
GREY_ALPHA = np.dstack([GREY, 255 - GREY])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
GREY_PROFILE = SRGB[:16] + b'GRAY' + SRGB[20:]


def pillow(pixels, mode=None):
    image = PIL.Image.fromarray(pixels)
    return image.convert(mode) if mode else image


def deep(pixels):
    return pixels.astype(np.uint16) * 257 - (pixels > 9)


def refusal(path, act=read_image):
    with pytest.raises(ImageFileError) as caught:
        act(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert '\n' not in sentence
    return sentence


# Reading


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tif', '.webp', '.PNG', '.TIFF'])
@pytest.mark.parametrize('pixels', [GREY, RGB], ids=['grey', 'rgb'])
def test_lossless_files_are_read_exactly(tmp_path, suffix, pixels):
    path = tmp_path / f'Grüße 图{suffix}'
    pillow(pixels).save(path, **({'lossless': True} if suffix == '.webp' else {}))
    expected = np.dstack([pixels] * 3) if suffix == '.webp' and pixels.ndim == 2 else pixels  # WebP has no grey
    found = read_image(path).pixels
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('pixels', [GREY, RGB, RGBA], ids=['grey', 'rgb', 'rgba'])
def test_all_16_bits_are_read(tmp_path, suffix, pixels):
    bgr = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    path = tmp_path / f'a{suffix}'
    path.write_bytes(cv2.imencode(suffix, deep(np.ascontiguousarray(bgr)))[1].tobytes())
    found = read_image(path).pixels
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, deep(pixels))


@pytest.mark.parametrize('grey', [True, False])
def test_jpeg(tmp_path, grey):
    pixels = GREY if grey else RGB
    pillow(pixels).save(tmp_path / 'a.jpg', quality=95, **({} if grey else {'subsampling': 0}))
    found = read_image(tmp_path / 'a.jpg').pixels
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).mean() < 4


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    pillow(RGB, 'CMYK').save(tmp_path / 'a.jpg', quality=95, icc_profile=SRGB[:16] + b'CMYK' + SRGB[20:])
    image = read_image(tmp_path / 'a.jpg')
    assert np.abs(image.pixels.astype(int) - RGB).mean() < 4
    write_png(tmp_path / 'b.png', image.pixels, image.icc_profile)  # whose profile is not that of RGB
    assert read_image(tmp_path / 'b.png').icc_profile is None


def test_palettes_bits_and_transparency(tmp_path):
    def read(image, suffix='.png', **options):
        image.save(tmp_path / f'a{suffix}', **options)
        return read_image(tmp_path / f'a{suffix}').pixels

    palette = pillow(RGB).quantize(16)
    np.testing.assert_array_equal(read(palette), np.asarray(palette.convert('RGB')))
    alpha = read(palette, transparency=3)[..., 3]
    np.testing.assert_array_equal(alpha, np.where(np.asarray(palette) == 3, 0, 255))
    bits = pillow(GREY, '1')
    np.testing.assert_array_equal(read(bits), np.asarray(bits.convert('L')))
    key = tuple(int(value) for value in RGB[0, 0])
    np.testing.assert_array_equal(
        read(pillow(RGB), transparency=key)[..., 3], np.where((RGB[0, 0] == RGB).all(-1), 0, 255)
    )
    for suffix in ('.png', '.tif'):  # OpenCV alone multiplies the colours of such a TIFF by alpha
        np.testing.assert_array_equal(read(pillow(RGBA), suffix), RGBA)
        np.testing.assert_array_equal(read(PIL.Image.fromarray(GREY_ALPHA, 'LA'), suffix), GREY_ALPHA)


def png(depth, colour_type, rows, *chunks):
    """A PNG file written out: rows of packed samples, and chunks (name, content) before them."""
    width = 8 * len(rows[0]) // (depth * {0: 1, 4: 2}[colour_type])
    header = struct.pack('>IIBBBBB', width, len(rows), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b''.join(b'\0' + bytes(row) for row in rows))
    parts = [(b'IHDR', header), *chunks, (b'IDAT', pixels), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
        for name, body in parts
    )


@pytest.mark.parametrize(
    ('depth', 'row', 'level', 'grey', 'alpha'),
    [
        (2, [0b00011011], 2, [0, 85, 170, 255], [255, 255, 0, 255]),
        (4, [0x0F, 0x37], 3, [0, 255, 51, 119], [255, 255, 0, 255]),
        (8, [0, 9, 200, 255], 9, [0, 9, 200, 255], [255, 0, 255, 255]),
        (16, [0, 1, 1, 0, 255, 255], 256, [1, 256, 65535], [65535, 0, 65535]),
    ],
)
def test_a_level_of_grey_that_is_transparent(tmp_path, depth, row, level, grey, alpha):
    (tmp_path / 'a.png').write_bytes(png(depth, 0, [row], (b'tRNS', struct.pack('>H', level))))
    found = read_image(tmp_path / 'a.png').pixels
    assert found.dtype == (np.uint16 if depth == 16 else np.uint8)
    assert found.tolist() == [[list(pair) for pair in zip(grey, alpha, strict=True)]]


def test_grey_with_alpha_of_16_bits(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(16, 4, [[0, 1, 255, 255, 2, 3, 0, 0]]))
    assert read_image(tmp_path / 'a.png').pixels.tolist() == [[[1, 65535], [515, 0]]]


def tiff(pixels, **tags):
    """A TIFF file of 16 bits written out: (H, W, samples) in one strip, or (planes, H, W) in one for each."""
    planes = tags.get('planar') == 2
    samples, (height, width) = (
        (len(pixels), pixels.shape[1:]) if planes else (pixels.shape[2], pixels.shape[:2])
    )
    strips = [part.astype('<u2').tobytes() for part in (pixels if planes else [pixels])]
    entries = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [16] * samples), 259: (3, [1]),
        262: (3, [tags.get('photometric', 2 if samples > 2 else 1)]), 273: (4, [0] * len(strips)),
        277: (3, [samples]), 278: (4, [height]), 279: (4, [len(strip) for strip in strips]),
        284: (3, [tags.get('planar', 1)]), **({338: (3, [tags['extra']])} if 'extra' in tags else {}),
    }  # fmt: skip
    place = 8 + 2 + 12 * len(entries) + 4
    sizes = {3: 2, 4: 4}
    place += sum(
        sizes[kind] * len(values) for kind, values in entries.values() if sizes[kind] * len(values) > 4
    )
    entries[273] = (4, [place + sum(map(len, strips[:number])) for number in range(len(strips))])
    directory, beyond = struct.pack('<H', len(entries)), b''
    start = 8 + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in entries.items():
        packed = struct.pack(f'<{len(values)}{"H" if kind == 3 else "I"}', *values)
        if len(packed) > 4:
            beyond, packed = beyond + packed, struct.pack('<I', start + len(beyond))
        directory += struct.pack('<HHI', tag, kind, len(values)) + packed.ljust(4, b'\0')
    return b'II*\0' + struct.pack('<I', 8) + directory + b'\0' * 4 + beyond + b''.join(strips)


def test_what_the_samples_of_a_tiff_of_16_bits_mean(tmp_path):
    path, grey, rgb, rgba = tmp_path / 'a.tif', deep(GREY)[..., None], deep(RGB), deep(RGBA)

    def read(*given, **tags):
        path.write_bytes(tiff(*given, **tags))
        found = read_image(path).pixels
        assert found.dtype == np.uint16
        return found

    np.testing.assert_array_equal(read(rgb), rgb)
    np.testing.assert_array_equal(read(grey), grey[..., 0])
    np.testing.assert_array_equal(read(grey, photometric=0), 65535 - grey[..., 0])  # 0 is white
    np.testing.assert_array_equal(read(rgba, extra=2), rgba)
    np.testing.assert_array_equal(read(rgba, extra=0), rgb)  # the fourth is no alpha
    multiplied = rgba.copy()
    multiplied[..., :3] = (rgb * (rgba[..., 3:] / 65535)).round()
    found = read(multiplied, extra=1).astype(int)
    np.testing.assert_array_equal(found[..., 3], rgba[..., 3])
    error = np.abs(found[..., :3] - rgb) * (rgba[..., 3:] / 65535)  # of rounding twice
    assert error.max() <= 1.01

    path.write_bytes(tiff(np.moveaxis(rgb, 2, 0), planar=2))
    assert 'has 16-bit channels in separate planes; allowed: 8 or 16 bits' in refusal(path)
    path.write_bytes(tiff(rgba[..., :2], photometric=1, extra=2))
    refusal(path)


def test_a_cmyk_tiff_is_not_taken_for_rgba(tmp_path):
    pillow(RGB, 'CMYK').save(tmp_path / 'a.tif')
    np.testing.assert_allclose(read_image(tmp_path / 'a.tif').pixels.astype(int), RGB, atol=1)


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.webp'])
def test_the_first_of_several_frames(tmp_path, suffix):
    others = {'save_all': True, 'append_images': [pillow(255 - RGB)]}
    pillow(RGB).save(tmp_path / f'a{suffix}', **others, **({'lossless': True} if suffix == '.webp' else {}))
    np.testing.assert_array_equal(read_image(tmp_path / f'a{suffix}').pixels, RGB)


def test_the_jpeg_of_phones_that_holds_two_pictures(tmp_path):
    pillow(RGB).save(
        tmp_path / 'a.jpg',
        format='MPO',
        save_all=True,
        append_images=[pillow(255 - RGB)],
        quality=95,
        subsampling=0,
    )
    assert np.abs(read_image(tmp_path / 'a.jpg').pixels.astype(int) - RGB).mean() < 4


# Where the corner A, stored first, and its neighbour B in the row belong, from the EXIF standard: row and
# column of A as 0 or -1, and whether a stored row stays a row.
CORNERS = {
    1: (0, 0, True),
    2: (0, -1, True),
    3: (-1, -1, True),
    4: (-1, 0, True),
    5: (0, 0, False),
    6: (0, -1, False),
    7: (-1, -1, False),
    8: (-1, 0, False),
}


@pytest.mark.parametrize('orientation', CORNERS)
@pytest.mark.parametrize('kind', ['png', 'webp', 'tif', 'tif16', 'png16'])
def test_pixels_come_upright(tmp_path, orientation, kind):
    stored = GREY if kind in ('tif16', 'tif') else RGB
    path = tmp_path / f'a.{kind.removesuffix("16")}'
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    if kind.startswith('tif'):
        stored = deep(stored) if kind == 'tif16' else stored
        pillow(stored).save(path, tiffinfo={274: orientation})
    elif kind == 'png16':
        stored = deep(stored)
        write_png(path, stored)
        body = b'eXIf' + exif.tobytes().removeprefix(b'Exif\0\0')
        chunk = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
        path.write_bytes(path.read_bytes()[:33] + chunk + path.read_bytes()[33:])
    else:
        pillow(stored).save(path, exif=exif, **({'lossless': True} if kind == 'webp' else {}))

    upright = read_image(path).pixels
    row, column, stays_a_row = CORNERS[orientation]
    first = np.flip(upright, [axis for axis, end in ((0, row), (1, column)) if end])
    np.testing.assert_array_equal(first if stays_a_row else first.swapaxes(0, 1), stored)


@pytest.mark.parametrize('orientation', CORNERS)
def test_upright_jpeg_agrees_with_pillow(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    pillow(RGB).save(tmp_path / 'a.jpg', exif=exif)
    with PIL.Image.open(tmp_path / 'a.jpg') as image:
        expected = np.asarray(PIL.ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(tmp_path / 'a.jpg').pixels, expected)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('exif', [b'MM\0*\0\0\0\xff nonsense', b'nonsense here', bytes(40), b'II'])
@pytest.mark.parametrize('suffix', ['.png', '.webp', '.jpg'])
def test_broken_exif_does_not_cost_the_image(tmp_path, suffix, exif):
    pillow(RGB).save(tmp_path / f'a{suffix}', exif=b'Exif\0\0' + exif)
    pillow(RGB).save(tmp_path / f'b{suffix}')
    found, expected = (read_image(tmp_path / f'{name}{suffix}').pixels for name in 'ab')
    np.testing.assert_array_equal(found, expected)


def test_large_profiles_and_texts(tmp_path):
    profile = SRGB + RNG.bytes(1_500_000)
    write_png(tmp_path / 'a.png', RGB, profile)
    assert read_image(tmp_path / 'a.png').icc_profile == profile
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text('long', 'x' * 3_000_000, zip=True)
    pillow(RGB).save(tmp_path / 'b.png', pnginfo=text)
    np.testing.assert_array_equal(read_image(tmp_path / 'b.png').pixels, RGB)
    assert PIL.PngImagePlugin.MAX_TEXT_CHUNK == PIL.ImageFile.SAFEBLOCK


def test_what_does_not_fit_into_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_png(tmp_path / 'a.png', RGB)
    needed = 10 * RGB.size // 3  # four bytes of a pixel in Pillow, and twice three of the array
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(reader, 'free_memory', lambda device, free=free: free)
        if fits:
            np.testing.assert_array_equal(read_image(tmp_path / 'a.png').pixels, RGB)
        else:
            assert refusal(tmp_path / 'a.png').endswith('does not fit into memory')
    # A palette becomes colours first.
    palette = pillow(RGB).quantize(16)
    palette.save(tmp_path / 'p.png')
    monkeypatch.setattr(reader, 'free_memory', lambda device: 13 * palette.width * palette.height)
    assert read_image(tmp_path / 'p.png').pixels.shape == RGB.shape
    monkeypatch.setattr(reader, 'free_memory', lambda device: 13 * palette.width * palette.height - 1)
    assert refusal(tmp_path / 'p.png').endswith('does not fit into memory')
    # Nor is a file read that is larger.
    monkeypatch.setattr(reader, 'free_memory', lambda device: 1000)
    with (tmp_path / 'b.png').open('wb') as file:
        file.truncate(1001)
    assert refusal(tmp_path / 'b.png').endswith('does not fit into memory')
    monkeypatch.undo()
    with (tmp_path / 'b.png').open('wb') as file:
        file.truncate(1 << 42)  # takes no room on the disk
    assert refusal(tmp_path / 'b.png').endswith('does not fit into memory')


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.png')
    assert 'cannot be read: it is no regular file' in refusal(tmp_path / 'a.png')


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_a_large_photograph_is_no_bomb_and_a_bomb_is_refused(tmp_path, monkeypatch, recwarn, suffix):
    path = tmp_path / f'a{suffix}'
    pillow(RGB).save(path)
    monkeypatch.setattr(PIL.Image, 'MAX_IMAGE_PIXELS', 10)  # as 200 megapixels would be for Pillow's own limit
    np.testing.assert_array_equal(read_image(path).pixels, RGB)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10 and not recwarn.list
    monkeypatch.setattr(reader, 'MAX_PIXELS', 599)
    assert 'has 30×20 pixels; allowed: 599' in refusal(path)


# Refusing


def test_what_is_not_an_image(tmp_path):
    path = tmp_path / 'a.png'
    assert 'No such file' in refusal(path)
    path.write_bytes(b'')
    assert 'is empty' in refusal(path)
    path.write_text('hello')
    assert 'is not an image' in refusal(path)
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')  # Pillow would run Ghostscript
    assert 'is not an image' in refusal(path)
    assert 'cannot be read' in refusal(tmp_path)


@pytest.mark.parametrize('pixels', [GREY.astype(np.float32), GREY.astype(np.int32)], ids=['float', 'int32'])
def test_tiff_with_other_numbers(tmp_path, pixels):
    pillow(pixels).save(tmp_path / 'a.tif')
    assert 'allowed: 8 or 16 bits' in refusal(tmp_path / 'a.tif')


def test_float_rgb_tiff(tmp_path):
    (tmp_path / 'a.tif').write_bytes(cv2.imencode('.tif', RGB.astype(np.float32))[1].tobytes())
    assert '8 or 16 bits' in refusal(tmp_path / 'a.tif')


@pytest.mark.parametrize('part', [0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize('kind', ['jpg', 'progressive.jpg', 'png', 'bmp', 'webp', 'tif', '16.png', '16.tif'])
def test_an_image_cut_short_is_not_half_an_image(tmp_path, kind, part):
    large = np.tile(RNG.integers(0, 256, (64, 64, 3), np.uint8), (2, 2, 1))
    path = tmp_path / f'a.{kind}'
    if kind.startswith('16'):
        path.write_bytes(cv2.imencode(path.suffix, deep(large))[1].tobytes())
    else:
        pillow(large).save(path, **({'progressive': True} if kind.startswith('prog') else {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    refusal(path)


def test_damage_inside_a_png(tmp_path):
    write_png(tmp_path / 'a.png', RGB)
    content = bytearray((tmp_path / 'a.png').read_bytes())
    content[len(content) // 2] ^= 0x10
    (tmp_path / 'a.png').write_bytes(content)
    assert 'is damaged' in refusal(tmp_path / 'a.png')


# Writing


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pixels', [GREY, RGB, RGBA], ids=['grey', 'rgb', 'rgba'])
def test_png_round_trip(tmp_path, bits, pixels):
    pixels = deep(pixels) if bits == 16 else pixels
    profile = GREY_PROFILE if pixels.ndim == 2 else SRGB
    write_png(tmp_path / 'ö.png', pixels[::-1], profile)  # a view, not contiguous
    image = read_image(tmp_path / 'ö.png')
    np.testing.assert_array_equal(image.pixels, pixels[::-1])
    assert image.pixels.dtype == pixels.dtype
    assert image.icc_profile == profile
    assert [file.name for file in tmp_path.iterdir()] == ['ö.png']


def test_grey_with_alpha_stays_so_with_8_bits_and_becomes_colour_with_16(tmp_path):
    write_png(tmp_path / 'a.png', GREY_ALPHA[::-1], GREY_PROFILE)
    image = read_image(tmp_path / 'a.png')
    np.testing.assert_array_equal(image.pixels, GREY_ALPHA[::-1])
    assert image.icc_profile == GREY_PROFILE
    write_png(tmp_path / 'a.png', deep(GREY_ALPHA), GREY_PROFILE)
    image = read_image(tmp_path / 'a.png')
    np.testing.assert_array_equal(image.pixels, deep(GREY_ALPHA)[..., [0, 0, 0, 1]])
    assert image.icc_profile is None  # it is one of grey


def test_what_no_library_writes_is_a_sentence(tmp_path):
    wide = np.zeros((1, 1_000_001, 3), np.uint8)
    assert 'writes no PNG of 1000001×1 pixels' in refusal(
        tmp_path / 'a.png', lambda path: write_png(path, wide)
    )
    assert not list(tmp_path.iterdir())


def test_png_holds_what_pillow_sees(tmp_path):
    write_png(tmp_path / 'a.png', RGB, SRGB)
    with PIL.Image.open(tmp_path / 'a.png') as image:
        image.verify()
        assert image.info['icc_profile'] == SRGB
    write_png(tmp_path / 'a.png', GREY, SRGB)  # not a profile for grey
    with PIL.Image.open(io.BytesIO((tmp_path / 'a.png').read_bytes())) as image:
        assert 'icc_profile' not in image.info


@pytest.mark.parametrize(
    'pixels',
    [RGB.astype(np.float32), RGB.astype(np.int64), RGB[..., :1], RGB[:0], RGB[None], RGB.astype(bool)],
    ids=lambda pixels: f'{pixels.shape} {pixels.dtype}',
)
def test_other_arrays_are_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match=r'image: found an array of .*; allowed: '):
        write_png(tmp_path / 'a.png', pixels)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path):
    assert 'cannot be written: ' in refusal(tmp_path / 'none' / 'a.png', lambda path: write_png(path, RGB))


# Names


def test_list_images_in_natural_order(tmp_path):
    for name in ('a10.png', 'a2.PNG', 'a1.jpeg', 'b.txt', '.hidden.png', 'c.WebP', 'README'):
        (tmp_path / name).touch()
    (tmp_path / 'folder.png').mkdir()
    assert [path.name for path in list_images(tmp_path)] == ['a1.jpeg', 'a2.PNG', 'a10.png', 'c.WebP']
    assert list_images(str(tmp_path / 'README')) == [tmp_path / 'README']  # named, so meant


def test_a_link_that_nobody_can_follow_is_one_image_that_cannot_be_read(tmp_path):
    write_png(tmp_path / 'a.png', RGB)
    (tmp_path / 'b.png').symlink_to('x' * 300)
    assert [path.name for path in list_images(tmp_path)] == ['a.png', 'b.png']
    assert 'cannot be read: File name too long' in refusal(tmp_path / 'b.png')


def test_list_images_of_nothing(tmp_path):
    assert 'no such file or folder' in refusal(tmp_path / 'none', list_images)
    assert 'has no images in it; allowed: png, jpg' in refusal(tmp_path, list_images)
    assert left_alone(tmp_path) == ''
    (tmp_path / 'a folder').mkdir()
    for name in ('1.HEIC', '2.heic', 'notes', '.hidden.heic'):
        (tmp_path / name).touch()
    others = '2 .heic files, 1 file, 1 folder'
    assert f'has no images in it (but {others}); allowed: png' in refusal(tmp_path, list_images)
    (tmp_path / 'a.jfif').touch()
    assert left_alone(tmp_path) == others and list_images(tmp_path) == [tmp_path / 'a.jfif']
    assert left_alone(tmp_path / 'a.jfif') == ''
    for number in range(20):
        (tmp_path / f'scan.{number:03}').touch()
    said = left_alone(tmp_path).split(', ')
    assert len(said) == 9 and '2 .heic files' in said and said[-1] == '15 more'


@pytest.mark.parametrize(
    ('inputs', 'outputs'),
    [
        (['a.jpg', 'b.JPG'], ['a.png', 'b.png']),
        (['a.jpg', 'a.png', 'b.png'], ['a.jpg.png', 'a.png.png', 'b.png']),
        (['A.jpg', 'a.png'], ['A.jpg.png', 'a.png.png']),
        (['a.jpg', 'A.JPG'], ['a.jpg.png', 'A.JPG-2.png']),
        (['x/a.jpg', 'y/a.jpg'], ['a.jpg.png', 'a.jpg-2.png']),
        (['a.jpg', 'a.jpg.png', 'a.png'], ['a.jpg.png', 'a.jpg-2.png', 'a.png.png']),
        (
            ['ä.png', 'a\u0308.jpg'],
            ['ä.png.png', 'a\u0308.jpg.png'],
        ),  # composed or not, one name to some systems
        (['a', 'a.tar.png'], ['a.png', 'a.tar.png']),
        (['a', 'a.png'], ['a.png', 'a.png.png']),
        (['a.png', 'a.png'], ['a.png']),
        ([250 * 'a' + '.jpg', 250 * 'a' + '.png'], [247 * 'a' + '.jpg.png', 247 * 'a' + '.png.png']),
        (
            ['x/' + 125 * 'ä' + '.tif', 'y/' + 125 * 'ä' + '.tif'],
            [123 * 'ä' + '.tif.png', 122 * 'ä' + '.tif-2.png'],
        ),
    ],
)
def test_output_names(inputs, outputs):
    names = output_names([Path(name) for name in inputs])
    assert list(names.values()) == outputs
    assert list(names) == list(dict.fromkeys(Path(name) for name in inputs))
