"""Pairs, crops, flips and batches, against transforms and loops."""

import pickle
from collections import Counter
from itertools import pairwise

import cv2
import lmdb
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import SampleKey, Stages, TrainingBatches, TrainingOrder
from basicsr.data.transforms import collate, random_crop, to_float, to_tensor
from basicsr.utils.errors import DataError

RNG = np.random.default_rng(0)


def image(height=20, width=30, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, 3), dtype)


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, rgb[..., ::-1])[1].tobytes())


def folders(tmp_path, lq, gt):
    """File name → image; returns the constructor's arguments."""
    for kind, images in {'lq': lq, 'gt': gt}.items():
        for name, rgb in images.items():
            write(tmp_path / kind / name, rgb)
    return {f'dataroot_{kind}': str(tmp_path / kind) for kind in ('lq', 'gt')}


def key(number, patch, seed=0, index=0):
    return SampleKey(index, number, patch, seed)


def refusal(act):
    with pytest.raises(DataError) as caught:
        act()
    assert '\n' not in str(caught.value)
    return str(caught.value)


def assert_is(tensor, rgb):
    np.testing.assert_array_equal(tensor.numpy().transpose(1, 2, 0), rgb)


# Pairs


def test_pairs_are_matched_by_name_in_natural_order(tmp_path):
    names = ['2', '10', 'a.b', 'a']
    lq, gt = ({f'{name}{suffix}': image() for name in names} for suffix in ('.png', '.bmp'))
    dataset = Dataset_PairedImage(**folders(tmp_path, lq, gt))
    assert len(dataset) == 4
    for index, name in enumerate(['2', '10', 'a', 'a.b']):
        pair = dataset[index]
        assert pair.keys() == {'lq', 'gt', 'name'}
        assert pair['name'] == name
        assert pair['lq'].dtype == pair['gt'].dtype == torch.uint8
        assert_is(pair['lq'], lq[f'{name}.png'])
        assert_is(pair['gt'], gt[f'{name}.bmp'])
        assert dataset.files(index) == str(tmp_path / 'lq' / f'{name}.png')


@pytest.mark.parametrize('template', ['{}_blur', 'x{}', 'a.{}.b', '{x}{}', '{}'])
def test_filename_tmpl_names_the_degraded_image(tmp_path, template):
    lq, gt = {}, {}
    for name in ('1', '2.5', '{}'):
        lq[template.replace('{}', name) + '.png'] = gt[f'{name}.png'] = image()
    dataset = Dataset_PairedImage(**folders(tmp_path, lq, gt), filename_tmpl=template)
    assert [pair['name'] for pair in dataset] == ['1', '2.5', '{}']
    for pair in dataset:
        assert torch.equal(pair['lq'], pair['gt'])


@pytest.mark.parametrize('template', ['blur', '{}{}', '', '{'])
def test_filename_tmpl_needs_one_placeholder(tmp_path, template):
    roots = folders(tmp_path, {'a.png': image()}, {'a.png': image()})
    assert refusal(lambda: Dataset_PairedImage(**roots, filename_tmpl=template)).startswith(
        f'filename_tmpl: found {template!r}'
    )


def test_images_without_a_partner_are_named(tmp_path):
    lq = {f'{number}.png': image() for number in (1, 2, 7)}
    gt = {f'{number}.bmp': image() for number in (1, 2, *range(20, 30))}
    text = refusal(lambda: Dataset_PairedImage(**folders(tmp_path, lq, gt)))
    listed = ', '.join(str(tmp_path / 'gt' / f'{number}.bmp') for number in range(20, 28))
    assert text == (
        f'1 degraded image has no partner of the same name: {tmp_path / "lq" / "7.png"}; '
        f'10 clean images have no partner of the same name: {listed} and 2 more'
    )


def test_an_empty_folder_is_named(tmp_path):
    roots = folders(tmp_path, {'a.png': image()}, {})
    (tmp_path / 'gt').mkdir()
    assert refusal(lambda: Dataset_PairedImage(**roots)) == f'{tmp_path / "gt"}: contains no images'


def test_names_without_ground_truth_are_those_of_the_degraded_images(tmp_path):
    lq = {'x10_blur.png': image(), 'x9_blur.png': image()}
    dataset = Dataset_PairedImage(folders(tmp_path, lq, {})['dataroot_lq'], filename_tmpl='{}_blur')
    assert [pair['name'] for pair in dataset] == ['x9_blur', 'x10_blur']
    assert dataset[0].keys() == {'lq', 'name'}
    assert_is(dataset[0]['lq'], lq['x9_blur.png'])
    assert dataset[key(0, 8)].keys() == {'lq', 'name'}


def test_a_meta_info_file_chooses_pairs(tmp_path):
    gt = {f'{number}.png': image() for number in range(12)}
    lq = {f'{number}x.png': image() for number in range(12) if number != 3}
    roots = {**folders(tmp_path, lq, gt), 'filename_tmpl': '{}x', 'meta_info_file': str(tmp_path / 'meta.txt')}
    (tmp_path / 'meta.txt').write_text('10.png (20,30,3)\n2.png (20,30,3)\n')
    dataset = Dataset_PairedImage(**roots)
    assert [pair['name'] for pair in dataset] == ['2', '10']
    assert_is(dataset[1]['lq'], lq['10x.png'])
    (tmp_path / 'meta.txt').write_text('3.png\n4.png\n')
    assert refusal(lambda: Dataset_PairedImage(**roots)) == (
        f'1 clean image has no partner of the same name: {tmp_path / "gt" / "3.png"}'
    )
    (tmp_path / 'meta.txt').write_text('4.png\n99.png\n')
    assert (
        refusal(lambda: Dataset_PairedImage(**roots))
        == f'{tmp_path / "meta.txt"}: names images that do not exist: 99'
    )
    (tmp_path / 'meta.txt').write_text('\n')
    assert refusal(lambda: Dataset_PairedImage(**roots)) == f'{tmp_path / "meta.txt"}: names no images'


def test_an_lmdb_gives_the_samples_of_the_folder(tmp_path):
    names = ['9', '10', 'a.b', '0']
    lq, gt = ({f'{name}.png': image() for name in names} for _ in range(2))
    roots = folders(tmp_path, lq, gt)
    for kind in ('lq', 'gt'):
        folder = tmp_path / f'{kind}.lmdb'
        with (
            lmdb.open(str(folder), map_size=1 << 24) as environment,
            environment.begin(write=True) as transaction,
        ):
            for name in names:
                transaction.put(name.encode(), (tmp_path / kind / f'{name}.png').read_bytes())
        (folder / 'meta_info.txt').write_text(''.join(f'{name}.png (20,30,3) 1\n' for name in names))
    disk = Dataset_PairedImage(**roots)
    lmdbs = {name: f'{root}.lmdb' for name, root in roots.items()}
    in_lmdb = Dataset_PairedImage(**lmdbs, io_backend={'type': 'lmdb'})
    assert len(in_lmdb) == 4
    for number in range(4):
        for item in (number, key(number, 16, index=number)):
            expected, found = disk[item], in_lmdb[item]
            assert found['name'] == expected['name']
            assert torch.equal(found['lq'], expected['lq'])
            assert torch.equal(found['gt'], expected['gt'])
    (tmp_path / 'meta.txt').write_text('10.png (20,30,3)\n')
    chosen = Dataset_PairedImage(
        **lmdbs, io_backend={'type': 'lmdb'}, meta_info_file=str(tmp_path / 'meta.txt')
    )
    assert [pair['name'] for pair in chosen] == ['10']


@pytest.mark.parametrize('in_memory', [False, True])
def test_partners_of_different_sizes_are_refused(tmp_path, in_memory):
    roots = folders(tmp_path, {'a.png': image(20, 30)}, {'a.png': image(30, 20)})
    assert refusal(lambda: Dataset_PairedImage(**roots, in_memory=in_memory)[0]) == (
        f'{tmp_path / "gt" / "a.png"}: found 20x30; allowed: the size of its partner '
        f'{tmp_path / "lq" / "a.png"}, 30x20'
    )


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_is_named_by_a_worker_too(tmp_path, workers):
    dataset = Dataset_PairedImage(**folders(tmp_path, {'a.png': image()}, {'a.png': image()}))
    path = tmp_path / 'gt' / 'a.png'
    whole = path.read_bytes()
    for data, text in ((b'', 'is empty'), (whole[:99], 'is damaged or cut short (its end is missing)')):
        path.write_bytes(data)
        assert refusal(lambda: load(dataset, workers)) == f'{path}: {text}'


def test_in_memory_reads_every_file_once(tmp_path):
    lq, gt = ({f'{number}.png': image() for number in range(3)} for _ in range(2))
    roots = folders(tmp_path, lq, gt)
    keys = [0, 1, 2, *(key(number, 16, index=number % 3) for number in range(9))]
    expected = [Dataset_PairedImage(**roots)[item] for item in keys]
    dataset = Dataset_PairedImage(**roots, in_memory=True)
    for path in tmp_path.rglob('*.png'):
        path.unlink()
    for same in (dataset, pickle.loads(pickle.dumps(dataset))):  # as for a spawned worker
        for item, sample in zip(keys, expected, strict=True):
            found = same[item]
            assert found['name'] == sample['name']
            assert torch.equal(found['lq'], sample['lq'])
            assert torch.equal(found['gt'], sample['gt'])
            found['lq'].zero_()  # a sample is a copy


def test_grey(tmp_path):
    rgb = image()
    roots = folders(tmp_path, {'a.png': rgb}, {'a.bmp': rgb})
    pair = Dataset_PairedImage(**roots, channels=1)[0]
    assert pair['lq'].shape == (1, 20, 30)
    assert torch.equal(pair['lq'], pair['gt'])
    assert np.abs(pair['lq'][0].numpy() - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    assert Dataset_PairedImage(**roots, channels=1)[key(0, 64)]['lq'].shape == (1, 64, 64)


# Depth


def test_every_level_of_8_and_16_bits_survives_as_a_float():
    for levels in (np.arange(1 << 8, dtype=np.uint8), np.arange(1 << 16, dtype=np.uint16)):
        top = levels[-1]
        tensor = to_float(to_tensor(levels.reshape(16, -1, 1)))
        assert tensor.dtype == torch.float32
        assert (tensor.min(), tensor.max()) == (0, 1)
        exact = levels.astype(np.float64) / top
        np.testing.assert_allclose(tensor.numpy().ravel(), exact, rtol=2**-23, atol=0)
        np.testing.assert_array_equal(torch.round(tensor * float(top)).numpy().ravel(), levels)


def test_16_bit_files_become_floats_and_mix_with_8_bits(tmp_path):
    lq = {'a.png': image(), 'b.png': image(dtype=np.uint16), 'c.tif': image(dtype=np.uint16)}
    gt = {name: image() for name in lq}
    dataset = Dataset_PairedImage(**folders(tmp_path, lq, gt))
    samples = [dataset[index] for index in range(3)]
    assert [sample['lq'].dtype for sample in samples] == [torch.uint8, torch.float32, torch.float32]
    batch = collate(samples)
    assert batch['name'] == ['a', 'b', 'c']
    assert batch['gt'].dtype == torch.uint8
    assert batch['lq'].dtype == torch.float32
    for number, (name, rgb) in enumerate(lq.items()):
        top = np.iinfo(rgb.dtype).max
        np.testing.assert_allclose(
            batch['lq'][number].numpy(), rgb.transpose(2, 0, 1).astype(np.float64) / top, rtol=2**-22
        )
        assert_is(batch['gt'][number], gt[name])


# Crops, flips, rotations


def coordinates(height, width):
    """An image whose red is the row and whose green is the column."""
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.full_like(rows, 77)], axis=2).astype(np.uint8)


# Source of pixel (row, column) in a square of side n, for each symmetry of the square
SYMMETRIES = {
    'identity': lambda r, c, n: (r, c),
    'mirror left-right': lambda r, c, n: (r, n - 1 - c),
    'mirror top-bottom': lambda r, c, n: (n - 1 - r, c),
    'half turn': lambda r, c, n: (n - 1 - r, n - 1 - c),
    'transposition': lambda r, c, n: (c, r),
    'transposition, other diagonal': lambda r, c, n: (n - 1 - c, n - 1 - r),
    'quarter turn right': lambda r, c, n: (n - 1 - c, r),
    'quarter turn left': lambda r, c, n: (c, n - 1 - r),
}


def recognise(patch_CHW):
    """(symmetry, top, left) of a patch of `coordinates`; fails if it is none."""
    n = patch_CHW.shape[1]
    top, left = patch_CHW[0].min(), patch_CHW[1].min()
    found = []
    for name, source in SYMMETRIES.items():
        places = [[source(r, c, n) for c in range(n)] for r in range(n)]
        expected = np.array(places).transpose(2, 0, 1) + np.array([top, left])[:, None, None]
        if np.array_equal(patch_CHW[:2], expected):
            found.append(name)
    assert len(found) == 1
    return found[0], int(top), int(left)


def coordinate_dataset(tmp_path, height, width, **options):
    plain = coordinates(height, width)
    return Dataset_PairedImage(
        **folders(tmp_path, {'a.png': plain}, {'a.png': 255 - plain}), in_memory=True, **options
    )


def chi_square(counts, cells):
    expected = sum(counts.values()) / cells
    return sum((count - expected) ** 2 for count in counts.values()) / expected + expected * (
        cells - len(counts)
    )


def test_positions_and_symmetries_are_equally_likely_and_the_same_for_both_images(tmp_path):
    dataset = coordinate_dataset(tmp_path, height=5, width=6)  # 3 × 4 positions of a patch of 3
    drawn = []
    for number in range(9600):
        sample = dataset[key(number, patch=3)]
        lq, gt = sample['lq'].numpy(), sample['gt'].numpy()
        np.testing.assert_array_equal(gt, 255 - lq)
        drawn.append(lq.tobytes())
    counts = Counter(
        {recognise(np.frombuffer(patch, np.uint8).reshape(3, 3, 3)): n for patch, n in Counter(drawn).items()}
    )
    assert {cell[1:] for cell in counts} == {(top, left) for top in range(3) for left in range(4)}
    assert {cell[0] for cell in counts} == set(SYMMETRIES)
    assert chi_square(counts, 96) < 153  # 95 degrees of freedom: p = 1e-4
    # Successive samples are independent.
    repeats = sum(one == other for one, other in pairwise(drawn))
    assert 60 < repeats < 145  # 100 expected, standard deviation 10


def test_samples_repeat_with_their_key_and_differ_with_epoch_and_seed(tmp_path):
    dataset = coordinate_dataset(tmp_path, height=40, width=50)
    order = TrainingOrder(length=1, seed=0)  # one pair: every sample is an epoch

    def patches(seed, dataset=dataset):
        return [
            dataset[key(number, 8, seed, order.index(number))]['lq'].numpy().tobytes() for number in range(50)
        ]

    first = patches(0)
    assert len(set(first)) == 50
    assert patches(0, pickle.loads(pickle.dumps(dataset))) == first
    assert sum(one == other for one, other in zip(first, patches(1), strict=True)) == 0


def test_crops_without_augmentation(tmp_path):
    dataset = coordinate_dataset(tmp_path, height=5, width=6, geometric_augs=False)
    found = Counter(recognise(dataset[key(number, 3)]['lq'].numpy()) for number in range(600))
    assert set(found) == {('identity', top, left) for top in range(3) for left in range(4)}


def test_a_crop_is_a_view():
    images = {kind: image() for kind in ('lq', 'gt')}
    for patch in (1, 7, 20):
        for kind, crop in random_crop(images, patch, np.random.default_rng(0)).items():
            assert crop.shape == (patch, patch, 3)
            assert np.shares_memory(crop, images[kind])


def bounce(index, size):
    """Position of a ball that bounces along a row of pixels."""
    place, step = 0, 1
    for _ in range(index):
        if size > 1:
            step = -1 if place == size - 1 else 1 if place == 0 else step
            place += step
    return place


@pytest.mark.parametrize(
    ('height', 'width'), [(1, 1), (1, 12), (12, 1), (2, 3), (5, 8), (7, 9), (12, 4), (3, 20)]
)
def test_small_images_are_reflected_repeatedly(height, width):
    patch, plain = 8, coordinates(height, width)
    lefts = set()
    for seed in range(200):
        crops = random_crop({'lq': plain, 'gt': 255 - plain}, patch, np.random.default_rng(seed))
        crop = crops['lq']
        np.testing.assert_array_equal(crops['gt'], 255 - crop)
        assert crop.shape == (patch, patch, 3)
        top, left = (int(crop[0, 0, axis]) for axis in (0, 1))
        lefts.add((top, left))
        for r in range(patch):
            for c in range(patch):
                row = top + r if height >= patch else bounce(r, height)
                column = left + c if width >= patch else bounce(c, width)
                assert crop[r, c].tolist() == [row, column, 77]
    tops = range(max(1, height - patch + 1))
    assert lefts == {(top, left) for top in tops for left in range(max(1, width - patch + 1))}


# Through a DataLoader


@pytest.fixture(scope='module')
def small_set(tmp_path_factory):
    sizes = [(20, 30), (24, 17), (6, 40), (20, 30), (33, 33)]
    lq = {f'{number}.png': image(*size) for number, size in enumerate(sizes)}
    gt = {name: image(*rgb.shape[:2]) for name, rgb in lq.items()}
    return folders(tmp_path_factory.mktemp('set'), lq, gt)


STAGES = Stages(iters=(4, 3), patches=(8, 16), batches=(4, 2))


def load(dataset, workers, first=1, rank=0, world_size=1, stages=STAGES):
    order = TrainingOrder(len(dataset), seed=11)
    batches = TrainingBatches(order, stages, first, 9, rank, world_size)
    return list(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one['name'] == other['name']
        assert torch.equal(one['lq'], other['lq'])
        assert torch.equal(one['gt'], other['gt'])


@pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more workers than cores
def test_batches_do_not_depend_on_the_number_of_workers(small_set):
    dataset = Dataset_PairedImage(**small_set)
    expected = load(dataset, workers=0)
    shapes = [(4, 3, 8, 8)] * 4 + [(2, 3, 16, 16)] * 5
    assert [batch['lq'].shape for batch in expected] == [batch['gt'].shape for batch in expected] == shapes
    for workers in (1, 2):
        torch.manual_seed(workers)  # global generators do not matter
        np.random.seed(workers)
        assert_same(load(dataset, workers), expected)
    assert_same(load(dataset, workers=2, first=4), expected[3:])


@pytest.mark.parametrize('processes', [2, 4])
def test_batches_do_not_depend_on_the_number_of_ranks(small_set, processes):
    dataset = Dataset_PairedImage(**small_set)
    stages = Stages(STAGES.iters, STAGES.patches, (4, 4))
    shares = Stages(STAGES.iters, STAGES.patches, (4 // processes,) * 2)
    ranks = [load(dataset, 0, rank=rank, world_size=processes, stages=shares) for rank in range(processes)]
    together = [
        {
            'name': [name for share in batch for name in share['name']],
            **{kind: torch.cat([share[kind] for share in batch]) for kind in ('lq', 'gt')},
        }
        for batch in zip(*ranks, strict=True)
    ]
    assert_same(together, load(dataset, 0, stages=stages))
