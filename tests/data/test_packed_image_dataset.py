"""The packed dataset, against Dataset_PairedImage on crops that a loop cuts; and damaged packs."""

import json
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_files import assert_same, folders, image, refusal

from basicsr.data.pack_format import PackIndex, StoredImage, StoredPair, read_index
from basicsr.data.packed_image_dataset import Dataset_PackedImage
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import SampleKey


def folders_of(root, pairs):
    """Name → the two images of a pair."""
    return folders(
        root, *({f'{name}.png': images[index] for name, images in pairs.items()} for index in (0, 1))
    )


def packed(roots, channels=3, crop_size=None, stride=None):
    """The root of a pack of these folders; offsets are even."""
    files = Dataset_PairedImage(**roots, channels=channels)
    pixels, pairs = bytearray(), []
    for index, name in enumerate(files.names):
        stored = {}
        for kind, each in files.read(index).items():
            pixels += bytes(len(pixels) % 2)
            data = each.astype(each.dtype.newbyteorder('<')).tobytes()
            stored[kind] = StoredImage(*each.shape[:2], each.dtype.name, len(pixels), zlib.crc32(data))
            pixels += data
        pairs.append(StoredPair(name, **stored))
    root = Path(roots['dataroot_lq']).with_name('set.pack')
    root.mkdir()
    (root / 'pixels.bin').write_bytes(pixels)
    index = PackIndex(channels, crop_size, stride, len(pixels), tuple(pairs))
    (root / 'index.json').write_bytes(index.encode())
    return root


def cut(pairs, size, stride):
    """The crops of all pairs, as the paper cuts them."""
    crops = {}
    for name, (lq, gt) in pairs.items():
        height, width = lq.shape[:2]
        rows = [*range(0, height - size, stride), height - size] if height > size else [0]
        columns = [*range(0, width - size, stride), width - size] if width > size else [0]
        number = 0
        for row in rows:
            for column in columns:
                number += 1
                crops[f'{name}-{number}'] = tuple(
                    each[row : row + size, column : column + size] for each in (lq, gt)
                )
    return crops


def keys(length, patches=(8, 16, 24), count=40):
    return [SampleKey(n % length, n, patch, seed=3) for patch in patches for n in range(count)]


# Samples


@pytest.mark.parametrize('augment', [True, False])
def test_windows_give_the_samples_of_crop_files(tmp_path, augment):
    # Frames whose names contain each other or are the same number, and frames smaller than crops.
    sizes = {'2': (30, 44), '10': (16, 16), 'a': (17, 40), 'a-1': (40, 17), 'a-1-2': (9, 33), '02': (12, 5)}
    pairs = {name: (image(*size), image(*size)) for name, size in sizes.items()}
    files = Dataset_PairedImage(**folders_of(tmp_path / 'crops', cut(pairs, 16, 8)), geometric_augs=augment)
    root = packed(folders_of(tmp_path / 'frames', pairs), crop_size=16, stride=8)
    dataset = Dataset_PackedImage(str(root), geometric_augs=augment)
    assert len(dataset) == len(files) == 15 + 1 + 8 + 8 + 4 + 1
    assert dataset.channels == files.channels == 3
    items = [*range(len(files)), *keys(len(files))]
    assert_same([dataset[item] for item in items], [files[item] for item in items])
    assert dataset.files(0) == f'{root}:{files[0]["name"]}'


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('depths', [(np.uint8, np.uint8), (np.uint16, np.uint16), (np.uint8, np.uint16)])
def test_images_of_every_depth(tmp_path, channels, depths):
    sizes = {'0': (9, 11), '1': (7, 7), '2': (1, 1)}  # odd, so that offsets are odd
    pairs = {name: tuple(image(*size, dtype) for dtype in depths) for name, size in sizes.items()}
    pairs['3'] = (image(), image())  # a pack may mix depths
    roots = folders_of(tmp_path, pairs)
    files = Dataset_PairedImage(**roots, channels=channels)
    dataset = Dataset_PackedImage(str(packed(roots, channels)))
    assert dataset.channels == channels
    assert len(dataset) == 4
    items = [*range(4), *keys(4)]
    assert_same([dataset[item] for item in items], [files[item] for item in items])


# The mapping


@pytest.fixture(scope='module')
def frames(tmp_path_factory):
    pairs = {str(number): (image(40, 48), image(40, 48)) for number in range(3)}
    roots = folders_of(tmp_path_factory.mktemp('frames'), pairs)
    return str(packed(roots, crop_size=24, stride=12))


def test_only_the_crop_is_copied(frames):
    dataset = Dataset_PackedImage(frames)
    for window in dataset.read(4).values():
        assert window.shape == (24, 24, 3)
        assert not window.flags.owndata and not window.flags.writeable
        assert window.strides == (48 * 3, 3, 1)
    dataset[0]['lq'].zero_()  # a sample is a copy
    assert dataset[0]['lq'].any()


def test_a_pickled_dataset_maps_the_file_again(frames):
    dataset = Dataset_PackedImage(frames)
    dataset[0]
    travelling = pickle.dumps(dataset)
    assert len(travelling) < 4000 < (Path(frames) / 'pixels.bin').stat().st_size
    copy = pickle.loads(travelling)
    items = [*range(len(dataset)), *keys(len(dataset), patches=(8,))]
    assert_same([copy[item] for item in items], [dataset[item] for item in items])


# Damage


@pytest.fixture
def pack(tmp_path):
    return packed(folders_of(tmp_path, {name: (image(5, 7), image(5, 7)) for name in 'ab'}))


def opening(root):
    return refusal(lambda: Dataset_PackedImage(str(root)))


def test_other_folders_are_refused(tmp_path, pack):
    for root in (tmp_path / 'none.pack', tmp_path / 'lq', tmp_path / 'lq' / 'a.png'):
        assert opening(root).startswith(
            f'{root}: cannot be read as a pack (made by python scripts/prepare_data.py): '
        )
    (pack / 'pixels.bin').unlink()
    assert opening(pack) == f'{pack / "pixels.bin"}: cannot be read: No such file or directory'


@pytest.mark.parametrize('size', [0, 1, 419, 421, 9999])
def test_pixels_of_the_wrong_size_are_refused(pack, size):
    pixels = pack / 'pixels.bin'
    whole = pixels.read_bytes()
    assert len(whole) == 423  # four images of 5×7×3 bytes, each where the offset is even
    pixels.write_bytes((whole * 30)[:size])
    assert opening(pack) == (
        f'{pixels}: found {size} bytes; allowed: 423, as in index.json; '
        'make the pack again with python scripts/prepare_data.py'
    )


def test_a_worker_refuses_pixels_that_were_cut_meanwhile(pack):
    travelling = pickle.dumps(Dataset_PackedImage(str(pack)))
    (pack / 'pixels.bin').write_bytes(b'')  # reading it would be a bus error
    assert 'found 0 bytes' in refusal(lambda: pickle.loads(travelling)[0])


def test_a_changed_bit_of_the_index_is_noticed(pack):
    index = pack / 'index.json'
    whole = index.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        index.write_bytes(changed)
        assert opening(pack).startswith(f'{index}: ')


@pytest.mark.parametrize('content', [b'', b'{}', b'[]', b'5', b'\xff', b'[' * 100_000, b'{"format": 1}'])
def test_a_damaged_index_is_refused(pack, content):
    (pack / 'index.json').write_bytes(content)
    assert opening(pack).startswith(f'{pack / "index.json"}: is damaged; ')
    (pack / 'index.json').write_bytes((pack / 'pixels.bin').read_bytes())
    assert opening(pack).startswith(f'{pack / "index.json"}: is damaged; ')


def test_the_index_may_be_reformatted_but_not_of_another_format(pack):
    index = pack / 'index.json'
    before = read_index(pack)
    index.write_text(json.dumps(json.loads(index.read_text()), indent=2, sort_keys=True))
    assert read_index(pack) == before
    index.write_text(json.dumps({**json.loads(index.read_text()), 'format': 2}))
    assert opening(pack) == f'{index}: found format 2; allowed: 1, made by python scripts/prepare_data.py'
