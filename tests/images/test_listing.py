"""The images of a folder, and the names of their results."""

from pathlib import Path

import pytest
from image_files import refusal

from basicsr.images import listing
from basicsr.images.listing import left_alone, list_images, output_names, right_views


def test_images_are_listed_in_natural_order(tmp_path):
    for name in ('a10.png', 'a2.PNG', 'a1.jpeg', 'b.txt', '.hidden.png', 'c.WebP', 'README'):
        (tmp_path / name).touch()
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'd.png').symlink_to('x' * 300)  # reading it will fail, not listing
    assert [path.name for path in list_images(tmp_path)] == ['a1.jpeg', 'a2.PNG', 'a10.png', 'c.WebP', 'd.png']
    assert list_images(str(tmp_path / 'README')) == [tmp_path / 'README']  # named, so meant


@pytest.mark.parametrize(
    ('left', 'right', 'paired'),
    [
        (['a.png', 'b.png'], ['b.tif', 'a.tif'], {'a.png': 'a.tif', 'b.png': 'b.tif'}),
        (['3.png', '10.png'], ['4.png', '11.png'], {'3.png': '4.png', '10.png': '11.png'}),
        (['a.png', 'b.png'], ['a.png', 'c.png'], '2 left and 2 right views, not in pairs: b.png, c.png; allowed'),
        (['a.png'], ['a.png', 'b.png'], '1 left and 2 right views, not in pairs: b.png; allowed'),
        (['3.png', '4.png', '9.png'], ['2.png', '3.png', '8.png'],
         {'3.png': '2.png', '4.png': '3.png', '9.png': '8.png'}),
        (['a.png'], ['b.png', 'c.png'], 'not in pairs: a.png, b.png, c.png'),
        (['a.png', 'a.tif'], ['a.png', 'a.bmp'], 'names that occur twice'),
    ],
    ids=['by name', 'by order', 'one missing', 'one too many', 'one name in both', 'other counts', 'twice'],
)  # fmt: skip
def test_right_views(left, right, paired):
    lefts, rights = ([Path(folder, name) for name in names] for folder, names in (('l', left), ('r', right)))
    if isinstance(paired, str):
        assert paired in refusal(lambda: right_views(lefts, rights))
    else:
        found, pairing = right_views(lefts, rights)
        assert {one.name: other.name for one, other in found.items()} == paired
        by_name = all(Path(one).stem == Path(other).stem for one, other in paired.items())
        assert pairing == ('name' if by_name else 'order')


def test_other_files_are_counted_by_kind(tmp_path, monkeypatch):
    assert 'no such file or folder' in refusal(lambda: list_images(tmp_path / 'none'))
    assert 'contains no images; allowed: png, jpg' in refusal(lambda: list_images(tmp_path))
    assert left_alone(tmp_path) == ''
    (tmp_path / 'a folder').mkdir()
    for name in ('1.MOV', '2.mov', 'notes', '.hidden.mov'):
        (tmp_path / name).touch()
    others = '2 .mov files, 1 file, 1 folder'
    assert f'contains no images (but {others}); allowed: png' in refusal(lambda: list_images(tmp_path))
    (tmp_path / 'a.jfif').touch()
    assert left_alone(tmp_path) == others and list_images(tmp_path) == [tmp_path / 'a.jfif']
    assert left_alone(tmp_path, tmp_path / 'a folder' / 'results') == '2 .mov files, 1 file'
    assert left_alone(tmp_path / 'a.jfif') == ''
    for number in range(20):
        (tmp_path / f'scan.{number:03}').touch()
    parts = left_alone(tmp_path).split(', ')
    assert len(parts) == 9 and '2 .mov files' in parts and parts[-1] == '15 more'
    (tmp_path / 'a.HEIC').touch()
    monkeypatch.setattr(listing, 'IMAGE_SUFFIXES', ('.png',))
    monkeypatch.setattr(listing, '_NEEDS_PLUGIN', ('.heic', '.heif'))
    assert left_alone(tmp_path).endswith('; HEIC needs `pip install pillow-heif`')


@pytest.mark.parametrize(
    ('inputs', 'outputs'),
    [
        (['a.jpg', 'b.JPG'], ['a.png', 'b.png']),
        (['a.jpg', 'a.png', 'b.png'], ['a.jpg.png', 'a.png.png', 'b.png']),
        (['A.jpg', 'a.png'], ['A.jpg.png', 'a.png.png']),
        (['a.jpg', 'A.JPG'], ['a.jpg.png', 'A.JPG-2.png']),
        (['x/a.jpg', 'y/a.jpg'], ['a.jpg.png', 'a.jpg-2.png']),
        (['a.jpg', 'a.jpg.png', 'a.png'], ['a.jpg.png', 'a.jpg-2.png', 'a.png.png']),
        (['ä.png', 'a\u0308.jpg'], ['ä.png.png', 'a\u0308.jpg.png']),  # one name to some file systems
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
