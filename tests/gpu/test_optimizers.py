"""Muon's step on a GPU: masked there, and never waited for."""

import copy

import pytest
import torch
import yaml
from kill_and_resume import options

from basicsr.models.image_clean_model import ImageCleanModel, NonFiniteError
from basicsr.models.optimizers import Muon
from basicsr.options.load import read_options
from basicsr.utils.dist import Rank

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def weights_and_gradients(device):
    generator = torch.Generator().manual_seed(0)
    weights = []
    for shape in [*[(16, 20, 1, 1)] * 3, (48, 16, 3, 3), (32, 1, 3, 3), (20,)]:
        value, gradient = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
        weights.append(torch.nn.Parameter(value))
        weights[-1].grad = gradient
    return weights


def test_a_step_is_that_of_a_cpu():
    results = []
    for device in ('cpu', 'cuda'):
        weights = weights_and_gradients(device)
        optimizer = Muon(weights, lr=1e-2, weight_decay=0.1, fused=True)
        optimizer.grad_scale, optimizer.found_inf = None, torch.zeros((), device=device)
        for _ in range(3):
            optimizer.step()
        results.append([weight.detach().cpu() for weight in weights])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_step_does_not_wait_for_the_gpu():
    weights = weights_and_gradients('cuda')
    optimizer = Muon(weights, lr=1e-2, fused=True)
    optimizer.grad_scale, optimizer.found_inf = None, torch.zeros((), device='cuda')
    optimizer.step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def test_from_the_first_bad_step_on_no_bit_changes_and_its_iteration_is_named(tmp_path):
    file = tmp_path / 'options.yml'
    file.write_text(
        yaml.safe_dump(options(tmp_path, 'unit', optim_g={'type': 'Muon', 'lr': 1e-3}, ema_decay=0.5))
    )
    checked = read_options(file)
    model = ImageCleanModel(checked, torch.device('cuda'), Rank())
    lq, gt = torch.rand(2, 4, 3, 16, 16)
    batch = {'lq': lq, 'gt': gt}
    model.step([batch], 1)
    before = copy.deepcopy((model.net.state_dict(), model.averaged, model.optimizer.state_dict()['state']))
    bad = {'lq': lq, 'gt': gt.clone()}
    bad['gt'][1, 2, 3, 4] = float('nan')
    model.step([bad], 2)
    model.step([batch], 3)
    after = (model.net.state_dict(), model.averaged, model.optimizer.state_dict()['state'])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    with pytest.raises(NonFiniteError) as caught:
        model.read_log()
    assert caught.value.iteration == 2
