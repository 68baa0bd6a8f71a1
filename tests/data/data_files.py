"""Folders and LMDBs of images that are written for tests, and comparisons of samples."""

import cv2
import lmdb
import numpy as np
import pytest
import torch

from basicsr.utils.errors import DataError

RNG = np.random.default_rng(0)


def image(height=20, width=30, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype)


def folders(root, lq, gt):
    """Writes both (file name → image); returns the arguments of Dataset_PairedImage."""
    for kind, images in {'lq': lq, 'gt': gt}.items():
        for name, rgb in images.items():
            path = root / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(path.suffix, rgb[..., ::-1])[1].tobytes())
    return {f'dataroot_{kind}': str(root / kind) for kind in ('lq', 'gt')}


def write_lmdb(folder, images, lines=None):
    """`images`: key → bytes. As BasicSR writes it, except for the order of the lines."""
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, data in images.items():
            transaction.put(key.encode(), data)
    lines = [f'{key}.png (20,30,3) 1' for key in images] if lines is None else lines
    (folder / 'meta_info.txt').write_text('\n'.join(lines) + '\n')
    return folder


def assert_same(found, expected):
    """Samples or batches."""
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other) and one['name'] == other['name']
        for kind in one.keys() - {'name'}:
            assert one[kind].dtype == other[kind].dtype and one[kind].is_contiguous()
            assert torch.equal(one[kind], other[kind])


def refusal(act):
    """The message of the error that `act` must raise."""
    with pytest.raises(DataError) as caught:
        act()
    assert '\n' not in str(caught.value)
    return str(caught.value)
