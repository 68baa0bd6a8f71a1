"""Added noise, against NumPy's legacy generator and statistics of a normal distribution."""

import cv2
import numpy as np
import pytest
import torch
from data_files import assert_same, folders, image, refusal, write_lmdb
from torch.utils.data import DataLoader

from basicsr.data.gaussian_denoising_dataset import Dataset_GaussianDenoising
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import SampleKey, Stages, TrainingBatches, TrainingOrder
from basicsr.data.transforms import collate, to_float
from basicsr.utils.errors import DataError


@pytest.fixture
def root(tmp_path):
    """A folder of 8-bit images, 1 to 3, and one of 16 bits, '4'."""
    files = {f'{number}.png': image(40, 50) for number in (1, 2, 3)}
    return folders(tmp_path, {}, files | {'4.png': image(40, 50, np.uint16)})['dataroot_gt']


def levels(sample):
    """The noise of a sample in levels of 8 bits."""
    return (sample['lq'] - to_float(sample['gt'])).double().numpy() * 255


def rgb(root, name):
    return cv2.imread(f'{root}/{name}.png', cv2.IMREAD_UNCHANGED)[..., ::-1]


@pytest.mark.parametrize('sigma', [0, 15, 25, 50])
@pytest.mark.parametrize('in_ch', [1, 3])
def test_full_images_get_the_published_noise_of_testing(root, sigma, in_ch):
    np.random.seed(123)
    before = np.random.get_state()[1].tolist()
    for number, sample in enumerate(Dataset_GaussianDenoising(root, sigma_test=sigma, in_ch=in_ch), 1):
        clean = rgb(root, number)
        if in_ch == 1:
            grey = clean @ (0.299, 0.587, 0.114)
            clean = sample['gt'].permute(1, 2, 0).double() * (65535 if number == 4 else 1)
            assert np.abs(clean[..., 0].numpy() - grey).max() < (2.5 if number == 4 else 0.52)
            clean = clean.round().numpy()
        legacy = np.random.RandomState(0)
        noise = np.array([legacy.normal(0, sigma / 255) for _ in range(clean.size)]).reshape(clean.shape)
        unit = clean.astype(np.float32) / np.float32(65535 if number == 4 else 255)
        expected = (unit + noise).astype(np.float32)
        np.testing.assert_array_equal(sample['lq'].permute(1, 2, 0), expected)
        assert sample['gt'].dtype == (torch.float32 if number == 4 else torch.uint8)
    assert np.random.get_state()[1].tolist() == before


def test_first_values_of_the_noise_at_sigma_25(tmp_path):
    black = folders(tmp_path, {}, {'a.png': np.zeros((8, 8, 3), np.uint8)})['dataroot_gt']
    found = Dataset_GaussianDenoising(black, sigma_test=25)[0]['lq'].permute(1, 2, 0).flatten()[:4]
    assert found.tolist() == pytest.approx([0.1729463, 0.0392311, 0.0959547, 0.2196954], abs=5e-8)


@pytest.mark.parametrize('in_ch', [1, 3])
def test_noise_of_training_is_normal_and_independent(root, in_ch):
    dataset = Dataset_GaussianDenoising(root, sigma_range=30, in_ch=in_ch)
    samples = [levels(dataset[SampleKey(0, number, 128, 7)]) for number in range(24)]
    noise = np.stack(samples) / 30
    count = noise.size
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs((noise**2).mean() - 1) < 4 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / count) ** 0.5
    neighbours = [
        noise[1:] * noise[:-1],
        noise[..., 1:] * noise[..., :-1],
        noise[..., 1:, :] * noise[..., :-1, :],
    ]
    neighbours += [noise[:, 1:] * noise[:, :-1]] if in_ch == 3 else []
    for product in neighbours:
        assert abs(product.mean()) < 4 / product.size**0.5
    assert max(abs(levels(dataset[SampleKey(0, 0, 128, seed)]) - samples[0]).max() for seed in (8, 9)) > 30


def test_noise_goes_beyond_the_range_of_images_and_is_not_rounded(root):
    lq = Dataset_GaussianDenoising(root, sigma_range=50)[SampleKey(0, 0, 64, 0)]['lq']
    assert lq.min() < 0 and lq.max() > 1
    assert ((lq * 255) % 1).std() > 0.2


def test_crops_and_flips_are_those_of_pairs(root):
    noisy = Dataset_GaussianDenoising(root, sigma_range=25)
    pairs = Dataset_PairedImage(root, root)
    for number in range(20):
        key = SampleKey(number % 3, number, 24, 3)
        assert torch.equal(noisy[key]['gt'], pairs[key]['gt'])


@pytest.mark.parametrize(
    ('sigma_type', 'sigma_range', 'mean'),
    [('constant', 15, 15), ('random', [10, 50], 30), ('choice', [10, 20, 60], 30)],
)
def test_a_sample_has_one_sigma(root, sigma_type, sigma_range, mean):
    dataset = Dataset_GaussianDenoising(root, sigma_type=sigma_type, sigma_range=sigma_range)
    drawn = np.array([levels(dataset[SampleKey(0, number, 64, 1)]).std() for number in range(300)])
    if sigma_type == 'random':
        assert 9.5 < drawn.min() < 12 and 48 < drawn.max() < 51.5
        assert np.histogram(drawn, 4, (10, 50))[0].min() > 50
    else:
        options = np.atleast_1d(sigma_range)
        nearest = np.abs(drawn[:, None] - options).argmin(1)
        assert np.abs(drawn / options[nearest] - 1).max() < 0.05
        assert np.bincount(nearest).min() > 70
    assert abs(drawn.mean() - mean) < 4


def test_noise_is_new_in_every_epoch_and_the_same_for_any_number_of_workers(root):
    dataset = Dataset_GaussianDenoising(root, sigma_type='random', sigma_range=[0, 50])

    def load(workers):
        batches = TrainingBatches(TrainingOrder(4, seed=11), Stages((8,), (16,), (4,)), 1, 4)
        return list(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers))

    epochs = load(0)
    assert_same(load(2), epochs)
    found = [batch['lq'][batch['name'].index('1')] for batch in epochs]
    assert not any(torch.equal(one, other) for n, one in enumerate(found) for other in found[:n])


@pytest.mark.parametrize('in_memory', [False, True])
def test_lmdb_and_meta_file(tmp_path, root, in_memory):
    data = {str(number): (tmp_path / 'gt' / f'{number}.png').read_bytes() for number in (1, 2, 3)}
    (tmp_path / 'meta.txt').write_text('3.png (40,50,3)\n1.png\n')
    lmdb = str(write_lmdb(tmp_path / 'a.lmdb', data))
    settings = {'sigma_test': 25, 'meta_info_file': str(tmp_path / 'meta.txt'), 'in_memory': in_memory}
    dataset = Dataset_GaussianDenoising(lmdb, 'none', {'type': 'lmdb'}, **settings)
    files = Dataset_GaussianDenoising(root, 'none', sigma_test=25)
    assert_same(dataset, [files[0], files[2]])
    assert [dataset.files(index) for index in (0, 1)] == [f'{lmdb}:1', f'{lmdb}:3']


@pytest.mark.parametrize(
    ('sigma_type', 'sigma_range', 'allowed'),
    [
        ('constant', [15, 25], 'one number'),
        ('constant', [15], 'one number'),
        ('random', 50, 'a list [from, to]'),
        ('random', [0, 25, 50], 'a list [from, to]'),
        ('random', [50, 0], 'a list [from, to]'),
        ('choice', 25, 'a list of one number or more'),
        ('choice', [], 'a list of one number or more'),
    ],
)
def test_settings_that_do_not_fit_are_named(root, sigma_type, sigma_range, allowed):
    text = refusal(lambda: Dataset_GaussianDenoising(root, sigma_type=sigma_type, sigma_range=sigma_range))
    assert text == f'sigma_range: found {sigma_range}; allowed: {allowed}, for sigma_type {sigma_type}'


def test_missing_sigmas_are_named(root):
    dataset = Dataset_GaussianDenoising(root)
    assert refusal(lambda: dataset[0]).startswith('sigma_test: found nothing; allowed: ')
    with pytest.raises(DataError, match='sigma_range: found nothing; allowed: '):
        dataset[SampleKey(0, 0, 16, 0)]
