"""Encoded images from folders and LMDBs; decoding, with Pillow as the oracle."""

import gc
import io
import pickle

import cv2
import lmdb
import numpy as np
import PIL.Image
import pytest
from PIL import ImageOps
from torch.utils.data import DataLoader

from basicsr.data.sources import FolderSource, LMDBSource, open_source, read_meta_info
from basicsr.images.decode import decode
from basicsr.utils.errors import DataError

RNG = np.random.default_rng(0)
RGB = cv2.resize(RNG.integers(0, 256, (4, 6, 3), np.uint8), (30, 20), interpolation=cv2.INTER_CUBIC)
GREY = RGB[..., 1].copy()
RAMP = np.tile(np.linspace(0, 255, 30).astype(np.uint8), (20, 1))
RGBA = np.dstack([RGB, RAMP])
SAVING = {
    'png': {},
    'bmp': {},
    'tiff': {},
    'webp': {'lossless': True, 'exact': True},
    'jpeg': {'quality': 95, 'subsampling': 0},
}
LOSSLESS = [kind for kind in SAVING if kind != 'jpeg']


def pillow(image, kind, **options):
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    data = io.BytesIO()
    image.save(data, kind, **{**SAVING[kind], **options})
    return data.getvalue()


def opencv(kind, rgb):
    return cv2.imencode(f'.{kind}', rgb if rgb.ndim == 2 else rgb[..., ::-1].copy())[1].tobytes()


def deep(pixels):
    return pixels.astype(np.uint16) * 257 - (pixels > 9)


def write_lmdb(folder, images, lines=None):
    """`images`: key → bytes. As BasicSR writes it, but for the order of the lines, which is not to matter."""
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, data in images.items():
            transaction.put(key.encode(), data)
    lines = [f'{key}.png (20,30,3) 1' for key in images] if lines is None else lines
    (folder / 'meta_info.txt').write_text('\n'.join(lines) + '\n')
    return folder


def refusal(act):
    with pytest.raises(DataError) as caught:
        act()
    assert '\n' not in str(caught.value)
    return str(caught.value)


# Folders


def test_a_folder_gives_its_images_by_name_in_natural_order(tmp_path):
    files = ['10.png', '9.JPG', '1.webp', 'a-1.tif', 'a.bmp', 'a.b.c.jpeg', 'Grüße 图.TIFF', 'x (1,2,3) 1.png']
    for file in [*files, '.hidden.png', 'notes.txt', 'png', 'a.png.part']:
        (tmp_path / file).write_bytes(file.encode())
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'folder.png' / 'inner.png').write_bytes(b'')
    source = open_source(tmp_path, {'type': 'disk'})
    assert source.names == ['1', '9', '10', 'Grüße 图', 'a', 'a-1', 'a.b.c', 'x (1,2,3) 1']
    assert [source.read(name).decode() for name in source.names] == [
        *('1.webp', '9.JPG', '10.png', 'Grüße 图.TIFF', 'a.bmp', 'a-1.tif', 'a.b.c.jpeg', 'x (1,2,3) 1.png')
    ]
    assert source.where('9') == str(tmp_path / '9.JPG')


def test_names_that_are_the_same_number_come_in_one_order(tmp_path):
    orders = []
    for number, files in enumerate((['01', '1', '001'], ['001', '1', '01'])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in files:
            (folder / f'{file}.png').write_bytes(b'')
        orders.append(FolderSource(folder).names)
    assert orders[0] == orders[1] == ['001', '01', '1']


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / 'text.txt').write_text('')
    for folder in (tmp_path / 'none', tmp_path / 'text.txt'):
        assert refusal(lambda: FolderSource(folder)).startswith(f'{folder}: cannot be read as a folder: ')  # noqa: B023
    assert refusal(lambda: open_source(tmp_path, {'type': 'disk'})) == f'{tmp_path}: there is no image in it'
    for file in ('a.png', 'a.jpg'):
        (tmp_path / file).write_bytes(b'')
    assert refusal(lambda: FolderSource(tmp_path)) == f'{tmp_path}: a.jpg and a.png have the same name'


def test_a_file_that_has_gone_is_a_data_error(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'')
    source = FolderSource(tmp_path)
    (tmp_path / 'a.png').unlink()
    assert (
        refusal(lambda: source.read('a')) == f'{tmp_path / "a.png"}: cannot be read: No such file or directory'
    )


# Meta-info files


@pytest.mark.parametrize(
    ('line', 'name'),
    [
        ('0001.png (480,480,3) 1', '0001'),
        ('0001_s001.png (480,480,3)', '0001_s001'),
        ('0001.png', '0001'),
        ('  a.b.JPG  ', 'a.b'),
        ('a.png.png 3', 'a.png'),
        ('IMG (2) x.jpeg (480,480,3) 1', 'IMG (2) x'),
        ('000/00000007.png (720,1280,3) 1', '000/00000007'),
        ('0001 (480,480,3) 1', '0001'),
        ('v1.pngs', 'v1.pngs'),
    ],
)
def test_names_in_meta_info(tmp_path, line, name):
    path = tmp_path / 'meta_info.txt'
    path.write_bytes(f'\ufefffirst.png\r\n\r\n{line}\r\n'.encode())
    assert read_meta_info(path) == ['first', name]


def test_meta_info_that_cannot_be_used_is_refused(tmp_path):
    path = tmp_path / 'meta_info.txt'
    assert refusal(lambda: read_meta_info(path)).startswith(f'{path}: there is no such meta-info file')
    path.write_bytes(b'\xff\xfe\x00')
    assert refusal(lambda: read_meta_info(path)).startswith(f'{path}: there is no such meta-info file')
    path.write_text('a.png\nb.png\na.png\n')
    assert refusal(lambda: read_meta_info(path)) == f'{path}: names images more than once: a'


# LMDB


def test_an_lmdb_gives_its_images_by_name_in_natural_order(tmp_path):
    images = {key: RNG.bytes(5000) for key in ('10', '9', 'a.b', '000/0001', 'x y')}
    source = open_source(write_lmdb(tmp_path / 'pairs.lmdb', images), {'type': 'lmdb'})
    assert source.names == ['000/0001', '9', '10', 'a.b', 'x y']
    assert {name: source.read(name) for name in source.names} == images
    assert source.where('9') == f'{tmp_path / "pairs.lmdb"}:9'


@pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more workers than cores
def test_an_lmdb_serves_several_datasets_copies_and_workers(tmp_path):
    folder = write_lmdb(tmp_path / 'a.lmdb', {str(number): bytes([number] * 5000) for number in range(8)})
    first = LMDBSource(folder)
    assert first.read('3') == bytes([3] * 5000)  # open before the fork, and while it is opened again
    again = LMDBSource(folder / '..' / 'a.lmdb')
    for source in (first, again, pickle.loads(pickle.dumps(first))):
        assert source.read('3') == first.read('3')
        loader = DataLoader(_Reader(source), num_workers=2, batch_size=None)
        assert list(loader) == [[str(number), bytes([number] * 5000)] for number in range(8)]


def test_an_lmdb_is_closed_with_its_last_dataset(tmp_path):
    folder = write_lmdb(tmp_path / 'a.lmdb', {'a': b'old'})
    source = LMDBSource(folder)
    assert source.read('a') == b'old'
    del source
    gc.collect()
    (folder / 'data.mdb').unlink()
    write_lmdb(folder, {'a': b'new'})
    assert LMDBSource(folder).read('a') == b'new'


class _Reader:
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source.names)

    def __getitem__(self, index):
        name = self.source.names[index]
        return [name, self.source.read(name)]


def _cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def _blank(path):
    path.write_bytes(path.read_bytes()[:8192] + bytes(path.stat().st_size - 8192))


@pytest.mark.parametrize(
    'spoil',
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b''),
        lambda path: path.write_bytes(RNG.bytes(path.stat().st_size)),
        lambda path: _cut(path, path.stat().st_size // 2),  # to read it would be a bus error
        lambda path: _cut(path, path.stat().st_size - 1),
        _blank,
    ],
    ids=['gone', 'empty', 'noise', 'half', 'one byte less', 'blank'],
)
def test_a_damaged_lmdb_is_refused_at_once(tmp_path, spoil):
    folder = write_lmdb(tmp_path / 'a.lmdb', {str(number): RNG.bytes(5000) for number in range(50)})
    spoil(folder / 'data.mdb')
    assert refusal(lambda: LMDBSource(folder)).startswith(f'{folder}: cannot be read as an LMDB: ')


def test_an_lmdb_file_that_ends_in_free_pages_never_written_is_whole(tmp_path):
    folder = tmp_path / 'a.lmdb'
    with lmdb.open(str(folder), map_size=1 << 24) as environment:
        for step in (['put a'], ['delete a'], ['put a'], ['put b', 'delete b']):
            with environment.begin(write=True) as transaction:
                for act, key in map(str.split, step):
                    value = {'put': [bytes(30000 if key == 'a' else 60000)], 'delete': []}[act]
                    getattr(transaction, act)(key.encode(), *value)
        pages = environment.info()['last_pgno'] + 1
        assert (folder / 'data.mdb').stat().st_size < pages * environment.stat()[
            'psize'
        ]  # LMDB did what is tested
    (folder / 'meta_info.txt').write_text('a.png (1,1,3) 1\n')
    assert LMDBSource(folder).read('a') == bytes(30000)


def test_an_lmdb_without_what_its_meta_info_names_is_refused(tmp_path):
    lines = [f'{name}.png (1,1,3) 1' for name in 'abc']
    folder = write_lmdb(tmp_path / 'a.lmdb', {'b': b'1'}, lines)
    assert refusal(lambda: LMDBSource(folder)) == f'{folder}: meta_info.txt names keys that are not in it: a, c'
    (folder / 'meta_info.txt').unlink()
    assert 'meta_info.txt' in refusal(lambda: LMDBSource(folder))
    empty = write_lmdb(tmp_path / 'b.lmdb', {'b': b'1'}, [])
    assert refusal(lambda: open_source(empty, {'type': 'lmdb'})) == f'{empty}: there is no image in it'
    for other in (tmp_path / 'none.lmdb', tmp_path):
        assert refusal(lambda: LMDBSource(other)).startswith(f'{other}: there is no such LMDB folder')  # noqa: B023


# Decoding


def upright(data, mode):
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


@pytest.mark.parametrize(
    ('kind', 'mode'),
    [
        (kind, mode)
        for kind in LOSSLESS
        for mode in ('RGB', 'L', 'RGBA', 'LA', 'P', '1')
        if (kind, mode) != ('bmp', 'LA')
    ],
)
def test_every_kind_of_image_becomes_rgb(kind, mode):
    image = {
        'RGB': RGB,
        'L': GREY,
        'RGBA': RGBA,
        'LA': PIL.Image.fromarray(np.dstack([GREY, RAMP]), 'LA'),
        'P': PIL.Image.fromarray(RGB).quantize(16),
        '1': PIL.Image.fromarray(GREY).convert('1'),
    }[mode]
    data = pillow(image, kind)
    found = decode(data, 'a', 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, upright(data, 'RGB'))
    expected = {'RGB': RGB, 'RGBA': RGB, 'L': np.dstack([GREY] * 3), 'LA': np.dstack([GREY] * 3)}.get(mode)
    if expected is not None:
        np.testing.assert_array_equal(found, expected)


def test_transparent_colours_of_a_png_are_ignored():
    palette = PIL.Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(
        decode(pillow(palette, 'png', transparency=3), 'a', 3), palette.convert('RGB')
    )
    key = tuple(int(value) for value in RGB[0, 0])
    np.testing.assert_array_equal(decode(pillow(RGB, 'png', transparency=key), 'a', 3), RGB)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_jpeg_becomes_rgb(mode):
    data = pillow(PIL.Image.fromarray(RGB).convert(mode), 'jpeg')
    found = decode(data, 'a', 3)
    assert found.shape == RGB.shape
    assert np.abs(found.astype(int) - upright(data, 'RGB')).max() <= 5  # two decoders
    expected = np.dstack([np.asarray(PIL.Image.fromarray(RGB).convert('L'))] * 3) if mode == 'L' else RGB
    assert np.abs(found.astype(int) - expected).mean() < 4


@pytest.mark.parametrize('kind', ['png', 'tiff'])
def test_all_16_bits_are_read(kind):
    all_levels = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    rgb = np.dstack([all_levels, all_levels[::-1], all_levels.T])
    for pixels in (rgb, np.dstack([rgb, all_levels])[..., [0, 1, 2, 3]]):
        bgra = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        found = decode(cv2.imencode(f'.{kind}', bgra)[1].tobytes(), 'a', 3)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, rgb)
    data = opencv(kind, all_levels)
    np.testing.assert_array_equal(decode(data, 'a', 3), np.dstack([all_levels] * 3))
    np.testing.assert_array_equal(decode(data, 'a', 1), all_levels[..., None])


@pytest.mark.parametrize('kind', LOSSLESS)
def test_grey_is_the_same_from_every_kind_of_file(kind):
    luma = (RGB @ np.array([0.299, 0.587, 0.114]))[..., None]
    found = decode(pillow(RGB, kind), 'a', 1)
    assert np.abs(found - luma).max() <= 0.51  # rounded, with weights in fixed point
    np.testing.assert_array_equal(found, decode(pillow(RGB, 'png'), 'a', 1))
    np.testing.assert_array_equal(decode(pillow(RGBA, kind), 'a', 1), found)
    np.testing.assert_array_equal(decode(pillow(GREY, kind), 'a', 1), GREY[..., None])
    if kind in ('png', 'tiff'):
        found = decode(opencv(kind, deep(RGB)), 'a', 1)
        assert found.dtype == np.uint16
        assert np.abs(found - (deep(RGB) @ np.array([0.299, 0.587, 0.114]))[..., None]).max() <= 2


@pytest.mark.parametrize('kind', [kind for kind in SAVING if kind != 'bmp'])
@pytest.mark.parametrize('orientation', range(2, 9))
def test_images_are_turned_upright(kind, orientation):
    if kind == 'webp' and int(cv2.__version__.split('.')[0]) < 5:
        pytest.skip('OpenCV 4 does not look for the orientation of WebP')
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = pillow(RGB, kind, exif=exif)
    for channels, mode in ((3, 'RGB'), (1, 'L')):
        expected = upright(data, mode).reshape((30, 20, -1) if orientation > 4 else (20, 30, -1))
        found = decode(data, 'a', channels)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= (
            5 if kind == 'jpeg' else 1 if channels == 1 else 0
        )
    if kind == 'tiff':
        np.testing.assert_array_equal(decode(pillow(RGBA, kind, exif=exif), 'a', 3), upright(data, 'RGB'))


@pytest.mark.parametrize('kind', SAVING)
def test_an_image_of_one_pixel(kind):
    assert decode(pillow(RGB[:1, :1], kind), 'a', 3).shape == (1, 1, 3)
    assert decode(pillow(RGB[:1, :1], kind), 'a', 1).shape == (1, 1, 1)


@pytest.mark.parametrize('kind', [*SAVING, 'alpha.tiff'])
def test_images_that_are_not_whole_are_refused(kind):
    data = pillow(RGBA, 'tiff') if kind == 'alpha.tiff' else pillow(RGB, kind)
    for size in (0, 1, *(int(len(data) * part) for part in (0.3, 0.7, 0.95)), len(data) - 1):
        assert refusal(lambda: decode(data[:size], 'x.png', 3)) == 'x.png: is empty, cut short, or not an image'  # noqa: B023


def test_what_is_no_image_is_refused():
    assert refusal(lambda: decode(b'hello ' * 99, 'x.png', 3)) == 'x.png: is empty, cut short, or not an image'
    data = opencv('tiff', RGB.astype(np.float32))
    assert (
        refusal(lambda: decode(data, 'x.tif', 3)) == 'x.tif: found pixels of type float32; allowed: 8 or 16 bit'
    )


def test_a_jpeg_with_a_thumbnail_is_whole_by_its_own_end(monkeypatch):
    filled = np.full((20, 30, 3), 7, np.uint8)
    monkeypatch.setattr(cv2, 'imdecode', lambda *_: filled)  # as if it filled what is missing, as OpenCV 4 does
    thumbnail = pillow(RGB[:8, :8], 'jpeg')
    data = pillow(RGB, 'jpeg', comment=thumbnail)
    assert data.count(b'\xff\xd9') == 2
    for whole in (data, data + b'another picture', data[:2] + b'\xff\xff' + data[2:]):
        np.testing.assert_array_equal(decode(whole, 'a', 3), filled[..., ::-1])
    assert 'cut short' in refusal(lambda: decode(data[:-2], 'a', 3))
    assert 'cut short' in refusal(lambda: decode(data[: len(thumbnail) + 40], 'a', 3))


# Errors


class _Failing:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            raise OSError('unrelated')
        except OSError:
            raise DataError('a/DataError: x.png: is empty') from None


@pytest.mark.parametrize('workers', [0, 1])
def test_the_message_is_one_sentence_from_a_worker_too(workers):
    loader = DataLoader(_Failing(), num_workers=workers)
    assert refusal(lambda: list(loader)) == 'a/DataError: x.png: is empty'


def test_the_message_survives_pickling_and_is_left_alone():
    text = 'Caught DataError: a.png: x'
    assert str(DataError(text)) == text
    assert str(pickle.loads(pickle.dumps(DataError(text)))) == text
