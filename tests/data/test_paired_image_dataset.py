"""Pairs, crops, flips and batches, against transforms and loops."""

import pickle

import cv2
import numpy as np
import pytest
import torch
from data_files import assert_same, folders, image, refusal, write_lmdb
from torch.utils.data import DataLoader

from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import SampleKey, Stages, TrainingBatches, TrainingOrder
from basicsr.data.transforms import collate, random_crop, to_float, to_tensor
from basicsr.utils.errors import DataError


def key(number, patch, seed=0, index=0):
    return SampleKey(index, number, patch, seed)


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
        f'1 image has no partner of the same name: {tmp_path / "lq" / "7.png"}; '
        f'10 images have no partner of the same name: {listed} and 2 more'
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
        f'1 image has no partner of the same name: {tmp_path / "gt" / "3.png"}'
    )
    (tmp_path / 'meta.txt').write_text('4.png\n99.png\n')
    assert (
        refusal(lambda: Dataset_PairedImage(**roots))
        == f'{tmp_path / "meta.txt"}: names images that do not exist: 99'
    )
    (tmp_path / 'meta.txt').write_text('\n')
    assert refusal(lambda: Dataset_PairedImage(**roots)) == f'{tmp_path / "meta.txt"}: names no images'


def test_pairing_in_order_takes_equal_counts_and_the_names_of_the_clean_images(tmp_path):
    lq = {name: image() for name in ('9.png', '10.png', '11.png')}
    gt = {name: image() for name in ('b12.png', 'b9.png', 'b7.png')}
    roots = folders(tmp_path, lq, gt)
    dataset = Dataset_PairedImage(**roots, pairing='order')
    for sample, partners in zip(dataset, [('9', 'b7'), ('10', 'b9'), ('11', 'b12')], strict=True):
        assert sample['name'] == partners[1]
        assert_is(sample['lq'], lq[f'{partners[0]}.png'])
        assert_is(sample['gt'], gt[f'{partners[1]}.png'])
    (tmp_path / 'meta.txt').write_text('b9.png\n')
    (chosen,) = Dataset_PairedImage(**roots, pairing='order', meta_info_file=str(tmp_path / 'meta.txt'))
    assert_is(chosen['lq'], lq['10.png'])
    (tmp_path / 'lq' / '9.png').unlink()
    assert refusal(lambda: Dataset_PairedImage(**roots, pairing='order')) == (
        f'{tmp_path / "lq"}: found 2 images; allowed: 3, as in {tmp_path / "gt"}, to pair them in order'
    )


@pytest.mark.parametrize('in_memory', [False, True])
def test_bits_8_keeps_the_high_byte_of_16_bits(tmp_path, in_memory):
    deep, shallow = image(256, 256, np.uint16), image(8, 8)
    deep[..., 0] = np.arange(65536).reshape(256, 256)
    roots = folders(tmp_path, *[{'a.png': deep, 'b.png': shallow}] * 2)
    first, second = Dataset_PairedImage(**roots, bits=8, in_memory=in_memory)
    for kind in ('lq', 'gt'):
        assert first[kind].dtype == second[kind].dtype == torch.uint8
        assert_is(first[kind], deep // 256)
        assert_is(second[kind], shallow)


def test_an_lmdb_gives_the_samples_of_the_folder(tmp_path):
    names = ['9', '10', 'a.b', '0']
    lq, gt = ({f'{name}.png': image() for name in names} for _ in range(2))
    roots = folders(tmp_path, lq, gt)
    for kind in ('lq', 'gt'):
        encoded = {name: (tmp_path / kind / f'{name}.png').read_bytes() for name in names}
        write_lmdb(tmp_path / f'{kind}.lmdb', encoded)
    disk = Dataset_PairedImage(**roots)
    lmdbs = {name: f'{root}.lmdb' for name, root in roots.items()}
    in_lmdb = Dataset_PairedImage(**lmdbs, io_backend={'type': 'lmdb'})
    assert len(in_lmdb) == 4
    items = [*range(4), *(key(number, 16, index=number) for number in range(4))]
    assert_same([in_lmdb[item] for item in items], [disk[item] for item in items])
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


def test_both_unreadable_images_of_a_pair_are_named_and_in_memory_those_of_all_pairs(tmp_path):
    images = {f'{number}.png': image() for number in range(3)}
    roots = folders(tmp_path, images, images)
    for name in ('lq/0.png', 'gt/0.png', 'gt/2.png'):
        (tmp_path / name).write_bytes(b'')
    both = f'{tmp_path}/lq/0.png: is empty; {tmp_path}/gt/0.png: is empty'
    assert refusal(lambda: Dataset_PairedImage(**roots)[0]) == both
    with pytest.raises(DataError) as caught:
        Dataset_PairedImage(**roots, in_memory=True)
    assert str(caught.value) == f'these images cannot be used:\n{both}\n{tmp_path}/gt/2.png: is empty'


def test_in_memory_reads_every_file_once(tmp_path):
    lq, gt = ({f'{number}.png': image() for number in range(3)} for _ in range(2))
    roots = folders(tmp_path, lq, gt)
    keys = [0, 1, 2, *(key(number, 16, index=number % 3) for number in range(9))]
    expected = [Dataset_PairedImage(**roots)[item] for item in keys]
    dataset = Dataset_PairedImage(**roots, in_memory=True)
    for path in tmp_path.rglob('*.png'):
        path.unlink()
    for same in (dataset, pickle.loads(pickle.dumps(dataset))):  # as for a spawned worker
        assert_same([same[item] for item in keys], expected)
        same[0]['lq'].zero_()  # a sample is a copy
        assert_same([same[0]], expected[:1])


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


@pytest.mark.parametrize('augment', [True, False])
def test_samples_follow_from_the_numbers_drawn(tmp_path, augment):
    """These numbers, in this order: a run resumed with a newer version sees the same samples."""
    lq, gt = image(30, 50), image(30, 50)
    dataset = Dataset_PairedImage(**folders(tmp_path, {'a.png': lq}, {'a.png': gt}), geometric_augs=augment)
    drawn = set()
    for number in range(60):
        generator = np.random.default_rng((5, number, 1))
        top, left, symmetry = (int(generator.integers(count)) for count in (30 - 16 + 1, 50 - 16 + 1, 8))
        drawn.add(symmetry)
        sample = dataset[key(number, 16, seed=5)]
        for kind, whole in (('lq', lq), ('gt', gt)):
            expected = whole[top : top + 16, left : left + 16]
            if augment:
                expected = np.rot90(np.fliplr(expected) if symmetry >= 4 else expected, symmetry % 4)
            assert_is(sample[kind], expected)
    assert drawn == set(range(8))


def test_a_crop_is_a_view():
    images = {kind: image() for kind in ('lq', 'gt')}
    for patch in (1, 7, 20):
        for kind, crop in random_crop(images, patch, np.random.default_rng(0)).items():
            assert crop.shape == (patch, patch, 3)
            assert np.shares_memory(crop, images[kind])


@pytest.mark.parametrize(
    ('height', 'width'), [(1, 1), (1, 12), (12, 1), (2, 3), (5, 8), (7, 9), (12, 4), (3, 20)]
)
def test_small_images_are_reflected_repeatedly_and_every_position_is_drawn(height, width):
    patch = 8
    rows, columns = np.indices((height, width))
    plain = np.stack([rows, columns], axis=2).astype(np.uint8)
    corners = set()
    for seed in range(200):
        crops = random_crop({'lq': plain, 'gt': 255 - plain}, patch, np.random.default_rng(seed))
        top, left = crops['lq'][0, 0].tolist()
        corners.add((top, left))
        part = plain[top : top + patch, left : left + patch]
        missing = patch - part.shape[0], patch - part.shape[1]
        padded = cv2.copyMakeBorder(part, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT)
        np.testing.assert_array_equal(crops['lq'], padded)
        np.testing.assert_array_equal(crops['gt'], 255 - crops['lq'])
    tops, lefts = (range(max(1, side - patch + 1)) for side in (height, width))
    assert corners == {(top, left) for top in tops for left in lefts}


# Through a DataLoader


STAGES = Stages(iters=(4, 3), patches=(8, 16), batches=(4, 2))


def load(dataset, workers, first=1):
    batches = TrainingBatches(TrainingOrder(len(dataset), seed=11), STAGES, first, 9)
    return list(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers))


@pytest.mark.filterwarnings('ignore:This DataLoader will create')  # more workers than cores
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path):
    sizes = [(20, 30), (24, 17), (6, 40), (20, 30), (33, 33)]
    lq, gt = ({f'{number}.png': image(*size) for number, size in enumerate(sizes)} for _ in range(2))
    dataset = Dataset_PairedImage(**folders(tmp_path, lq, gt))
    expected = load(dataset, workers=0)
    shapes = [(4, 3, 8, 8)] * 4 + [(2, 3, 16, 16)] * 5
    assert [batch['lq'].shape for batch in expected] == [batch['gt'].shape for batch in expected] == shapes
    for workers in (1, 2):
        torch.manual_seed(workers)  # global generators do not matter
        np.random.seed(workers)
        assert_same(load(dataset, workers), expected)
    assert_same(load(dataset, workers=2, first=4), expected[3:])
