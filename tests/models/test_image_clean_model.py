"""One training step against a plain second implementation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import yaml
from kill_and_resume import options

from basicsr.data.stages import mixup_generator
from basicsr.models.image_clean_model import ImageCleanModel, NonFiniteError
from basicsr.utils.dist import Process
from basicsr.utils.options import load_options

CPU = torch.device('cpu')


@pytest.fixture
def make(tmp_path):
    def make(**train):
        content = options(tmp_path, 'unit', **{'mixing_augs': {'mixup': False}, 'ema_decay': 0, **train})
        path = tmp_path / 'options.yml'
        path.write_text(yaml.safe_dump(content))
        checked, _, mistakes = load_options(path)
        assert not mistakes
        return ImageCleanModel(checked, CPU, Process())

    return make


def batch(seed, size=4, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, size, 3, 16, 16), generator=generator, dtype=torch.uint8)
    lq, gt = images if dtype == torch.uint8 else images.to(dtype) / 255
    return {'lq': lq, 'gt': gt, 'name': ['?'] * size}


def snapshot(model):
    return copy.deepcopy({key: model.state()[key] for key in ('net', 'averaged')})


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


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
        rate = 1e-6 + 0.5 * (1e-3 - 1e-6) * (1 + np.cos(np.pi * (iteration - 1) / 20))
        with torch.no_grad():
            for p, g, (first, second) in zip(plain.parameters(), gradients, moments, strict=True):
                g = g * factor
                first.mul_(0.9).add_(g, alpha=0.1)
                second.mul_(0.99).add_(g * g, alpha=0.01)
                p.mul_(1 - rate * 0.1)
                corrected = (second / (1 - 0.99**iteration)).sqrt() + 1e-8
                p.sub_(rate * (first / (1 - 0.9**iteration)) / corrected)
        for mine, other in zip(model.net.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12)
    assert model.read_log()['grad_norm'] > 0.01  # so that clipping was put to the test


@pytest.mark.parametrize('kind', ['AdamW', 'Adam'])
def test_from_the_first_bad_step_on_nothing_changes(make, kind):
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
    """On a GPU each of these would stop the CPU until the GPU is done."""

    def forbidden(*_):
        raise AssertionError('a value was read from the device')

    model = make(ema_decay=0.9)
    model.step([batch(1)], 1)
    for name in ('item', '__bool__', '__float__', '__int__', 'tolist', 'numpy'):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    model.step([batch(2)], 2)


def test_averaged_weights(make):
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


def test_mixup_is_a_convex_combination_that_the_iteration_decides(make):
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
        generator = mixup_generator(5, iteration)
        generator.integers(2)
        weight, order = generator.beta(1.2, 1.2), generator.permutation(4)
        for mixed, image in ((lq, data['lq']), (gt, data['gt'])):
            expected = weight * image.numpy() + (1 - weight) * image.numpy()[order]
            np.testing.assert_allclose(mixed.numpy(), expected, atol=1e-6)
        weights.append(weight)
    # Half of them are left alone (and some permutations of four are the identity).
    assert 160 < identities < 250
    # Beta(1.2, 1.2): mean 1/2, variance 1 / (4 · 3.4).
    assert abs(np.mean(weights) - 0.5) < 0.06 and abs(np.var(weights) - 1 / 13.6) < 0.02


def test_mixed_precision_keeps_single_precision_weights(make):
    model = make(precision='bf16')
    model.step([batch(1)], 1)
    assert {p.dtype for p in model.net.parameters()} == {torch.float32}
    assert np.isfinite(model.read_log()['loss'])


def test_restores_any_size(make):
    model = make()
    x = torch.rand(1, 3, 13, 27)
    y = model.restorer().restore(x)
    assert y.shape == x.shape and model.net.training
