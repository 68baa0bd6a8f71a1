"""Strips against the whole image."""

from __future__ import annotations

import pytest
import torch

from basicsr.archs.restormer_arch import Restormer
from basicsr.inference.strips import run_block

SMALL = {'dim': 8, 'num_blocks': [1, 1, 1, 1], 'num_refinement_blocks': 1, 'heads': [1, 2, 2, 4]}


def network(**options):
    torch.manual_seed(0)
    net = Restormer(**SMALL, **options).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if 'norm' in name or name.endswith(('temperature', 'bias')):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


@pytest.mark.parametrize('options', [{}, {'bias': True}, {'LayerNorm_type': 'BiasFree'}], ids=str)
@pytest.mark.parametrize('numel', [1, 3000, 10_000, 40_000])
@pytest.mark.parametrize('size', [(40, 56), (8, 200), (72, 8)])
def test_equals_the_whole_image(options, numel, size):
    """From strips of one row to strips of most of the image; two images at once."""
    net = network(**options)
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        whole = net(x)
        strips = net(x, lambda block, features: run_block(block, features, numel))
    assert (strips - whole).abs().max() <= 1e-9 * whole.abs().max()


def test_no_temporary_is_larger_than_asked_for():
    net = network()
    block = net.refinement[0]
    x = torch.rand(1, 16, 64, 32, dtype=torch.float64)
    largest = []

    def watch(module, inputs, output):
        largest.append(output.numel())

    for module in (block.ffn.project_in, block.ffn.dwconv, block.norm1, block.norm2):
        module.register_forward_hook(watch)
    with torch.inference_mode():
        run_block(block, x, 20_000)
    halo = 2 * 32 * block.ffn.project_in.out_channels
    assert largest and max(largest) <= 20_000 + halo
