"""One training step against a plain second implementation."""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from kill_and_resume import TOTAL, difference, options

from basicsr.archs.from_weights import network_options
from basicsr.data.sampler import mixup_generator
from basicsr.inference import Restorer
from basicsr.models import image_clean_model
from basicsr.models.image_clean_model import ImageCleanModel, NonFiniteError
from basicsr.models.recorded import RecordedGradient
from basicsr.options.load import read_options
from basicsr.utils.checkpoint import load_weights
from basicsr.utils.dist import Rank
from basicsr.utils.errors import CheckpointError, DeviceError
from basicsr.utils.registry import ARCH_REGISTRY

CPU = torch.device('cpu')


@pytest.fixture
def make(tmp_path):
    """A model with some options changed. A `network_g` with a type replaces the usual one."""

    def make(val=None, path=None, network_g=None, **train):
        content = options(tmp_path, 'unit', **{'mixing_augs': {'mixup': False}, 'ema_decay': 0, **train})
        content['val'].update(val or {})
        network_g = network_g or {}
        content['network_g'] = network_g if 'type' in network_g else {**content['network_g'], **network_g}
        content['path'] = path or {}
        file = tmp_path / 'options.yml'
        file.write_text(yaml.safe_dump(content))
        checked = read_options(file)
        return ImageCleanModel(checked, CPU, Rank())

    return make


def batch(seed, size=4, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, size, 3, 16, 16), generator=generator, dtype=torch.uint8)
    lq, gt = images if dtype == torch.uint8 else images.to(dtype) / 255
    return {'lq': lq, 'gt': gt, 'name': ['?'] * size}


def snapshot(model):
    return copy.deepcopy({key: model.state()[key] for key in ('net', 'averaged')})


def same(one, other):
    return difference(one, other) is None


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('clip', [True, False])
def test_steps_are_adamw_with_a_clipped_gradient(make, clip):
    """AdamW (Loshchilov & Hutter, 2019, algorithm 2) written out in double precision."""
    model = make(
        use_grad_clip=clip,
        optim_g={'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1, 'betas': [0.9, 0.99]},
        precision='fp64',
    )
    plain = copy.deepcopy(model.net)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in plain.parameters()]
    for iteration in range(1, 5):
        data = batch(iteration, dtype=torch.float64)
        model.step([data], iteration)
        loss = (plain(data['lq']) - data['gt']).abs().mean()
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        norm = sum(float((g**2).sum()) for g in gradients) ** 0.5
        factor = min(1.0, 0.01 / (norm + 1e-6)) if clip else 1.0
        rate = 1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + np.cos(np.pi * (iteration - 1) / TOTAL))
        with torch.no_grad():
            for p, g, (first, second) in zip(plain.parameters(), gradients, moments, strict=True):
                g = g * factor
                first.mul_(0.9).add_(g, alpha=0.1)
                second.mul_(0.99).add_(g * g, alpha=0.01)
                p.mul_(1 - rate * 0.1)
                corrected = (second / (1 - 0.99**iteration)).sqrt() + 1e-8
                p.sub_(rate * (first / (1 - 0.9**iteration)) / corrected)
        assert_close(model.net.state_dict(), plain.state_dict())
    assert model.read_log()['grad_norm'] > 0.01  # so that clipping was put to the test


@pytest.mark.parametrize('kind', ['AdamW', 'Adam', 'Muon'])
def test_nothing_changes_from_the_first_nonfinite_step_on(make, kind):
    model = make(optim_g={'type': kind, 'lr': 1e-3}, ema_decay=0.5)
    model.step([batch(1)], 1)
    before = snapshot(model)
    optimizer_before = copy.deepcopy(model.optimizer.state_dict()['state'])
    bad = batch(2, dtype=torch.float32)
    bad['gt'][1, 2, 3, 4] = float('nan')
    model.step([bad], 2)
    model.step([batch(3)], 3)  # a good one again
    assert same(snapshot(model), before)
    assert same(model.optimizer.state_dict()['state'], optimizer_before)
    with pytest.raises(NonFiniteError) as caught:
        model.read_log()
    assert caught.value.iteration == 2


def test_a_step_does_not_wait_for_the_device(make, monkeypatch):
    """On a GPU each of these makes the CPU wait."""

    def forbidden(*_):
        raise AssertionError('a value was read from the device')

    model = make(ema_decay=0.9)
    model.step([batch(1)], 1)
    for name in ('item', '__bool__', '__float__', '__int__', 'tolist', 'numpy'):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    model.step([batch(2)], 2)


def test_averaged_weights_are_an_exponential_moving_average(make):
    model = make(ema_decay=0.75)
    history = [[p.detach().clone() for p in model.net.parameters()]]
    for iteration in (1, 2, 3):
        model.step([batch(iteration)], iteration)
        history.append([p.detach().clone() for p in model.net.parameters()])
    for index, averaged in enumerate(model.averaged):
        expected = sum(
            weight * step[index].double()
            for weight, step in zip((0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25), history, strict=True)
        )
        assert torch.allclose(averaged.double(), expected, atol=1e-7)
    _, ema = model.weights()
    x = torch.rand(1, 3, 16, 16)
    plain = copy.deepcopy(model.net)
    plain.load_state_dict(ema)
    with torch.no_grad():
        assert torch.allclose(model.restorer().restore(x), plain(x), atol=1e-6)
    assert model.net.training


@pytest.mark.parametrize('val', [{'tlc': 8}, {'tile': 16, 'tile_overlap': 4}, {'tile': 16}])
def test_validation_follows_its_options(make, val):
    model = make(val=val)
    x = torch.rand(1, 3, 40, 32)
    found = model.restorer().restore(x)
    assert torch.equal(found, Restorer(model.net, CPU, 'fp32', **val).restore(x))
    assert not torch.allclose(found, Restorer(model.net, CPU, 'fp32').restore(x), atol=1e-5)


def test_training_starts_from_pretrained_weights(make, tmp_path):
    first = make()
    with torch.no_grad():
        for parameter in first.parameters:
            parameter.add_(torch.randn_like(parameter))
    first.save_weights(tmp_path / 'net.pth', 1)
    given = {'pretrain_network_g': str(tmp_path / 'net.pth')}
    assert same(make(path=given).net.state_dict(), first.net.state_dict())

    more_blocks = {'num_blocks': [2, 1, 1, 1]}
    with pytest.raises(CheckpointError):
        make(path=given, network_g=more_blocks)
    larger = make(path={**given, 'strict_load_g': False}, network_g=more_blocks).net.state_dict()
    assert len(larger) > len(first.net.state_dict())
    assert all(torch.equal(larger[name], tensor) for name, tensor in first.net.state_dict().items())


def test_param_key_g_chooses_the_pretrained_weights(make, tmp_path):
    model = make(ema_decay=0.5)
    model.step([batch(1)], 1)
    model.save_weights(tmp_path / 'net.pth', 1)
    for key, expected in zip(
        ('params', 'params_ema', None), [*model.weights(), model.weights()[1]], strict=True
    ):
        given = {'pretrain_network_g': str(tmp_path / 'net.pth'), 'param_key_g': key}
        assert same(dict(make(path=given).net.state_dict()), dict(expected))
    with pytest.raises(CheckpointError, match="nothing under 'ema'; it has: params_ema, params, "):
        make(path={**given, 'param_key_g': 'ema'})


def test_a_network_that_deepcopy_refuses_is_built_again(make, monkeypatch):
    model = make(ema_decay=0.5)
    model.step([batch(1)], 1)
    x = torch.rand(1, 3, 16, 16)
    expected = model.restorer().restore(x)
    model.net.product = model.parameters[0] * 2  # with a graph, as weight_norm keeps one
    assert torch.equal(model.restorer().restore(x), expected)


@pytest.mark.skipif(os.name != 'posix', reason='a path is written as POSIX has it')
def test_checkpoints_hold_plain_values_of_the_option_file(tmp_path, make, monkeypatch):
    class Read(torch.nn.Module):
        def __init__(self, file: Path, size: tuple[int, int]) -> None:
            super().__init__()
            assert isinstance(file, Path)
            self.layer = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.layer(x)

    monkeypatch.setitem(ARCH_REGISTRY._entries, 'Read', Read)
    network_g = {'type': 'Read', 'file': 'a/kernel.npz', 'size': [3, 4]}
    make(network_g=network_g).save_weights(tmp_path / 'net.pth', 1)
    assert network_options(load_weights(tmp_path / 'net.pth')) == {**network_g, 'size': (3, 4)}


def test_a_shared_parameter_is_averaged_under_both_names(make, monkeypatch):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(3, 3, 1)
            self.second = torch.nn.Conv2d(3, 3, 1)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    monkeypatch.setitem(ARCH_REGISTRY._entries, 'Tied', Tied)
    model = make(ema_decay=0.5, network_g={'type': 'Tied'})
    model.step([batch(1)], 1)
    params, ema = model.weights()
    assert torch.equal(ema['first.weight'], ema['second.weight'])
    assert not torch.equal(ema['first.weight'], params['first.weight'])
    assert torch.equal(model.restorer().network.second.weight, ema['first.weight'])


def mixed(image, iteration, micro_batch=0, identity=False):
    """Mixup (Zhang et al., 2018), and the weight."""
    generator = mixup_generator(5, iteration, micro_batch)
    if identity:
        generator.integers(2)
    weight, order = generator.beta(1.2, 1.2), generator.permutation(len(image))
    return weight * image + (1 - weight) * image[order], weight


def test_mixup_is_a_convex_combination_seeded_by_the_iteration(make):
    model = make(mixing_augs={'mixup': True, 'mixup_beta': 1.2, 'use_identity': True})
    data = batch(1, dtype=torch.float32)
    identities, weights = 0, []
    for iteration in range(1, 400):
        lq, gt = model._mixup(data['lq'], data['gt'], iteration, 0)
        again, _ = model._mixup(data['lq'], data['gt'], iteration, 0)
        assert torch.equal(lq, again)
        if torch.equal(lq, data['lq']):
            identities += 1
            continue
        for found, image in ((lq, data['lq']), (gt, data['gt'])):
            expected, weight = mixed(image, iteration, identity=True)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        weights.append(weight)
    # Half of the batches stay as they are (and some permutations of four are the identity).
    assert 160 < identities < 250
    # Beta(1.2, 1.2): mean 1/2, variance 1 / (4 · 3.4).
    assert abs(np.mean(weights) - 0.5) < 0.06 and abs(np.var(weights) - 1 / 13.6) < 0.02


def test_mixed_precision_keeps_single_precision_weights(make):
    model = make(precision='bf16')
    model.step([batch(1)], 1)
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
    assert np.isfinite(model.read_log()['loss'])


def accumulated(make, micro_batches, **train):
    """The gradients of one step, and its loss."""
    model = make(precision='fp64', accumulate=len(micro_batches), use_grad_clip=False, **train)
    loss = model.gradient(micro_batches, 1, 0)
    return [parameter.grad for parameter in model.net.parameters()], loss


def test_accumulation_is_the_mean_over_micro_batches(make):
    batches = [batch(1, size=2), batch(2, size=2), batch(3, size=2)]
    whole = {kind: torch.cat([each[kind] for each in batches]) for kind in ('lq', 'gt')}
    gradients, loss = accumulated(make, batches)
    expected, expected_loss = accumulated(make, [whole])
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
    assert_close(gradients, expected)


def test_each_micro_batch_has_its_own_mixup(make):
    model = make(mixing_augs={'mixup': True, 'use_identity': False}, accumulate=2)
    seen = []
    model.forward = lambda lq: (seen.append(lq), model.net(lq))[1]
    same = batch(1, size=2)
    model.gradient([same, same], 3, 0)
    for number, found in enumerate(seen):
        expected, _ = mixed(same['lq'] / 255, 3, number)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.equal(*seen)


@pytest.mark.parametrize('asked', [True, [False, True]])
def test_activation_checkpointing_gives_the_same_gradients_for_less_memory(make, asked):
    def kept(model, stage):
        sizes = {}

        def count(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.gradient([batch(1)], 1, stage)
        return sum(sizes.values()), [parameter.grad for parameter in model.net.parameters()]

    plain, expected = kept(make(precision='fp64'), 1)
    model = make(precision='fp64', activation_checkpointing=asked)
    assert model.checkpointing(0) is (asked is True) and model.checkpointing(1)
    less, gradients = kept(model, 1)
    assert less < plain / 3
    assert_close(gradients, expected)


@pytest.mark.slow
def test_compiled_and_plain_steps_are_the_same(make, monkeypatch):
    """Traced as for any compiler, forward and backward, and run without one: not every machine has one."""
    small = {'precision': 'fp64', 'network_g': {'num_blocks': [0, 0, 0, 1]}}  # one block to compile
    plain = make(**small)
    compile_ = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda net, **how: compile_(net, backend='aot_eager', **how))
    compiled = make(**small, compile=True)
    for iteration in (1, 2):
        for model in (plain, compiled):
            model.step([batch(iteration)], iteration)
    assert plain.read_log() == pytest.approx(compiled.read_log(), rel=1e-9)
    torch.testing.assert_close(compiled.weights()[0], plain.weights()[0], rtol=1e-5, atol=1e-9)


TERMS = {'pixel_opt': {'type': 'L1Loss'}, 'losses': {'squares': {'type': 'MSELoss', 'loss_weight': 3}}}


def test_loss_terms_are_summed_and_logged_by_name(make):
    batches = [batch(1, size=2), batch(2, size=2)]
    gradients, losses = accumulated(make, batches, **TERMS)
    parts = [
        accumulated(make, batches, pixel_opt=section)
        for section in (TERMS['pixel_opt'], TERMS['losses']['squares'])
    ]
    terms = [float(loss) for _, loss in parts]
    assert losses.tolist() == pytest.approx([sum(terms), *terms], rel=1e-12)
    assert_close(gradients, [one + other for one, other in zip(parts[0][0], parts[1][0], strict=True)])

    model = make(precision='fp64', accumulate=2, **TERMS)
    model.step(batches, 1)
    log = model.read_log()
    assert list(log) == ['loss', 'grad_norm', 'loss_pixel_opt', 'loss_squares']
    assert [log['loss'], log['loss_pixel_opt'], log['loss_squares']] == pytest.approx(
        losses.tolist(), rel=1e-12
    )


def test_a_single_term_needs_no_pixel_opt_and_has_no_name(make):
    model, plain = make(pixel_opt=None, losses={'only': {'type': 'L1Loss'}}), make()
    for each in (model, plain):
        each.step([batch(1)], 1)
    assert same(model.state(), plain.state())
    assert model.read_log() == plain.read_log() and 'term_sums' not in plain.state()


def test_means_of_terms_survive_a_resume_unless_terms_are_added(make):
    model, again, before = make(**TERMS), make(**TERMS), make()
    for each in (model, before):
        each.step([batch(1)], 1)
    again.load_state(copy.deepcopy(model.state()))
    for each in (model, again):
        each.step([batch(2)], 2)
    assert again.read_log() == model.read_log()

    again.load_state(copy.deepcopy(before.state()))  # without the second term
    again.step([batch(2)], 2)
    log = again.read_log()
    assert log['loss'] == pytest.approx(log['loss_pixel_opt'] + log['loss_squares'])


@pytest.fixture
def make_fp16(make, monkeypatch):
    """fp16 is refused on a CPU. Here the products stay in fp32, and the scaler, whose arithmetic is that of a GPU, sees
    the gradients that the tests give it."""

    def make_one(**train):
        with monkeypatch.context() as patch:
            patch.setattr(image_clean_model, 'resolve_precision', lambda *_: torch.float16)
            model = make(precision='fp16', **train)
        model.autocast = nullcontext
        return model

    return make_one


def spoil_gradients(model, iterations):
    """Makes the gradient of some iterations infinite, as when fp16 overflows."""
    real = model.gradient

    def gradient(batches, iteration, stage):
        loss = real(batches, iteration, stage)
        if iteration in iterations:
            model.parameters[3].grad.fill_(float('inf'))
        return loss

    model.gradient = gradient


def test_the_scaled_loss_gives_the_same_steps(make, make_fp16):
    plain, scaled = make(), make_fp16()
    for iteration in (1, 2, 3):
        for model in (plain, scaled):
            model.step([batch(iteration)], iteration)
    assert scaled.scaler.get_scale() == 65536
    torch.testing.assert_close(scaled.net.state_dict(), plain.net.state_dict(), rtol=1e-5, atol=1e-7)
    assert scaled.read_log() == pytest.approx(plain.read_log(), rel=1e-6)


def test_only_a_step_whose_scaled_gradient_overflows_is_skipped(make_fp16):
    model = make_fp16(ema_decay=0.5)
    spoil_gradients(model, {2})
    model.step([batch(1)], 1)
    before = snapshot(model)
    model.step([batch(2)], 2)
    assert same(snapshot(model), before) and model.scaler.get_scale() == 32768
    model.step([batch(3)], 3)
    assert not same(snapshot(model), before)
    assert np.isfinite(model.read_log()['grad_norm'])

    # The loss scale and the number of skipped steps are part of the state.
    again = make_fp16(ema_decay=0.5)
    again.load_state(copy.deepcopy(model.state()))
    for each in (model, again):
        each.step([batch(4)], 4)
    assert same(snapshot(again), snapshot(model)) and again.scaler.get_scale() == 32768


def test_forty_infinite_gradients_in_a_row_end_the_run(make_fp16):
    model = make_fp16()
    spoil_gradients(model, set(range(2, 100)))
    model.step([batch(1)], 1)
    for iteration in range(2, 41):
        model.step([batch(2)], iteration)
    model.raise_if_bad()  # 39 in a row
    model.step([batch(2)], 41)
    with pytest.raises(NonFiniteError) as caught:
        model.raise_if_bad()
    assert caught.value.iteration == 41


def test_fp16_is_refused_on_a_cpu(make):
    with pytest.raises(DeviceError, match='fp16 on a CPU'):
        make(precision='fp16')


# -------------------------------------------------------------- recorded steps, without a GPU


class Pretended(RecordedGradient):
    """Its graph runs the recorded function again."""

    made = 0

    def __init__(self, backward, parameters, lq, gt, key, accumulates):
        super().__init__(backward, parameters, lq, gt, key, accumulates)
        type(self).made += 1

        def replay():
            before = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
            self.losses.copy_(backward(self.lq, self.gt))
            for parameter, grad, kept in zip(self.parameters, self.grads, before, strict=True):
                grad.copy_(parameter.grad)  # where the recording left it
                parameter.grad = kept

        self.graph = SimpleNamespace(replay=replay)


@pytest.fixture
def recording(monkeypatch):
    """`recording(model)` records, on the CPU."""
    nothing = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        'Stream': lambda: nothing,
        'current_stream': lambda: nothing,
        'stream': lambda stream: nullcontext(),
        'CUDAGraph': object,
        'graph': lambda *args, **how: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(image_clean_model, 'RecordedGradient', Pretended)
    monkeypatch.setattr(Pretended, 'made', 0)

    def recording(model):
        model.records = True
        return model

    return recording


def small(data, patch):
    return {key: value[..., :patch, :patch] if key != 'name' else value for key, value in data.items()}


@pytest.mark.parametrize(('accumulate', 'terms'), [pytest.param(1, {}, marks=pytest.mark.slow), (3, TERMS)])
def test_recorded_and_plain_steps_are_the_same(make, recording, accumulate, terms):
    models = [
        make(precision='fp64', accumulate=accumulate, ema_decay=0.5, mixing_augs={'mixup': True}, **terms)
        for _ in range(2)
    ]
    recording(models[0])
    for model in models:
        for iteration, patch in enumerate((16, 16, 16, 8, 8, 16), 1):
            batches = [small(batch(10 * iteration + n), patch) for n in range(accumulate)]
            model.step(batches, iteration)
            if iteration == 2:
                model.restorer()
    assert same(*(model.state() for model in models))
    assert Pretended.made == 4  # at first, after the restorer, and twice when the patches change


def test_a_step_that_cannot_be_recorded_runs_kernel_by_kernel(make, recording, monkeypatch, caplog):
    def fail(*args, **how):
        raise RuntimeError('CUDA error: out of memory\nand more')

    models = [make(precision='fp64') for _ in range(2)]
    recording(models[0])
    monkeypatch.setattr(torch.cuda, 'graph', fail)
    for model in models:
        for iteration in (1, 2):
            model.step([batch(iteration)], iteration)
    assert same(*(model.state() for model in models))
    (warning,) = caplog.messages
    assert 'out of memory' in warning and 'and more' not in warning
