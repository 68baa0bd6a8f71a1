"""Both views of a dual-pixel camera, against the files."""

from itertools import product

import numpy as np
import pytest
import torch
from data_files import assert_same, folders, image, refusal, write_lmdb

from basicsr.data.dual_pixel_dataset import Dataset_DefocusDeblur_DualPixel_16bit
from basicsr.data.sampler import SampleKey
from basicsr.data.transforms import to_float

KINDS = ('lqL', 'lqR', 'gt')


@pytest.fixture
def files():
    """Kind → file name → image: '2' and '10', with 16 and 8 bits."""
    depths = {'2.png': np.uint16, '10.png': np.uint8}
    return {kind: {name: image(12, 15, depth) for name, depth in depths.items()} for kind in KINDS}


def roots_of(root, files):
    for kind, images in files.items():
        folders(root / kind, {}, images)
    return {f'dataroot_{kind}': str(root / kind / 'gt') for kind in files}


@pytest.mark.parametrize('kinds', [KINDS, KINDS[:2]])
def test_views_are_stacked_left_first_and_keep_their_depth(tmp_path, files, kinds):
    roots = roots_of(tmp_path, {kind: files[kind] for kind in kinds})
    for name, sample in zip(('2.png', '10.png'), Dataset_DefocusDeblur_DualPixel_16bit(**roots), strict=True):
        images = [files[kind][name] for kind in kinds]
        views = np.concatenate(images[:2], axis=2).transpose(2, 0, 1)
        full = np.float32(65535) if name == '2.png' else np.uint8(1)
        np.testing.assert_array_equal(sample['lq'], views / full)
        assert sample['lq'].dtype == (torch.float32 if name == '2.png' else torch.uint8)
        assert sample.keys() == {'lq', 'name', *kinds[2:]}
        if 'gt' in sample:
            np.testing.assert_array_equal(sample['gt'], images[2].transpose(2, 0, 1) / full)


@pytest.mark.parametrize('deep', KINDS)
def test_each_image_of_other_depth_has_its_own_white(tmp_path, deep):
    files = {kind: {'a.png': image(9, 11, np.uint16 if kind == deep else np.uint8)} for kind in KINDS}
    sample = Dataset_DefocusDeblur_DualPixel_16bit(**roots_of(tmp_path, files))[0]
    left, right, gt = (
        np.float32(files[kind]['a.png'].transpose(2, 0, 1)) / np.float32(65535 if kind == deep else 255)
        for kind in KINDS
    )
    views = np.concatenate([left, right])
    np.testing.assert_array_equal(to_float(sample['lq']), views)
    np.testing.assert_array_equal(to_float(sample['gt']), gt)


def test_one_crop_and_flip_for_all_images(tmp_path):
    rows, columns = np.indices((20, 30), dtype=np.uint8)
    place = np.stack([rows, columns, rows], axis=2)
    roots = roots_of(tmp_path, {kind: {'a.png': place + 50 * n} for n, kind in enumerate(KINDS)})
    dataset, seen = Dataset_DefocusDeblur_DualPixel_16bit(**roots), set()
    for number in range(64):
        sample = dataset[SampleKey(0, number, 8, 0)]
        left, right = sample['lq'][:3], sample['lq'][3:]
        assert torch.equal(left + 50, right) and torch.equal(left + 100, sample['gt'])
        seen.add(tuple(left[:2, (0, 0, 7), (0, 7, 0)].flatten().tolist()))  # place and flip
    assert len(seen) > 40


def test_lmdb_meta_file_and_memory(tmp_path, files):
    roots = roots_of(tmp_path, files)
    expected = Dataset_DefocusDeblur_DualPixel_16bit(**roots)[1]
    (tmp_path / 'meta.txt').write_text('10.png\n')
    databases = {}
    for name, root in roots.items():
        data = {stem: (tmp_path / root / f'{stem}.png').read_bytes() for stem in ('2', '10')}
        databases[name] = str(write_lmdb(tmp_path / f'{name}.lmdb', data))
    for (places, backend), in_memory in product(((roots, 'disk'), (databases, 'lmdb')), (False, True)):
        settings = {'io_backend': {'type': backend}, 'in_memory': in_memory}
        dataset = Dataset_DefocusDeblur_DualPixel_16bit(
            **places, **settings, meta_info_file=str(tmp_path / 'meta.txt')
        )
        assert_same(dataset, [expected])


@pytest.mark.parametrize('kind', KINDS)
def test_files_that_do_not_fit_are_named(tmp_path, files, kind):
    roots = roots_of(tmp_path, files)
    place = tmp_path / kind / 'gt'
    (place / '2.png').rename(place / '3.png')
    text = refusal(lambda: Dataset_DefocusDeblur_DualPixel_16bit(**roots))
    others = [str(tmp_path / other / 'gt' / '2.png') for other in KINDS if other != kind]
    assert 'no partner of the same name' in text and str(place / '3.png') in text
    assert any(other in text for other in others)
    ordered = Dataset_DefocusDeblur_DualPixel_16bit(**roots, pairing='order')
    assert [sample['name'] for sample in ordered] == (['3', '10'] if kind == 'gt' else ['2', '10'])
    folders(tmp_path / kind, {}, {'4.png': image(12, 15)})
    text = refusal(lambda: Dataset_DefocusDeblur_DualPixel_16bit(**roots, pairing='order'))
    assert text.endswith(', to pair them in order') and str(place) in text and 'found ' in text


def test_a_pack_is_refused(tmp_path, files):
    roots = roots_of(tmp_path, files) | {'dataroot_gt': 'my.pack'}
    text = refusal(lambda: Dataset_DefocusDeblur_DualPixel_16bit(**roots))
    assert 'my.pack: found a pack; allowed: a folder of images or an LMDB' in text
