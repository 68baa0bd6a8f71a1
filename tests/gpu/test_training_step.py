"""Training steps on a GPU: nothing waits, nothing bad reaches the weights, and a recorded step is the step."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from kill_and_resume import options

from basicsr.models.image_clean_model import ImageCleanModel, NonFiniteError
from basicsr.options.load import read_options
from basicsr.utils.dist import Rank
from basicsr.utils.registry import OPTIMIZER_REGISTRY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

MIXUP = {'mixup': True, 'mixup_beta': 1.2, 'use_identity': False}


@pytest.fixture
def make(tmp_path):
    def make(network_g=None, **train):
        content = options(tmp_path, 'unit', **{'mixing_augs': {'mixup': False}, 'ema_decay': 0.5, **train})
        content['num_gpu'] = 1
        content['network_g'].update(network_g or {})
        file = tmp_path / 'options.yml'
        file.write_text(yaml.safe_dump(content))
        checked = read_options(file)
        return ImageCleanModel(checked, torch.device('cuda', 0), Rank())

    return make


def batch(seed, size=4, patch=32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, size, 3, patch, patch), generator=generator, dtype=torch.uint8)
    return {'lq': images[0].pin_memory(), 'gt': images[1].pin_memory(), 'name': ['?'] * size}


def snapshot(model):
    return copy.deepcopy([model.net.state_dict(), model.optimizer.state_dict()['state'], model.averaged])


def equal(one, other):
    leaves = [torch.utils._pytree.tree_leaves(each) for each in (one, other)]
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*leaves, strict=True)
    )


def far(model, other):
    """The largest distance of two models' weights, of their moves from where both began."""
    return max(
        float((a - b).norm() / a.norm().clamp_min(1e-3))
        for a, b in zip(model.parameters, other.parameters, strict=True)
    )


@pytest.mark.parametrize('cuda_graph', [True, False])
@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_a_step_does_not_wait_for_the_device(make, precision, cuda_graph):
    model = make(precision=precision, mixing_augs=MIXUP, cuda_graph=cuda_graph)
    model.step([batch(1)], 1)
    data = batch(2)
    torch.cuda.set_sync_debug_mode('error')
    try:
        model.step([data], 2)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert model.read_log()['loss'] > 0


@pytest.mark.parametrize('accumulate', [1, 3])
@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
@pytest.mark.parametrize('checkpointing', [False, True])
def test_recorded_steps_are_the_steps(make, precision, accumulate, checkpointing):
    """Patches of two sizes and back, with a validation's release in between."""
    models = [
        make(
            precision=precision, accumulate=accumulate, activation_checkpointing=checkpointing, cuda_graph=each
        )
        for each in (True, False)
    ]
    for model in models:
        for iteration, patch in enumerate((32, 32, 32, 48, 48, 32, 32), 1):
            model.step([batch(iteration * 10 + n, patch=patch) for n in range(accumulate)], iteration)
            if iteration == 2:
                model.restorer()
    recorded, plain = models
    assert recorded.recorded is not None and plain.recorded is None
    assert far(recorded, plain) < 1e-3
    logs = [model.read_log() for model in models]
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)


@pytest.mark.parametrize('cuda_graph', [True, False])
@pytest.mark.parametrize('kind', OPTIMIZER_REGISTRY.names())
def test_a_bad_step_changes_no_bit(make, kind, cuda_graph):
    model = make(optim_g={'type': kind, 'lr': 1e-3}, cuda_graph=cuda_graph)
    model.step([batch(1)], 1)
    before = snapshot(model)
    bad = {key: value.float() / 255 for key, value in batch(2).items() if key != 'name'}
    bad['gt'][0, 0, 0, 0] = float('nan')
    model.step([bad], 2)
    model.step([batch(3)], 3)
    assert equal(before, snapshot(model))
    with pytest.raises(NonFiniteError, match='iteration 2'):
        model.read_log()


@pytest.mark.parametrize('cuda_graph', [True, False])
def test_fp16_halves_its_factor_and_leaves_the_step_out(make, cuda_graph):
    model = make(precision='fp16', cuda_graph=cuda_graph)
    model.scaler = torch.amp.GradScaler('cuda', init_scale=2.0**40)
    before = snapshot(model)
    model.step([batch(1)], 1)
    assert model.scaler.get_scale() == 2.0**39
    assert equal(before[0], snapshot(model)[0]) and not model.first_bad
    for iteration in range(2, 40):
        model.step([batch(iteration)], iteration)
    assert not equal(before[0], snapshot(model)[0])


# TF32 rounds the factors of convolutions, bf16 all features.
@pytest.mark.parametrize(('precision', 'tolerance'), [('fp32', 2e-2), ('bf16', 2e-1)])
def test_compiled_gradients_are_the_gradients(make, precision, tolerance):
    gradients = []
    for compiled in (True, False):
        model = make(precision=precision, compile=compiled)
        for iteration in (1, 2):
            model.optimizer.zero_grad()
            model.gradient([batch(iteration)], iteration, 0)
        assert all((block._compiled_call_impl is not None) == compiled for block in model.net.latent)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < tolerance
