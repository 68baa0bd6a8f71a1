"""Evaluation of a set, against the metrics' formulas written out."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import time
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist

from basicsr import test
from basicsr.evaluation.evaluate import Evaluation, build_metrics, evaluate, files_of
from basicsr.evaluation.report import as_table, write_figures
from basicsr.metrics.metric import Metric
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.options.load import read_options
from basicsr.utils.cli import run
from basicsr.utils.dist import Rank
from basicsr.utils.errors import DataError, RestoreError, RunError
from basicsr.utils.files import ROOT

PSNR = {'psnr': Metric(calculate_psnr)}
DEPTHS = [np.uint8, np.uint16]
# Any device but the CPU makes `evaluate` read ahead and write behind in threads; nothing is moved to it.
devices = pytest.mark.parametrize(
    'device', [torch.device('cpu'), torch.device('meta')], ids=['in turn', 'threads']
)


class Pairs:
    """Images (H, W, C) as a dataset gives them."""

    def __init__(self, lq, gt=None, names=None):
        self.lq, self.gt = lq, gt
        self.names = names or [f'image {index}' for index in range(len(lq))]

    def __len__(self):
        return len(self.lq)

    def __getitem__(self, index):
        kinds = {'lq': self.lq} if self.gt is None else {'lq': self.lq, 'gt': self.gt}
        images = {kind: torch.from_numpy(images[index]).permute(2, 0, 1) for kind, images in kinds.items()}
        kept = (torch.uint8, torch.float32)
        return {
            **{kind: x if x.dtype in kept else x.float() / 65535 for kind, x in images.items()},
            'name': self.names[index],
        }

    def files(self, index):
        return f'/folder/{self.names[index]}.png'


def images(count, dtype=np.uint8, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(11 + index, 17 - index) for index in range(count)]
    return [rng.integers(0, np.iinfo(dtype).max + 1, (*size, channels), dtype) for size in sizes]


def darker(lq):
    return lq * 0.75 + 0.01


def scaled(image):
    return image / float(np.iinfo(image.dtype).max)


def psnr(restored, gt, top):
    """PSNR of two arrays in [0, 1], rounded to `top` levels; None: unrounded."""
    if top:
        restored, gt = (np.rint(x * top) / top for x in (restored, gt))
    return 10 * math.log10(1 / np.mean((restored - gt) ** 2))


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


# Figures


@pytest.mark.parametrize('rounded', [True, False])
@pytest.mark.parametrize('lq_depth', DEPTHS)
@pytest.mark.parametrize('gt_depth', DEPTHS)
@pytest.mark.parametrize('workers', [0, 2])
@devices
def test_images_are_measured_at_the_depth_of_the_ground_truth(rounded, lq_depth, gt_depth, workers, device):
    lq, gt = images(3, lq_depth), images(3, gt_depth, seed=1)
    seen = []

    def restore(x):
        seen.append(x)
        return darker(x)

    options = {'rounded': rounded, 'measure_input': True, 'workers': workers, 'device': device}
    result = evaluate(restore, Pairs(lq, gt), PSNR, **options)
    for image, x in zip(lq, seen, strict=True):
        assert x.dtype == torch.float32
        np.testing.assert_allclose(x.numpy(), scaled(image).transpose(2, 0, 1)[None], rtol=1e-6)
    top = np.iinfo(gt_depth).max if rounded else None
    expected = {
        'psnr': [psnr(darker(scaled(a)), scaled(b), top) for a, b in zip(lq, gt, strict=True)],
        'input_psnr': [psnr(scaled(a), scaled(b), top) for a, b in zip(lq, gt, strict=True)],
    }
    assert [image['name'] for image in result.images] == ['image 0', 'image 1', 'image 2']
    assert result.means.keys() == expected.keys()
    for name, values in expected.items():
        assert [image[name] for image in result.images] == pytest.approx(values, abs=1e-5)
        assert result.means[name] == pytest.approx(sum(values) / 3, abs=1e-5)


@pytest.mark.parametrize('rounded', [True, False])
@pytest.mark.parametrize('depth', DEPTHS)
def test_unchanged_images_are_equal(rounded, depth):
    top = np.iinfo(depth).max
    ramp = np.linspace(0, top, 256 if depth == np.uint8 else 1 << 16).astype(depth).reshape(16, -1, 1)
    result = evaluate(lambda x: x, Pairs([ramp], [ramp]), PSNR, rounded=rounded, measure_input=True)
    assert result.means == {'psnr': math.inf, 'input_psnr': math.inf}


@pytest.mark.parametrize('rounded', [True, False])
def test_values_are_clamped_before_they_are_measured(rounded):
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    result = evaluate(lambda x: x * 9 - 4, Pairs([black, white], [black, white]), PSNR, rounded=rounded)
    assert result.means['psnr'] == math.inf


def test_metrics_of_an_option_file(tmp_path):
    path = tmp_path / 'options.yml'
    path.write_text("""
name: x
datasets: {val: {type: Dataset_PairedImage, dataroot_lq: a}}
network_g: {type: Restormer}
val:
  metrics:
    y: {type: calculate_psnr, crop_border: 2, test_y_channel: true}
    low: {type: calculate_psnr, better: lower}
    mae: {type: calculate_mae}
""")
    options = read_options(path)
    metrics = build_metrics(options.val.metrics)
    assert list(metrics) == ['y', 'low', 'mae']
    lq, gt = images(1), images(1, seed=1)
    luma = [(x[2:-2, 2:-2] @ np.array([65.481, 128.553, 24.966]) / 255 + 16) for x in (lq[0], gt[0])]
    expected = 10 * math.log10(255**2 / np.mean((luma[0] - luma[1]) ** 2))
    result = evaluate(lambda x: x, Pairs(lq, gt), metrics)
    assert result.means['y'] == pytest.approx(expected, abs=1e-6)
    assert result.means['low'] == pytest.approx(psnr(scaled(lq[0]), scaled(gt[0]), 255), abs=1e-6)
    for name, better, worse in (('y', 2.0, 1.0), ('low', 1.0, 2.0), ('mae', 1.0, 2.0)):
        metric = metrics[name]
        assert metric.is_better(better, worse)
        assert not metric.is_better(worse, better)
        assert not metric.is_better(better, better)
        assert metric.is_better(worse, None)
        assert not metric.is_better(math.nan, None) and not metric.is_better(math.nan, worse)
        assert metric.is_better(worse, math.nan)


@pytest.mark.parametrize('number', [np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_a_metric_may_give_any_kind_of_number(number):
    result = evaluate(lambda x: x, Pairs(images(1), images(1)), {'half': Metric(lambda *_, **__: number)})
    assert type(result.images[0]['half']) is float and result.means['half'] == 0.5


def test_a_metric_may_give_a_condition():
    tall = {'tall': Metric(lambda x, *_, **__: x.shape[0] > 11)}
    result = evaluate(darker, Pairs(images(2), images(2)), tall)
    assert [image['tall'] for image in result.images] == [False, True] and result.means == {}


def test_a_dataset_need_not_know_its_files():
    assert files_of(object(), 3) == 'pair 3 of object'


def test_only_the_first_images():
    result = evaluate(darker, Pairs(images(3), images(3)), PSNR, limit=2)
    assert [image['name'] for image in result.images] == ['image 0', 'image 1']
    assert len(evaluate(darker, Pairs(images(3), images(3)), PSNR, limit=9).images) == 3


# Images left out


def unreadable(pairs):
    """Reading the second image raises."""

    class Broken(Pairs):
        def __getitem__(self, index):
            if index == 1:
                raise DataError('/folder/image 1.png: is empty')
            return super().__getitem__(index)

    return Broken(pairs.lq, pairs.gt)


def spoiled(value, x):
    """The second image gets a value that is not finite, or its restoration raises."""
    if x.shape[2] != 12:
        return darker(x)
    if isinstance(value, Exception):
        raise value
    x = x.clone()
    x[0, 2, 5, 7] = value
    return x


def picky(error, restored, gt, data_range):
    """The second image cannot be measured."""
    if restored.shape[0] == 12:
        raise error
    return 1.0


MEASURING = {
    'too small': (ValueError('too small'), 'too small'),
    'memory': (MemoryError(), 'out of memory while measuring; fewer workers need less'),
    'OpenCV': (cv2.error('no\nidea\n'), 'no idea'),
}
NOT_FINITE = 'the restored image is not finite'
SPOILED = {
    'unreadable': (unreadable, darker, {}, 'is empty'),
    **{
        f'{value}': (lambda pairs: pairs, partial(spoiled, value), {}, NOT_FINITE)
        for value in (math.nan, -math.inf)
    },
    'not restored': (lambda pairs: pairs, partial(spoiled, RestoreError('too large')), {}, 'too large'),
    **{
        name: (lambda pairs: pairs, darker, {'x': Metric(partial(picky, error))}, said)
        for name, (error, said) in MEASURING.items()
    },
}


@pytest.mark.parametrize(('spoil', 'restore', 'metrics', 'said'), SPOILED.values(), ids=list(SPOILED))
@pytest.mark.parametrize('workers', [0, 2])
@devices
def test_an_image_that_fails_is_named_and_left_out(
    tmp_path, capsys, spoil, restore, metrics, said, workers, device
):
    pairs = spoil(Pairs(images(3), images(3, seed=1)))
    metrics = {**PSNR, **metrics}
    result = evaluate(restore, pairs, metrics, folder=tmp_path, workers=workers, device=device)
    good = Pairs([pairs.lq[0], pairs.lq[2]], [pairs.gt[0], pairs.gt[2]], ['image 0', 'image 2'])
    assert result.images == evaluate(darker, good, metrics).images
    assert result.means['psnr'] == np.mean([image['psnr'] for image in result.images])
    assert result.failed == [f'/folder/image 1.png: {said}']
    assert capsys.readouterr().err.count(f'not measured: /folder/image 1.png: {said}\n') == 1
    assert {'image 0.png', 'image 2.png'} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match='image 1'):
        result.raise_if_failed()


def test_many_failures_are_one_sentence():
    result = Evaluation(failures={number: f'{number}.png: is empty' for number in (7, 5, 6, 8, 9)})
    with pytest.raises(DataError, match=r'^5\.png: is empty; 6\.png: is empty; 7\.png: is empty; and 2 more$'):
        result.raise_if_failed()
    Evaluation().raise_if_failed()


@pytest.mark.parametrize('workers', [0, 2])
@devices
def test_figures_measured_before_an_exception_are_kept(tmp_path, workers, device):
    (tmp_path / 'image 2.png').mkdir()  # no result can be written there
    result = Evaluation()
    pairs, options = Pairs(images(4), images(4)), {'workers': workers, 'device': device, 'result': result}
    with pytest.raises(RunError, match=r'image 2\.png: cannot be written'):
        evaluate(darker, pairs, PSNR, folder=tmp_path, **options)
    assert [image['name'] for image in result.images] == ['image 0', 'image 1'] and not result.failed

    def interrupted(x):
        if x.shape[2] == 13:  # the third image
            raise KeyboardInterrupt
        return x

    result.figures.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate(interrupted, pairs, PSNR, **options)
    if not workers and device.type == 'cpu':  # else the second may be on its way
        assert [image['name'] for image in result.images] == ['image 0', 'image 1']


def test_few_images_wait_in_memory():
    restored, measured, waiting = [], [], []

    def restore(x):
        waiting.append(len(restored) - len(measured))
        restored.append(x)
        return x

    def slow(*_, **__):
        time.sleep(0.01)
        measured.append(1)
        return 1.0

    evaluate(restore, Pairs(images(12), images(12)), {'x': Metric(slow)}, workers=2)
    assert 2 <= max(waiting) <= 5 and len(measured) == 12


def test_ctrl_c_waits_only_for_the_image_that_is_being_measured():
    result = Evaluation()

    def interrupted(x):
        if x.shape[2] == 13:  # the third image
            raise KeyboardInterrupt
        return x

    def slow(*_, **__):
        time.sleep(0.3)
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        evaluate(interrupted, Pairs(images(4), images(4)), {'x': Metric(slow)}, workers=1, result=result)
    assert [image['name'] for image in result.images] == ['image 0']


def test_a_bug_in_a_metric_is_raised():
    def broken(restored, gt, data_range):
        if restored.shape[0] == 13:  # the last image
            time.sleep(0.05)
            raise TypeError('a bug')
        return 1.0

    for workers in (0, 2):
        with pytest.raises(TypeError, match='a bug'):
            evaluate(darker, Pairs(images(3), images(3)), {'x': Metric(broken)}, workers=workers)


# Results as files


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('with_truth', [True, False])
@devices
def test_results_are_written_at_the_depth_of_the_truth_else_of_the_input(
    tmp_path, depth, channels, with_truth, device
):
    lq = images(2, np.uint16 if with_truth else depth, channels)
    gt = images(2, depth, channels) if with_truth else None
    pairs, folder = Pairs(lq, gt, ['a.b', '000/1']), tmp_path / 'new' / 'folder'
    result = evaluate(darker, pairs, PSNR, folder=folder, device=device)
    assert [image['name'] for image in result.images] == ['a.b', '000/1']
    assert (result.means.keys() == {'psnr'}) is with_truth
    if not with_truth:
        assert result.images == [{'name': 'a.b'}, {'name': '000/1'}]
        assert result.means == {}
    for image, name in zip(lq, ['a.b', '000/1'], strict=True):
        found = read(folder / f'{name}.png')
        found = found[..., None] if channels == 1 else found[..., ::-1]
        assert found.dtype == depth
        np.testing.assert_array_equal(found, np.rint(darker(scaled(image)) * np.iinfo(depth).max))
    assert sum(path.is_file() for path in tmp_path.rglob('*')) == 2


@pytest.mark.parametrize('rounded', [True, False])
def test_noise_beyond_black_and_white_is_clamped(tmp_path, rounded):
    (gt,) = images(1)
    lq = np.float32(gt / 255 + np.random.default_rng(1).normal(0, 0.5, gt.shape))
    saved = []
    options = {'rounded': rounded, 'measure_input': True, 'folder': tmp_path}
    result = evaluate(darker, Pairs([lq], [gt]), PSNR, save=lambda *given: saved.append(given), **options)
    top, restored = 255 if rounded else None, np.clip(darker(lq), 0, 1)
    assert result.means == {
        'psnr': pytest.approx(psnr(restored, gt / 255, top), abs=1e-5),
        'input_psnr': pytest.approx(psnr(np.clip(lq, 0, 1), gt / 255, top), abs=1e-5),
    }
    np.testing.assert_array_equal(result.sample['lq'], np.rint(np.clip(lq, 0, 1) * 255))
    found = read(tmp_path / 'image 0.png')
    assert found.dtype == np.uint8  # as the ground truth, not as the input
    np.testing.assert_array_equal(found[..., ::-1], np.rint(restored * 255))
    ((index, values),) = saved
    assert index == 0 and values.dtype == np.float32
    np.testing.assert_allclose(values, restored, rtol=1e-6)


def test_two_views_are_not_measured_and_the_first_is_the_sample():
    (views,), (gt,) = images(1, np.uint16, channels=6), images(1, np.uint16, seed=1)
    result = evaluate(lambda x: darker(x[:, 3:]), Pairs([views], [gt]), PSNR, measure_input=True)
    assert result.means == {
        'psnr': pytest.approx(psnr(darker(scaled(views[..., 3:])), scaled(gt), 65535), abs=1e-5)
    }
    np.testing.assert_array_equal(result.sample['lq'], np.rint(scaled(views[..., :3]) * 255))


@pytest.mark.parametrize('lq_depth', DEPTHS)
@devices
def test_the_sample_is_the_first_image_in_8_bits(lq_depth, device):
    lq, gt = images(2, lq_depth), images(2, np.uint16, seed=1)
    sample = evaluate(darker, Pairs(lq, gt), PSNR, device=device).sample
    expected = {'lq': scaled(lq[0]), 'gt': scaled(gt[0]), 'restored': darker(scaled(lq[0]))}
    assert sample.keys() == expected.keys()
    for kind, image in expected.items():
        assert sample[kind].dtype == np.uint8
        np.testing.assert_array_equal(sample[kind], np.rint(image * 255))
    assert evaluate(darker, Pairs(lq), PSNR).sample.keys() == {'lq', 'restored'}


# Reports


RESULTS = {
    'A': Evaluation(
        {0: {'name': 'a', 'psnr': 30.0, 'ok': True}, 2: {'name': 'ccc', 'psnr': 31.5, 'ok': False}}
    ),
    'B': Evaluation({1: {'name': 'b\udcdf', 'psnr': math.inf}}, {0: 'a.png: is empty'}),
}


def test_figures_as_files(tmp_path):
    write_figures(tmp_path / 'new', {'name': 'x'}, RESULTS)
    found = json.loads((tmp_path / 'new' / 'metrics.json').read_text())
    assert found == {
        'name': 'x',
        'datasets': {
            'A': {'mean': {'psnr': 30.75}, 'images': RESULTS['A'].images},
            'B': {
                'mean': {'psnr': None},
                'not_measured': ['a.png: is empty'],
                'images': [{'name': 'b\udcdf', 'psnr': None}],
            },
        },
    }
    rows = list(csv.reader((tmp_path / 'new' / 'metrics.csv').open()))
    assert rows == [
        ['dataset', 'name', 'psnr', 'ok'],
        ['A', 'a', '30.0', 'True'],
        ['A', 'ccc', '31.5', 'False'],
        ['A', 'mean', '30.75', ''],
        ['B', 'b\\udcdf', 'inf', ''],
        ['B', 'mean', 'inf', ''],
    ]


def test_figures_as_a_table():
    assert as_table(RESULTS['A']).splitlines() == [
        'image     psnr      ok',
        '-' * 22,
        'a      30.0000     yes',
        'ccc    31.5000      no',
        '-' * 22,
        'mean   30.7500  1 of 2',
    ]


@pytest.mark.parametrize(('problem', 'status'), [(DataError('1.png: is empty'), 1), (KeyboardInterrupt(), 130)])
def test_test_py_writes_figures_before_a_problem(runs, monkeypatch, capsys, problem, status):
    """The second image of the first set fails: the others, and the second set, are measured unless it is Ctrl-C."""

    class Broken(Pairs):
        def __getitem__(self, index):
            if index == 1:
                raise problem
            return super().__getitem__(index)

    name, path = runs.option_file()
    sets = {'One': Broken(images(3), images(3)), 'Two': Pairs(images(2), images(2))}
    monkeypatch.setattr(test, 'validation_sets', lambda _: sets)
    monkeypatch.setattr(test, 'load_pretrained', lambda *_: None)
    assert run('basicsr.test', ['-opt', str(path), '--force_yml', f'path:pretrain_network_g={path}']) == status
    measured = json.loads((ROOT / 'results' / name / 'metrics.json').read_text())['datasets']
    out, error = capsys.readouterr()
    if status == 1:
        assert [len(each['images']) for each in measured.values()] == [2, 2]
        assert measured['One']['not_measured'] == ['1.png: is empty']
        assert 'not measured: 1.png: is empty\n' in error
        assert '\nOne: 2 of 3 images\nimage ' in out and '\nTwo\nimage ' in out
    else:
        assert [each['name'] for each in measured['One']['images']] == ['image 0'] and list(measured) == ['One']
        assert '\nOne: 1 of 3 images\nimage ' in out


# Several processes


def _one_of(rank, world_size, count, folder, queue):
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # a forked process has none of OpenCV's threads
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=world_size)
    restored = []

    def restore(x):
        restored.append(1)
        return darker(x)

    result = evaluate(
        restore,
        Pairs(images(count), images(count, seed=1)),
        PSNR,
        folder=folder / 'results',
        rank=Rank(rank, world_size, rank),
    )
    queue.put((rank, len(restored), result.images, result.means, result.sample is not None))
    dist.barrier()  # the last one out takes the store along
    dist.destroy_process_group()


@pytest.mark.parametrize(('world_size', 'count'), [(2, 5), (3, 2)])
def test_processes_share_the_work_and_return_the_same_result(tmp_path, world_size, count):
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [
        context.Process(target=_one_of, args=(rank, world_size, count, tmp_path, queue), daemon=True)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    answers = sorted(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    alone = evaluate(darker, Pairs(images(count), images(count, seed=1)), PSNR)
    for rank, restored, per_image, means, has_sample in answers:
        assert restored == len(range(rank, count, world_size))
        assert per_image == alone.images
        assert means == alone.means
        assert has_sample is (rank == 0)
    assert len(list((tmp_path / 'results').iterdir())) == count


def test_results_are_in_the_order_of_the_set():
    class Backwards:
        index, world_size, is_main = 0, 1, True

        def gather(self, mine):
            figures, failures = mine
            keys = list(figures)
            return [({key: figures.pop(key) for key in part}, failures) for part in (keys[1::2], keys[::2])]

    result = evaluate(darker, Pairs(images(5)), {}, rank=Backwards())
    assert [image['name'] for image in result.images] == [f'image {index}' for index in range(5)]
