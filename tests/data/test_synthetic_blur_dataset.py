"""Synthetic pairs, and mixed datasets."""

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from basicsr.data.blur.parameters import BlurParameters
from basicsr.data.mixed_dataset import ROUNDS, Dataset_Mixed
from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.data.sampler import SampleKey
from basicsr.data.synthetic_blur_dataset import Dataset_SyntheticBlur
from basicsr.options.json_schema import json_schema
from basicsr.options.load import read_options
from basicsr.utils.errors import DataError, OptionError
from basicsr.utils.registry import DATASET_REGISTRY

KEY = SampleKey(index=1, number=5, patch=32, seed=9)


def write_photographs(folder, *names):
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), cv2.GaussianBlur(noise, (0, 0), 2))
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return write_photographs(tmp_path / 'photographs', 'a.png', 'b.jpg', 'c.webp')


@pytest.fixture
def pairs(tmp_path):
    """Real ones, for Dataset_PairedImage."""
    return {
        f'dataroot_{kind}': write_photographs(tmp_path / kind, *(f'{n}.png' for n in range(5)))
        for kind in ('lq', 'gt')
    }


def same(one, other):
    return one['name'] == other['name'] and all(torch.equal(one[kind], other[kind]) for kind in ('lq', 'gt'))


# --- synthetic ----------------------------------------------------------------------------------------------


def test_a_sample_is_a_pair_of_patches_that_depends_only_on_its_key(folder):
    dataset, again = (Dataset_SyntheticBlur(dataroot_gt=folder) for _ in range(2))
    assert (len(dataset), dataset.channels) == (3, 3)
    samples = [dataset[KEY._replace(number=number, index=number % 3)] for number in range(8)]
    for number, sample in enumerate(samples):
        assert sample['name'] == 'abc'[number % 3]
        for kind in ('lq', 'gt'):
            assert sample[kind].dtype == torch.uint8 and sample[kind].shape == (3, 32, 32)
    assert same(again[KEY._replace(number=4)], samples[4])  # there is no state
    for other in (KEY._replace(number=6), KEY._replace(seed=8), KEY._replace(index=2)):
        assert not torch.equal(dataset[KEY]['lq'], dataset[other]['lq'])


def test_another_process_makes_the_same_bytes(folder):
    code = (
        'import zlib; from basicsr.data.sampler import SampleKey; '
        'from basicsr.data.synthetic_blur_dataset import Dataset_SyntheticBlur; '
        f'sample = Dataset_SyntheticBlur(dataroot_gt={folder!r}, foreground=1, jpeg=1)[SampleKey{tuple(KEY)}]; '
        'checksum = zlib.crc32(sample["lq"].numpy().tobytes() + sample["gt"].numpy().tobytes())'
    )
    here = {}
    exec(code, here)
    there = subprocess.run(
        [sys.executable, '-c', f'{code}; print(checksum)'], capture_output=True, text=True, check=True
    )
    assert int(there.stdout) == here['checksum']


def test_a_full_size_pair_depends_only_on_its_index(folder):
    dataset, again = (Dataset_SyntheticBlur(dataroot_gt=folder, scale=[1, 1]) for _ in range(2))
    pairs = [dataset[index] for index in range(3)]
    assert all(same(again[index], pairs[index]) for index in (2, 0, 1))
    assert all(pair[kind].shape == (3, 60, 80) for pair in pairs for kind in ('lq', 'gt'))
    assert list(range(3)) == [index for index, _ in enumerate(dataset)]  # a large index ends the loop


def test_colours_are_in_the_order_of_the_file_and_16_bit_photographs_become_8_bit(tmp_path):
    image = np.zeros((40, 40, 3), np.uint16)
    image[..., 2] = 257 * 200  # red, to OpenCV
    (tmp_path / 'red').mkdir()
    cv2.imwrite(str(tmp_path / 'red' / 'a.png'), image)
    dataset = Dataset_SyntheticBlur(dataroot_gt=str(tmp_path / 'red'), gain=[1, 1])
    assert [plane.unique().tolist() for plane in dataset[0]['gt']] == [[200], [0], [0]]


def test_photographs_in_memory_give_the_same_samples(folder):
    dataset, kept = (Dataset_SyntheticBlur(dataroot_gt=folder, in_memory=keep) for keep in (False, True))
    assert same(dataset[KEY], kept[KEY]) and same(dataset[0], kept[0])
    assert same(pickle.loads(pickle.dumps(kept))[KEY], kept[KEY])


def test_augmentation_is_one_symmetry_for_both(folder):
    plain, augmented = (
        Dataset_SyntheticBlur(dataroot_gt=folder, geometric_augs=augs) for augs in (False, True)
    )
    turned = 0
    for number in range(10):
        one, other = plain[KEY._replace(number=number)], augmented[KEY._replace(number=number)]
        symmetries = [
            lambda image, k=k, mirror=mirror: torch.rot90(image.flip(2) if mirror else image, k, (1, 2))
            for k in range(4) for mirror in (False, True)
        ]  # fmt: skip
        found = [all(torch.equal(f(one[kind]), other[kind]) for kind in ('lq', 'gt')) for f in symmetries]
        assert any(found)
        turned += not found[0]
    assert turned > 3


def test_several_folders_are_one_dataset_with_unique_names(tmp_path, folder):
    others = write_photographs(tmp_path / 'others', 'b.png', 'b-1.png')
    dataset = Dataset_SyntheticBlur(dataroot_gt=[folder, others])
    names = [dataset[index]['name'] for index in range(len(dataset))]
    assert names[0] == 'a' and names[2] == 'c' and len({*names}) == 5
    assert dataset.files(1).endswith('photographs/b.jpg') and dataset.files(4).endswith('others/b-1.png')


def test_invalid_folders_are_refused(tmp_path, folder):
    with pytest.raises(DataError, match=r'dataroot_gt: found ".*which is not a folder; allowed: '):
        Dataset_SyntheticBlur(dataroot_gt=[folder, str(tmp_path / 'nowhere')])
    with pytest.raises(DataError, match='dataroot_gt: found an empty list; allowed: '):
        Dataset_SyntheticBlur(dataroot_gt=[])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='empty: contains no images'):
        Dataset_SyntheticBlur(dataroot_gt=str(tmp_path / 'empty'))
    (tmp_path / 'photographs' / 'b.jpg').write_bytes(b'no image')
    with pytest.raises(DataError, match=r'b\.jpg: is not an image; allowed: png'):
        Dataset_SyntheticBlur(dataroot_gt=folder)[1]


def test_every_parameter_is_a_key_with_a_description():
    parameters = inspect.signature(BlurParameters).parameters
    described = json_schema()['$defs']['Dataset_SyntheticBlur']['properties']
    for name in [*parameters, 'dataroot_gt', 'geometric_augs', 'in_memory']:
        assert len(described[name]['description']) > 10
    assert described['shake']['default'] == list(parameters['shake'].default)


# --- mixed --------------------------------------------------------------------------------------------------


def mixed(folder, pairs, **changes):
    sets = [{'type': 'Dataset_SyntheticBlur', 'dataroot_gt': folder}, {'type': 'Dataset_PairedImage', **pairs}]
    return Dataset_Mixed(sets, **changes)


class Visits:
    """A set that counts how often each of its pairs is asked for."""

    def __init__(self, pairs):
        self.counts = np.zeros(pairs, int)

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, key):
        self.counts[key if isinstance(key, int) else key.index] += 1


@pytest.mark.parametrize('weights', [(1, 1), (3, 1), (0.5, 4.5)])
@pytest.mark.parametrize('training', [True, False])
def test_sets_are_drawn_by_weight_and_not_by_the_random_numbers_of_the_sample(folder, weights, training):
    section = {'type': 'Dataset_SyntheticBlur', 'dataroot_gt': folder}
    dataset = Dataset_Mixed([{**section, 'weight': weight} for weight in weights])
    dataset.sets = [Visits(500), Visits(500)]
    chosen, drawn = [], []
    for number in range(ROUNDS * 500):
        key = SampleKey(number, number, 32, 100) if training else number
        before = dataset.sets[0].counts.sum()
        dataset[key]
        chosen.append(dataset.sets[0].counts.sum() > before)
        drawn.append((key.generator() if training else np.random.default_rng(number)).random())
    expected = weights[0] / sum(weights)
    assert np.mean(chosen) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / len(chosen)))
    assert abs(np.corrcoef(chosen, drawn)[0, 1]) < 0.08


def test_the_samples_are_those_of_the_sets(folder, pairs):
    dataset = mixed(folder, pairs)
    own = (Dataset_SyntheticBlur(dataroot_gt=folder), Dataset_PairedImage(**pairs))
    seen = set()
    for number in range(12):
        key = SampleKey(number, number, 32, 4)
        found = [same(dataset[key], each[key._replace(index=number % len(each))]) for each in own]
        assert sum(found) == 1
        seen.add(found.index(True))
    assert seen == {0, 1}
    assert same(dataset[3], dataset[3]) and dataset.channels == 3
    assert re.search(r'photographs/c\.webp or .*lq/2\.png$', dataset.files(17))


def test_an_epoch_has_every_pair_about_as_often(folder, pairs):
    dataset = mixed(folder, pairs)
    assert len(dataset) == ROUNDS * 5
    for pairs_of_set in (3, 5):
        visits = Visits(pairs_of_set)
        dataset.sets = [visits, visits]
        for index in range(ROUNDS * 5):
            dataset[SampleKey(index, 0, 32, 1)]
        assert visits.counts.min() >= ROUNDS and np.ptp(visits.counts) <= 1


def test_a_set_may_take_a_path_and_have_a_weight_of_its_own(folder, pairs, monkeypatch):
    monkeypatch.setattr(DATASET_REGISTRY, '_entries', dict(DATASET_REGISTRY._entries))

    @DATASET_REGISTRY.register()
    class Weighted(Dataset_PairedImage):
        def __init__(self, root: Path, weight: float = 3.0):
            self.root, self.weight = root, weight
            super().__init__(**pairs)

    section = {'type': 'Weighted', 'root': Path(folder), 'weight': 0.25}
    for weight in (-1, 'x'):
        with pytest.raises(ValidationError):
            Dataset_Mixed([{**section, 'weight': weight}])
    made = Dataset_Mixed([section, {'type': 'Dataset_SyntheticBlur', 'dataroot_gt': folder, 'weight': 0.75}])
    assert made.sets[0].root == Path(folder) and made.sets[0].weight == 3 and made._until.tolist() == [0.25]
    with pytest.raises(DataError, match='1 set or more'):
        Dataset_Mixed([])


def test_sets_of_grey_and_coloured_images_are_not_mixed(folder, pairs):
    grey = {'type': 'Dataset_PairedImage', **pairs, 'channels': 1}
    with pytest.raises(DataError, match='found images of 3 and 1 channels; allowed: the same number'):
        Dataset_Mixed([{'type': 'Dataset_SyntheticBlur', 'dataroot_gt': folder}, grey])


def test_added_noise_and_two_views_mix_with_sets_of_their_channels(folder, pairs):
    noise = {'type': 'Dataset_GaussianDenoising', 'dataroot_gt': folder, 'sigma_range': 25}
    views = {
        'type': 'Dataset_DefocusDeblur_DualPixel_16bit',
        'dataroot_lqL': pairs['dataroot_lq'],
        'dataroot_lqR': pairs['dataroot_gt'],
        'dataroot_gt': pairs['dataroot_gt'],
    }
    colour = {'type': 'Dataset_PairedImage', **pairs}
    for sections, channels in (([noise, colour], (3, 3)), ([views, views], (6, 3))):
        dataset = Dataset_Mixed(sections)
        assert (dataset.lq_channels, dataset.channels) == channels
        samples = [dataset[SampleKey(number, number, 16, 0)] for number in range(12)]
        assert {(len(sample['lq']), len(sample['gt'])) for sample in samples} == {channels}
        assert {sample['lq'].is_floating_point() for sample in samples} == {False, sections[0] is noise}
    with pytest.raises(DataError, match=r'found images of 3 and 6 \(lq\) and 3 \(gt\) channels'):
        Dataset_Mixed([colour, views])


def test_photographs_are_kept_in_the_sets_that_can(folder, pairs):
    assert [len(each._kept) for each in mixed(folder, pairs, in_memory=True).sets] == [3, 5]


# --- option files -------------------------------------------------------------------------------------------

OPTIONS = """
name: mine
num_gpu: 0
network_g: {{type: Restormer}}
train:
  total_iter: 4
  optim_g: {{type: AdamW, lr: 3e-4}}
  scheduler: {{type: CosineAnnealingRestartCyclicLR, periods: [4], restart_weights: [1], eta_mins: [1e-6]}}
  pixel_opt: {{type: L1Loss}}
datasets:
  train: {{gt_size: 32, batch_size_per_gpu: 2, {train}}}
"""


def options(tmp_path, train):
    path = tmp_path / 'mine.yml'
    path.write_text(OPTIONS.format(train=train))
    return read_options(path, [], 'train')


def test_both_can_stand_in_an_option_file(tmp_path, folder):
    read = options(tmp_path, f'type: Dataset_SyntheticBlur, dataroot_gt: [{folder}], shake: [0, 3], jpeg: 1')
    assert tuple(read.datasets['train'].shake) == (0, 3)
    one = f'{{type: Dataset_SyntheticBlur, dataroot_gt: {folder}, weight: 2.5, fov: [50, 60]}}'
    assert len(options(tmp_path, f'type: Dataset_Mixed, sets: [{one}, {one}]').datasets['train'].sets) == 2


@pytest.mark.parametrize(
    ('train', 'text'),
    [
        ('type: Dataset_SyntheticBlur, dataroot_gt: nowhere', 'train.dataroot_gt: found "nowhere"'),
        ('type: Dataset_SyntheticBlur, dataroot_gt: [nowhere]', 'train.dataroot_gt: found "nowhere"'),
        ('type: Dataset_SyntheticBlur, dataroot_gt: FOLDER, fov: [9, 2]', r'train.fov: found \[9.*; allowed: \[lo, hi'),
        ('type: Dataset_SyntheticBlur, dataroot_gt: FOLDER, jpeg: x', 'train.jpeg: found "x"; allowed: a number'),
        ('type: Dataset_Mixed, sets: []', r'train.sets: found \[\]; allowed: at least 1 item'),
        ('type: Dataset_Mixed, sets: [x]', 'train.sets.0: found "x"; allowed: a mapping'),
        ('type: Dataset_Mixed, sets: [{weight: 2}]', 'train.sets.0.type: found nothing; allowed: "Dataset_De'),
        ('type: Dataset_Mixed, sets: [{type: Dataset_Mixed, sets: [SET]}]',
         'train.sets.0.type: found "Dataset_Mixed"; allowed: .*oising", "Dataset_PackedImage", '),
        ('type: Dataset_Mixed, sets: [{type: Dataset_PairedImage, dataroot_lq: FOLDER}]',
         'train.sets: found no dataroot_gt in set 1; allowed: a value, to train'),
        *((f'type: Dataset_Mixed, sets: [SET, {{{change}, type: Dataset_SyntheticBlur, dataroot_gt: FOLDER}}]', text)
          for change, text in (
              ('weight: 0', 'train.sets.1.weight: found 0; allowed: greater than 0'),
              ('weight: "2"', 'train.sets.1.weight: found "2"; allowed: a number'),
              ('fow: 3', r'train.sets.1.fow: found an unknown key \(did you mean fov\?\); allowed: type, weight, '),
              ('shake: 5', 'train.sets.1.shake: found 5; allowed: a list'),
              ('shake: [5, 4]', r'train.sets: found a mistake in set 2 .*shake: found \[5.*allowed: \[lo, hi\] with'),
              ('in_memory: yes!', 'train.sets.1.in_memory: found "yes!"; allowed: true or false'),
          )),
    ],
)  # fmt: skip
def test_an_error_in_an_option_file_names_the_key(tmp_path, folder, train, text):
    train = train.replace('SET', '{type: Dataset_SyntheticBlur, dataroot_gt: FOLDER}').replace('FOLDER', folder)
    with pytest.raises(OptionError, match=f'datasets.{text}'):
        options(tmp_path, train)
