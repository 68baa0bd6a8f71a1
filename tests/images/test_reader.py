"""Reading image files: what must come out of each kind, for the demo and for datasets alike."""

import io
import itertools
import os
import re
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.PngImagePlugin
import pytest
import skimage.data
import tifffile
from image_files import (
    GREY,
    KINDS,
    RGB,
    RGBA,
    RNG,
    check,
    chunk,
    compressed,
    deep,
    pillow,
    png,
    read,
    refusal,
    refused,
    tiff,
)  # fmt: skip
from PIL import ImageCms

from basicsr.images import reader
from basicsr.images.reader import decode_image, read_image
from basicsr.images.writer import write_png

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
LOSSLESS = {'PNG': {}, 'BMP': {}, 'TIFF': {}, 'WEBP': {'lossless': True, 'exact': True}}
JPEG = {'quality': 98, 'subsampling': 0}

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:PIL')


# Pixels


@pytest.mark.parametrize('kind', LOSSLESS)
@pytest.mark.parametrize('pixels', [GREY, RGB, RGBA], ids=['grey', 'rgb', 'rgba'])
def test_lossless_files_are_read_exactly(kind, pixels):
    data = pillow(pixels, kind, **LOSSLESS[kind])
    if kind == 'WEBP' and pixels.ndim == 2:
        pixels = np.dstack([pixels] * 3)  # WebP has no grey
    elif kind == 'BMP' and pixels is RGBA:
        pixels = RGB  # written without a mask of alpha, which then means nothing
    check(data, pixels)


@pytest.mark.parametrize('kind', KINDS)
def test_png_of_8_and_16_bits(kind):
    pixels = KINDS[kind]
    for each in (pixels, deep(pixels), pixels[:1, :1]):
        check(png(each), each)


def test_every_level_of_16_bits_is_read():
    levels = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    rgb = np.dstack([levels, levels[::-1], levels.T])
    for suffix in ('.png', '.tif'):
        check(cv2.imencode(suffix, rgb[..., ::-1])[1].tobytes(), rgb)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'BMP'])
def test_palettes_and_single_bits(kind):
    palette, bits = PIL.Image.fromarray(RGB).quantize(16), PIL.Image.fromarray(GREY).convert('1')
    check(pillow(palette, kind), np.asarray(palette.convert('RGB')))
    check(pillow(bits, kind), np.asarray(bits.convert('L')))


def test_transparent_colours_become_alpha():
    palette = PIL.Image.fromarray(RGB).quantize(16)
    alpha = np.where(np.asarray(palette) == 3, 0, 255).astype(np.uint8)
    check(pillow(palette, 'PNG', transparency=3), np.dstack([palette.convert('RGB'), alpha]))
    for rgb in (RGB, deep(RGB)):
        alpha = np.where((rgb == rgb[0, 0]).all(-1), 0, np.iinfo(rgb.dtype).max).astype(rgb.dtype)
        key = chunk(b'tRNS', struct.pack('>HHH', *map(int, rgb[0, 0])))
        check(png(rgb, key), np.dstack([rgb, alpha]))


@pytest.mark.parametrize(
    ('depth', 'row', 'level', 'grey', 'alpha'),
    [
        (2, [0b00011011], 2, [0, 85, 170, 255], [255, 255, 0, 255]),
        (4, [0x0F, 0x37], 3, [0, 255, 51, 119], [255, 255, 0, 255]),
        (8, [0, 9, 200, 255], 9, [0, 9, 200, 255], [255, 0, 255, 255]),
        (16, [0, 1, 1, 0, 255, 255], 256, [1, 256, 65535], [65535, 0, 65535]),
    ],
)
def test_a_transparent_level_of_grey(depth, row, level, grey, alpha):
    data = png([row], chunk(b'tRNS', struct.pack('>H', level)), depth=depth)
    check(data, np.array([[*zip(grey, alpha, strict=True)]], np.uint16 if depth == 16 else np.uint8))


def photographs():
    """Real JPEGs, and real pictures saved in the ways that JPEG and PNG know."""
    folder = Path(skimage.data.__file__).parent
    yield from ((folder / name).read_bytes() for name in ('rocket.jpg', 'hubble_deep_field.jpg'))
    for name in ('astronaut.png', 'camera.png'):
        with PIL.Image.open(folder / name) as image:
            part = image.crop((0, 0, 301, 203))  # not a multiple of 16
        yield pillow(part, 'PNG')
        for subsampling, progressive in itertools.product((0, 1, 2), (False, True)):
            yield pillow(part, 'JPEG', quality=90, subsampling=subsampling, progressive=progressive)


def test_opencv_pillow_and_the_reader_decode_photographs_to_the_same_pixels():
    for data in photographs():
        with PIL.Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode_image(data, 'a').pixels, np.asarray(image))
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # as datasets have always done
        np.testing.assert_array_equal(decode_image(data, 'a', 3).pixels, expected[..., ::-1])
        grey = cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY)
        np.testing.assert_array_equal(decode_image(data, 'a', 1).pixels[..., 0], grey)


def test_only_the_first_picture_of_a_file_is_read():
    others = {'save_all': True, 'append_images': [PIL.Image.fromarray(255 - RGB)]}
    for kind in ('TIFF', 'PNG', 'WEBP'):
        check(pillow(RGB, kind, **others, **LOSSLESS[kind]), RGB)
    check(pillow(RGB, 'MPO', **others, **JPEG), RGB, tolerance=12)  # from phones


@pytest.mark.parametrize('is_frame', [False, True])
@pytest.mark.parametrize('pixels', [RGB, RGBA, deep(RGB), deep(RGBA)], ids=['rgb', 'rgba', 'rgb16', 'rgba16'])
def test_an_animated_png_is_its_default_image(is_frame, pixels):
    numbers = itertools.count()

    def control():
        return chunk(b'fcTL', struct.pack('>IIIIIHHBB', next(numbers), 30, 20, 0, 0, 1, 10, 0, 0))

    start = chunk(b'acTL', struct.pack('>II', 2 + is_frame, 0)) + (control() if is_frame else b'')
    other = compressed([bytes(row.nbytes) for row in pixels])
    frames = [control() + chunk(b'fdAT', struct.pack('>I', next(numbers)) + other) for _ in range(2)]
    check(png(pixels, start, after=b''.join(frames)), pixels)


def profile_of_inks():
    """An ICC profile that maps the corners of CMYK to greys: full cyan to L* = 50, which no plain formula gives."""
    inks = np.array([*itertools.product((0, 1), repeat=4)])
    lightness = 1 - inks @ [0.5, 0.2, 0.2, 0.1]
    table = np.stack([lightness * 65280, np.full(16, 32768), np.full(16, 32768)], axis=1).round()
    lut = b'mft2' + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack('>9i', *(65536 * np.eye(3, dtype=int)).ravel())
    lut += struct.pack('>HH', 2, 2) + struct.pack('>8H', *[0, 65535] * 4)
    lut += table.astype('>u2').tobytes() + struct.pack('>6H', *[0, 65535] * 3)
    white = struct.pack('>3i', 63190, 65536, 54061)  # D50
    tags, body = [], b''
    for name, data in ((b'cprt', b'text' + bytes(5)), (b'wtpt', b'XYZ ' + bytes(4) + white), (b'A2B0', lut)):
        tags.append(name + struct.pack('>II', 132 + 12 * 3 + len(body), len(data)))
        body += data + bytes(-len(data) % 4)
    head = b'lcms' + struct.pack('>I', 0x02400000) + b'prtrCMYKLab ' + bytes(12) + b'acsp' + bytes(28) + white
    content = head.ljust(124, b'\0') + struct.pack('>I', len(tags)) + b''.join(tags) + body
    return struct.pack('>I', len(content) + 4) + content


@pytest.mark.parametrize(('kind', 'tolerance'), [('JPEG', 12), ('TIFF', 1)])
def test_cmyk_is_converted_by_its_profile_or_else_by_the_plain_formula(kind, tolerance):
    cmyk, options = PIL.Image.fromarray(RGB).convert('CMYK'), JPEG if kind == 'JPEG' else {}
    check(pillow(cmyk, kind, **options), RGB, tolerance)
    check(pillow(cmyk, kind, icc_profile=SRGB[:16] + b'CMYK' + SRGB[20:], **options), RGB, tolerance)  # broken
    cyan = pillow(
        PIL.Image.new('CMYK', (16, 16), (255, 0, 0, 0)), kind, icc_profile=profile_of_inks(), **options
    )
    check(cyan, np.full((16, 16, 3), 119, np.uint8), tolerance=2)  # L* = 50 in sRGB
    assert decode_image(cyan, 'a').icc_profile is None  # the pixels are sRGB now


# Orientation


def turned(pixels, orientation):
    """By the EXIF standard: where the stored first row and first column belong."""
    row, column = {
        1: ('top', 'left'), 2: ('top', 'right'), 3: ('bottom', 'right'), 4: ('bottom', 'left'),
        5: ('left', 'top'), 6: ('right', 'top'), 7: ('right', 'bottom'), 8: ('left', 'bottom'),
    }[orientation]  # fmt: skip
    if row in ('left', 'right'):
        pixels, row, column = pixels.swapaxes(0, 1), column, row
    pixels = pixels[::-1] if row == 'bottom' else pixels
    return pixels[:, ::-1] if column == 'right' else pixels


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pixels_are_upright(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    body = exif.tobytes().removeprefix(b'Exif\0\0')
    text = zlib.compress(f'\nexif\n{len(body) + 6:8}\n{(b"Exif" + bytes(2) + body).hex()}\n'.encode())
    tags = {'extratags': [(274, 'H', 1, orientation, True)]}
    for pixels in (RGB, GREY, deep(RGBA)):
        expected = turned(pixels, orientation)
        check(png(pixels, chunk(b'eXIf', body)), expected)
        check(png(pixels, after=chunk(b'eXIf', body)), expected)
        for name in (b'Raw profile type exif', b'Raw profile type APP1'):  # by ImageMagick
            check(png(pixels, chunk(b'zTXt', name + b'\0\0' + text)), expected)
        xmp = b'XML:com.adobe.xmp' + bytes(5) + XMP.format(orientation).encode()
        check(png(pixels, chunk(b'iTXt', xmp)), expected)
        check(tiff(pixels, **tags), expected)
        check(tiff(pixels, tile=(16, 16), **tags), expected)
    for given in (body, b'Exif\0\0' + body):
        check(pillow(RGB, 'WEBP', exif=given, lossless=True), turned(RGB, orientation))
    check(pillow(RGB, 'JPEG', exif=b'Exif\0\0' + body, **JPEG), turned(RGB, orientation), tolerance=12)
    bits = PIL.Image.fromarray(GREY).convert('1')
    fax = pillow(bits, 'TIFF', compression='group4', tiffinfo={274: orientation})  # decoded by Pillow
    check(fax, turned(np.asarray(bits.convert('L')), orientation))


@pytest.mark.parametrize('broken', [b'MM\0*\0\0\0\xff nonsense', b'nonsense here', bytes(40), b'II'])
@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'JPEG'])
def test_broken_exif_data_do_not_cost_the_image(kind, broken):
    options = LOSSLESS.get(kind, {})
    expected = decode_image(pillow(RGB, kind, **options), 'a').pixels
    check(pillow(RGB, kind, exif=b'Exif\0\0' + broken, **options), expected)


# Files that are untidy, and whole


def test_a_jpeg_with_junk_that_every_viewer_skips(capfd):
    jpeg = pillow(RGB, 'JPEG', **JPEG)
    expected = decode_image(jpeg, 'a').pixels
    table = jpeg.index(b'\xff\xc4')
    for junk in (b'\0', b'\0\0', b'\xff\xff\xff', b'12\xff\x00\xff'):
        for place in (2, table):
            check(jpeg[:place] + junk + jpeg[place:], expected)
    long = b'\xff\xe1' + (20).to_bytes(2, 'big') + b'Exif\0\0MM\0*' + bytes(40)  # longer than it says
    check(jpeg[:2] + long + jpeg[2:], expected)
    check(jpeg + bytes(100), expected)
    decode_image(jpeg[:-60] + b'\xff\xd9', 'a')  # damaged pixels, of which libjpeg would warn
    assert capfd.readouterr() == ('', '')


def test_a_damaged_chunk_without_pixels_is_left_out(capfd):
    for kind in (b'tEXt', b'gAMA', b'iCCP', b'eXIf', b'tRNS', b'zTXt'):
        check(png(RGB, chunk(kind, b'Comment\0x')[:-4] + bytes(4)), RGB)
    for kind, body in itertools.product((b'tRNS', b'iCCP', b'gAMA', b'eXIf'), (b'', b'\0\1', bytes(7))):
        check(png(RGB, chunk(kind, body)), RGB)  # of a wrong size
    assert capfd.readouterr() == ('', '')


def test_a_jpeg_with_a_thumbnail_is_whole_by_its_own_end():
    thumbnail = pillow(RGB[:8, :8], 'JPEG')
    data = pillow(RGB, 'JPEG', comment=thumbnail)
    assert data.count(b'\xff\xd9') == 2
    assert decode_image(data + b'another picture', 'a').pixels.shape == RGB.shape
    for cut in (data[:-2], data[: len(thumbnail) + 40]):
        assert refused(cut) == 'is damaged or cut short (its end is missing)'


def test_large_profiles_and_texts(tmp_path):
    profile = SRGB + RNG.bytes(1_500_000)
    write_png(tmp_path / 'a.png', RGB, profile)
    assert read_image(tmp_path / 'a.png').icc_profile == profile
    check(png(RGB, chunk(b'zTXt', b'long\0\0' + zlib.compress(bytes(3_000_000)))), RGB)
    assert PIL.PngImagePlugin.MAX_TEXT_CHUNK == PIL.ImageFile.SAFEBLOCK


# Memory


def test_an_image_that_does_not_fit_into_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, '_SMALL', 0)
    for data, channels, sample in ((png(RGB), 3, 1), (png(deep(RGB)), 3, 2), (tiff(deep(GREY)), 1, 2)):
        needed = 4 * 600 * channels * sample
        monkeypatch.setattr(reader, 'free_memory', lambda device, free=needed: free)
        decode_image(data, 'a')
        monkeypatch.setattr(reader, 'free_memory', lambda device, free=needed - 1: free)
        assert refused(data) == 'does not fit into memory'
    monkeypatch.undo()
    with (tmp_path / 'b.png').open('wb') as file:
        file.truncate(1 << 42)  # needs no space on the disk
    assert refusal(lambda: read(tmp_path / 'b.png')).endswith('b.png: does not fit into memory')


@pytest.mark.parametrize('data', [png(RGB), tiff(RGB)], ids=['png', 'tiff'])
def test_a_large_photograph_is_read_and_a_decompression_bomb_is_refused(monkeypatch, recwarn, data):
    monkeypatch.setattr(PIL.Image, 'MAX_IMAGE_PIXELS', 10)  # as 200 megapixels exceed Pillow's own limit
    check(data, RGB)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10 and not recwarn.list
    monkeypatch.setattr(reader, 'MAX_PIXELS', 599)
    assert refused(data) == 'has 30×20 pixels; allowed: 599'


# Refusals


def test_paths_that_cannot_be_read(tmp_path):
    path = tmp_path / 'a.png'
    assert refusal(lambda: read(path)) == f'{path}: cannot be read: No such file or directory'
    path.write_bytes(b'')
    assert refusal(lambda: read(path)) == f'{path}: is empty'
    assert 'cannot be read' in refusal(lambda: read(tmp_path))
    (tmp_path / 'b.png').symlink_to('x' * 300)
    assert 'cannot be read: File name too long' in refusal(lambda: read(tmp_path / 'b.png'))
    os.mkfifo(tmp_path / 'c.png')
    assert 'cannot be read: not a regular file' in refusal(lambda: read(tmp_path / 'c.png'))


BMP = pillow(RGB, 'BMP')
COMPRESSION = struct.pack('<HHI', 259, 3, 1)


def with_preview(pixels):
    """A TIFF whose first image is a preview, like a camera's raw file."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(pixels[::4, ::4], photometric='rgb', subfiletype=1)
        writer.write(pixels, photometric='rgb')
    return file.getvalue()


def jpeg_frame(marker, depth):
    """A JPEG whose frame has another marker and depth."""
    return pillow(RGB, 'JPEG').replace(b'\xff\xc0\x00\x11\x08', marker + b'\x00\x11' + depth)


@pytest.mark.parametrize(
    ('data', 'text'),
    [
        (b'hello', 'is not an image; allowed: png, jpg'),
        (
            b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
            'is not an image',
        ),  # Pillow would run Ghostscript
        (pillow(RGB, 'GIF'), 'is a GIF image; allowed: png, jpg'),
        (b'\0\0\0\x1cftypavif' + bytes(50), 'is an AVIF image; allowed: '),
        (b'\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf' + bytes(50), 'is an AVIF image; allowed: '),
        (b'\0\0\0\x18ftypisom\0\0\0\0isommp42', 'is a video; allowed: '),
        (b'8BPS\0\1' + bytes(60), 'is a Photoshop file; allowed: '),
        (pillow(RGB, 'PPM'), 'is a PNM image; allowed: '),
        (b'\n<!DOCTYPE html><html>', 'is a web page or XML, not an image'),
        (b'<!-- moved --><html>', 'is a web page or XML, not an image'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:', 'is a Git LFS pointer, .*`git lfs pull`'),
        (tiff(GREY.astype(np.float32)), 'has 32-bit floating-point channels; allowed: 8 or 16 bits a channel'),
        (tiff(RGB.astype(np.float16)), 'has 16-bit floating-point channels; allowed: 8 or 16 bits a channel'),
        (tiff(GREY.astype(np.int16)), 'has 16-bit signed channels; allowed: '),
        (tiff(GREY.astype(np.uint32)), 'has 32-bit channels; allowed: '),
        (
            tiff(deep(RGBA), photometric='separated', extrasamples=[]),
            'has 16-bit CMYK channels; allowed: ',
        ),
        (jpeg_frame(b'\xff\xc1', b'\x0c'), 'has 12-bit channels; allowed: 8 bits a channel in JPEG'),
        (jpeg_frame(b'\xff\xf7', b'\x08'), 'has JPEG-LS compression, which is not supported'),
        (jpeg_frame(b'\xff\xc5', b'\x08'), 'has hierarchical compression, which is not supported'),
        (png(RGB, chunk(b'CgBI', bytes(4))), "has Apple's own PNG compression"),
        (tiff(RGB, photometric='cielab'), 'has 8-bit Lab channels; allowed: 8 or 16 bits'),
        (tiff(GREY, photometric='cfa'), 'has 8-bit sensor channels; allowed: '),
        (
            tiff(np.dstack([RGBA, GREY]), photometric='separated', extrasamples=[2]),
            'has CMYK channels and alpha',
        ),
        (with_preview(RGB), "has a preview as its first image, like a camera's raw file; allowed: "),
        (b'II*\0\x10\0\0\0CR\2\0' + bytes(50), "is a camera's raw file; allowed: "),
        (BMP[:30] + b'\3' + BMP[31:], 'is of a kind that is not supported .*bitfields'),
        (
            pillow(RGB, 'TIFF').replace(COMPRESSION + b'\1\0', COMPRESSION + struct.pack('<H', 50001)),
            'has WebP compression, which is not supported',
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else '',
)
def test_other_files_are_named(capfd, data, text):
    assert re.match(text, refused(data))
    assert capfd.readouterr() == ('', '')


HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(50)


@pytest.mark.skipif(find_spec('pillow_heif') is not None, reason='pillow-heif is installed')
def test_heic_without_its_plugin_says_what_to_install():
    assert refused(HEIC).startswith('is a HEIC image; `pip install pillow-heif`')


@pytest.mark.skipif(find_spec('pillow_heif') is None, reason='needs pillow-heif')
def test_heic():
    assert '.heic' in reader.IMAGE_SUFFIXES
    for small in (RGB, RGBA):
        pixels = cv2.resize(small, (240, 160), interpolation=cv2.INTER_LINEAR)
        check(pillow(pixels, 'HEIF', quality=-1), pixels, tolerance=12)
    assert refused(HEIC).startswith('is damaged or cut short')


LARGE = np.tile(RNG.integers(0, 256, (64, 64, 3), np.uint8), (2, 2, 1))
WHOLE = {
    'jpeg': pillow(LARGE, 'JPEG'),
    'progressive jpeg': pillow(LARGE, 'JPEG', progressive=True),
    'bmp': pillow(LARGE, 'BMP'),
    'webp': pillow(LARGE, 'WEBP'),
    'png': pillow(LARGE, 'PNG'),
    'palette png': pillow(PIL.Image.fromarray(LARGE).quantize(9), 'PNG'),
    '16-bit png': png(deep(LARGE)),
    'tiff': pillow(LARGE, 'TIFF'),
    '16-bit tiff': tiff(deep(LARGE)),
    'tiff with alpha': tiff(np.dstack([LARGE, LARGE[..., 0]])),
    'lzw tiff of opencv': cv2.imencode('.tif', deep(LARGE))[1].tobytes(),
    **{
        f'{compression} tiff': pillow(LARGE, 'TIFF', compression=compression)
        for compression in ('tiff_lzw', 'packbits', 'tiff_adobe_deflate', 'jpeg')
    },
}


@pytest.mark.parametrize('kind', WHOLE)
def test_an_image_that_is_cut_short_is_refused(capfd, kind):
    whole = WHOLE[kind]
    decode_image(whole, 'a')
    for size in (12, *(int(len(whole) * part) for part in (0.3, 0.6, 0.9, 0.98))):
        assert 'is damaged or cut short' in refused(whole[:size])
    if kind != 'lzw tiff of opencv':  # nothing needs its last byte
        refused(whole[:-1])
    refused(whole[:1])
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('kind', ['png', '16-bit png', 'palette png', 'tiff_adobe_deflate tiff'])
def test_one_wrong_bit_in_checked_pixels_is_noticed(kind):
    data = bytearray(WHOLE[kind])
    data[len(data) // 2] ^= 0x10
    assert 'is damaged' in refused(bytes(data))


def test_a_png_with_missing_rows_is_refused():
    data = png(RGB)
    start = data[: data.index(b'IDAT') - 4]
    few = compressed([row.tobytes() for row in RGB[:9]])
    assert 'is damaged' in refused(start + chunk(b'IDAT', few) + chunk(b'IEND', b''))
    assert 'its pixels are missing' in refused(start + chunk(b'IEND', b''))
