"""Whole-image evaluation, against the metrics' formulas written out."""

from __future__ import annotations

import math
import multiprocessing

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist

from basicsr.data.paired_image_dataset import Dataset_PairedImage
from basicsr.evaluation.evaluate import build_metrics, evaluate, files_of
from basicsr.inference import Restorer
from basicsr.metrics.metric import Metric
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.options.load import load_options
from basicsr.utils.dist import Rank
from basicsr.utils.errors import DataError

PSNR = {'psnr': Metric(calculate_psnr)}
DEPTHS = [np.uint8, np.uint16]


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
        return {
            **{kind: x if x.dtype == torch.uint8 else x.float() / 65535 for kind, x in images.items()},
            'name': self.names[index],
        }

    def files(self, index):
        return f'/folder/{self.names[index]}.png'


def images(count, dtype=np.uint8, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    sizes = [(11 + index, 17 - index) for index in range(count)]
    return [rng.integers(0, np.iinfo(dtype).max + 1, (*size, channels), dtype) for size in sizes]


@pytest.fixture(params=[False, True], ids=['in turn', 'threads'])
def threads(request, monkeypatch):
    """As on a GPU: of the device 'meta' it is only said that it does the work."""
    staged = evaluate.in_stages
    if request.param:
        monkeypatch.setattr(evaluate, 'in_stages', lambda *given: staged(*given[:-1], torch.device('meta')))


def darker(lq):
    return lq * 0.75 + 0.01


def scaled(image):
    return image / float(np.iinfo(image.dtype).max)


def psnr(restored, gt, top):
    """Of two arrays in [0, 1]; at `top` levels, or unrounded if that is None."""
    if top:
        restored, gt = (np.rint(x * top) / top for x in (restored, gt))
    return 10 * math.log10(1 / np.mean((restored - gt) ** 2))


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


# Metrics


@pytest.mark.parametrize('rounded', [True, False])
@pytest.mark.parametrize('lq_depth', DEPTHS)
@pytest.mark.parametrize('gt_depth', DEPTHS)
@pytest.mark.usefixtures('threads')
def test_every_image_is_measured_whole_at_the_depth_of_the_truth(rounded, lq_depth, gt_depth):
    lq, gt = images(3, lq_depth), images(3, gt_depth, seed=1)
    seen = []

    def restore(x):
        seen.append(x)
        return darker(x)

    result = evaluate(restore, Pairs(lq, gt), PSNR, rounded=rounded, measure_input=True)
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


def test_rounding_is_seen_by_the_metric():
    gt = [np.full((8, 8, 3), 100, np.uint8)]

    def almost(x):
        return x + 0.4 / 255

    assert evaluate(almost, Pairs(gt, gt), PSNR, rounded=True).means['psnr'] == math.inf
    unrounded = evaluate(almost, Pairs(gt, gt), PSNR, rounded=False).means['psnr']
    assert unrounded == pytest.approx(20 * math.log10(255 / 0.4), abs=1e-3)


@pytest.mark.parametrize('rounded', [True, False])
@pytest.mark.parametrize('depth', DEPTHS)
def test_what_is_not_changed_is_equal(rounded, depth):
    top = np.iinfo(depth).max
    ramp = np.linspace(0, top, 256 if depth == np.uint8 else 1 << 16).astype(depth).reshape(16, -1, 1)
    result = evaluate(lambda x: x, Pairs([ramp], [ramp]), PSNR, rounded=rounded, measure_input=True)
    assert result.means == {'psnr': math.inf, 'input_psnr': math.inf}


@pytest.mark.parametrize('rounded', [True, False])
def test_values_are_clamped_before_they_are_measured(rounded):
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    result = evaluate(lambda x: x * 9 - 4, Pairs([black, white], [black, white]), PSNR, rounded=rounded)
    assert result.means['psnr'] == math.inf


def test_metrics_take_the_settings_of_the_options(tmp_path):
    path = tmp_path / 'options.yml'
    path.write_text("""
name: x
datasets: {val: {type: Dataset_PairedImage, dataroot_lq: a}}
network_g: {type: Restormer}
val:
  metrics:
    y: {type: calculate_psnr, crop_border: 2, test_y_channel: true}
    low: {type: calculate_psnr, better: lower}
""")
    options, _, mistakes = load_options(path)
    assert not mistakes
    metrics = build_metrics(options)
    assert list(metrics) == ['y', 'low']
    lq, gt = images(1), images(1, seed=1)
    luma = [(x[2:-2, 2:-2] @ np.array([65.481, 128.553, 24.966]) / 255 + 16) for x in (lq[0], gt[0])]
    expected = 10 * math.log10(255**2 / np.mean((luma[0] - luma[1]) ** 2))
    result = evaluate(lambda x: x, Pairs(lq, gt), metrics)
    assert result.means['y'] == pytest.approx(expected, abs=1e-6)
    assert result.means['low'] == pytest.approx(psnr(scaled(lq[0]), scaled(gt[0]), 255), abs=1e-6)
    for name, better, worse in (('y', 2.0, 1.0), ('low', 1.0, 2.0)):
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


def test_a_dataset_need_not_know_its_files():
    assert files_of(object(), 3) == 'pair 3 of object'


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.usefixtures('threads')
def test_a_result_that_is_not_finite_stops_and_names_the_image(tmp_path, value):
    def restore(x):
        x = x.clone()
        if x.shape[2] == 12:  # the second image
            x[0, 2, 5, 7] = value
        return x

    with pytest.raises(FloatingPointError, match=r'^/folder/image 1\.png: the restored image is not finite$'):
        evaluate(restore, Pairs(images(3)), {}, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['image 0.png']


# Without ground truth; results as files


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('with_truth', [True, False])
@pytest.mark.usefixtures('threads')
def test_results_are_written_at_the_depth_of_the_degraded_image(tmp_path, depth, channels, with_truth):
    lq = images(2, depth, channels)
    gt = images(2, np.uint8, channels) if with_truth else None
    result = evaluate(darker, Pairs(lq, gt, ['a.b', '000/1']), PSNR, folder=tmp_path / 'new' / 'folder')
    assert [image['name'] for image in result.images] == ['a.b', '000/1']
    assert (result.means.keys() == {'psnr'}) is with_truth
    if not with_truth:
        assert result.images == [{'name': 'a.b'}, {'name': '000/1'}]
        assert result.means == {}
    for image, name in zip(lq, ['a.b', '000/1'], strict=True):
        found = read(tmp_path / 'new' / 'folder' / f'{name}.png')
        found = found[..., None] if channels == 1 else found[..., ::-1]
        assert found.dtype == depth
        np.testing.assert_array_equal(found, np.rint(darker(scaled(image)) * np.iinfo(depth).max))
    assert sum(path.is_file() for path in tmp_path.rglob('*')) == 2


@pytest.mark.parametrize('lq_depth', DEPTHS)
@pytest.mark.usefixtures('threads')
def test_the_sample_is_the_first_image_in_8_bit(lq_depth):
    lq, gt = images(2, lq_depth), images(2, np.uint16, seed=1)
    sample = evaluate(darker, Pairs(lq, gt), PSNR).sample
    expected = {'lq': scaled(lq[0]), 'gt': scaled(gt[0]), 'restored': darker(scaled(lq[0]))}
    assert sample.keys() == expected.keys()
    for kind, image in expected.items():
        assert sample[kind].dtype == np.uint8
        np.testing.assert_array_equal(sample[kind], np.rint(image * 255))
    assert evaluate(darker, Pairs(lq), PSNR).sample.keys() == {'lq', 'restored'}


def test_a_dataset_of_files(tmp_path):
    lq, gt = images(3), images(3, np.uint16, seed=1)
    for kind, pictures in {'lq': lq, 'gt': gt}.items():
        (tmp_path / kind).mkdir()
        for number, picture in enumerate(pictures):
            cv2.imwrite(str(tmp_path / kind / f'{number + 8}.png'), picture[..., ::-1])
    result = evaluate(darker, Dataset_PairedImage(str(tmp_path / 'lq'), str(tmp_path / 'gt')), PSNR)
    assert [image['name'] for image in result.images] == ['8', '9', '10']
    expected = [psnr(darker(scaled(a)), scaled(b), 65535) for a, b in zip(lq, gt, strict=True)]
    assert [image['psnr'] for image in result.images] == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures('threads')
def test_an_image_that_cannot_be_measured_stops_after_those_before_it(tmp_path):
    def picky(restored, gt, data_range):
        if restored.shape[0] == 12:  # the second image
            raise ValueError('too small')
        return 1.0

    with pytest.raises(DataError, match=r'^/folder/image 1\.png: too small$'):
        evaluate(darker, Pairs(images(4), images(4)), {'picky': Metric(picky)}, folder=tmp_path)
    assert {'image 0.png', 'image 1.png'} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / 'image 3.png').exists()


@pytest.mark.parametrize('device', ['cpu', 'cuda:1', 'mps'])
def test_the_device_of_the_restorer_decides_on_threads(monkeypatch, device):
    given, staged = [], evaluate.in_stages

    def noted(*arguments):
        given.append(arguments[-1])
        return staged(*arguments[:-1], torch.device('cpu'))

    monkeypatch.setattr(evaluate, 'in_stages', noted)
    restorer = Restorer(torch.nn.Conv2d(3, 3, 1), 'cpu', 'fp32')
    restorer.device = torch.device(device)
    monkeypatch.setattr(torch.Tensor, 'to', lambda tensor, *_, **__: tensor)  # the work is the CPU's
    evaluate(restorer.restore, Pairs(images(1)), {})
    evaluate(darker, Pairs(images(1)), {})
    assert given == [torch.device(device), torch.device('cpu')]


# Several processes


def _one_of(rank, world_size, count, folder, queue):
    torch.set_num_threads(1)
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
        process=Rank(rank, world_size, rank),
    )
    queue.put((rank, len(restored), result.images, result.means, result.sample is not None))
    dist.barrier()  # the last one out takes the store along
    dist.destroy_process_group()


@pytest.mark.parametrize(('world_size', 'count'), [(2, 5), (3, 2)])
def test_processes_share_the_work_and_have_the_same_result(tmp_path, world_size, count):
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


def test_the_results_are_in_the_order_of_the_set_whatever_the_order_of_the_processes():
    class Backwards:
        rank, world_size, is_main = 0, 1, True

        def gather(self, mine):
            return [mine[1::2], mine[::2]]

    result = evaluate(darker, Pairs(images(5)), {}, process=Backwards())
    assert [image['name'] for image in result.images] == [f'image {index}' for index in range(5)]
