"""Encoded images from folders and LMDBs."""

import gc
import pickle

import lmdb
import numpy as np
import pytest
from data_files import refusal, write_lmdb
from torch.utils.data import DataLoader

from basicsr.data.sources import FolderSource, LMDBSource, open_source, read_meta_info
from basicsr.utils.errors import DataError

RNG = np.random.default_rng(0)


# Folders


def test_folder_names_are_in_natural_order(tmp_path):
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


def test_names_of_the_same_number_have_a_fixed_order(tmp_path):
    orders = []
    for number, files in enumerate((['01', '1', '001'], ['001', '1', '01'])):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in files:
            (folder / f'{file}.png').write_bytes(b'')
        orders.append(FolderSource(folder).names)
    assert orders[0] == orders[1] == ['001', '01', '1']


def test_invalid_folders_are_refused(tmp_path):
    (tmp_path / 'text.txt').write_text('')
    for folder in (tmp_path / 'none', tmp_path / 'text.txt'):
        assert refusal(lambda: FolderSource(folder)).startswith(f'{folder}: cannot be read as a folder: ')  # noqa: B023
    assert refusal(lambda: open_source(tmp_path, {'type': 'disk'})) == f'{tmp_path}: contains no images'
    for file in ('a.png', 'a.jpg'):
        (tmp_path / file).write_bytes(b'')
    assert refusal(lambda: FolderSource(tmp_path)) == f'{tmp_path}: a.jpg and a.png have the same name'
    for file in ('b.png', 'b.tif', 'c.png'):
        (tmp_path / file).write_bytes(b'')
    both = 'a.jpg and a.png, b.png and b.tif have the same name'
    assert refusal(lambda: FolderSource(tmp_path)) == f'{tmp_path}: {both}'


def test_a_removed_file_is_a_data_error(tmp_path):
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
def test_meta_info_names_an_image_per_line(tmp_path, line, name):
    path = tmp_path / 'meta_info.txt'
    path.write_bytes(f'\ufefffirst.png\r\n\r\n{line}\r\n'.encode())
    assert read_meta_info(path) == ['first', name]


def test_invalid_meta_info_is_refused(tmp_path):
    path = tmp_path / 'meta_info.txt'
    assert refusal(lambda: read_meta_info(path)).startswith(f'{path}: no such meta-info file')
    path.write_bytes(b'\xff\xfe\x00')
    assert refusal(lambda: read_meta_info(path)).startswith(f'{path}: no such meta-info file')
    path.write_text('a.png\nb.png\na.png\n')
    assert refusal(lambda: read_meta_info(path)) == f'{path}: names images more than once: a'


# LMDB


def test_lmdb_names_are_in_natural_order(tmp_path):
    images = {key: RNG.bytes(5000) for key in ('10', '9', 'a.b', '000/0001', 'x y')}
    source = open_source(write_lmdb(tmp_path / 'pairs.lmdb', images), {'type': 'lmdb'})
    assert source.names == ['000/0001', '9', '10', 'a.b', 'x y']
    assert {name: source.read(name) for name in source.names} == images
    assert source.where('9') == f'{tmp_path / "pairs.lmdb"}:9'


@pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more workers than cores
def test_one_lmdb_serves_several_datasets_copies_and_workers(tmp_path):
    folder = write_lmdb(tmp_path / 'a.lmdb', {str(number): bytes([number] * 5000) for number in range(8)})
    first = LMDBSource(folder)
    assert first.read('3') == bytes([3] * 5000)  # open before the fork, and while it is opened again
    again = LMDBSource(folder / '..' / 'a.lmdb')
    for source in (first, again, pickle.loads(pickle.dumps(first))):
        assert source.read('3') == first.read('3')
        loader = DataLoader(_Reader(source), num_workers=2, batch_size=None)
        assert list(loader) == [[str(number), bytes([number] * 5000)] for number in range(8)]


def test_the_last_dataset_closes_the_lmdb(tmp_path):
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
        lambda path: _cut(path, path.stat().st_size // 2),  # reading it would be a bus error
        lambda path: _cut(path, path.stat().st_size - 1),
        _blank,
    ],
    ids=['gone', 'empty', 'noise', 'half', 'one byte less', 'blank'],
)
def test_a_damaged_lmdb_is_refused_when_opened(tmp_path, spoil):
    folder = write_lmdb(tmp_path / 'a.lmdb', {str(number): RNG.bytes(5000) for number in range(50)})
    spoil(folder / 'data.mdb')
    assert refusal(lambda: LMDBSource(folder)).startswith(f'{folder}: cannot be read as an LMDB: ')


def test_an_lmdb_may_end_in_free_pages_that_were_never_written(tmp_path):
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


def test_an_lmdb_that_does_not_match_its_meta_info_is_refused(tmp_path):
    lines = [f'{name}.png (1,1,3) 1' for name in 'abc']
    folder = write_lmdb(tmp_path / 'a.lmdb', {'b': b'1'}, lines)
    assert (
        refusal(lambda: LMDBSource(folder))
        == f'{folder}: meta_info.txt names keys that the LMDB does not have: a, c'
    )
    (folder / 'meta_info.txt').unlink()
    assert 'meta_info.txt' in refusal(lambda: LMDBSource(folder))
    empty = write_lmdb(tmp_path / 'b.lmdb', {'b': b'1'}, [])
    assert refusal(lambda: open_source(empty, {'type': 'lmdb'})) == f'{empty}: contains no images'
    for other in (tmp_path / 'none.lmdb', tmp_path):
        assert refusal(lambda: LMDBSource(other)).startswith(f'{other}: is not an LMDB folder')  # noqa: B023


# Errors


def test_an_error_keeps_its_message_when_pickled():
    text = 'Caught DataError: a.png: x'
    assert str(DataError(text)) == text
    assert str(pickle.loads(pickle.dumps(DataError(text)))) == text
