"""Sums over pixels, and attention from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr.ops import AttentionStatistics, attend_and_project, attention_statistics, channel_attention


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_statistics_of_parts_add_up():
    qk = random(2, 16, 12, 20)
    whole = attention_statistics(qk, 2)
    parts = attention_statistics(qk[..., :5, :], 2) + attention_statistics(qk[..., 5:, :], 2)
    added = AttentionStatistics.zeros(2, 8, 2, like=qk)
    for region, image in enumerate(qk):
        for strip in image.permute(1, 2, 0).split(5):
            added.add_pixels(region, strip)
    for one, two, three in zip(whole, parts, added, strict=True):
        assert torch.allclose(one, two, rtol=1e-12)
        assert torch.allclose(one, three, rtol=1e-12)


def test_cosine_similarity_is_that_of_normalised_queries_and_keys():
    qk = random(2, 24, 5, 7)
    q, k = (nn.functional.normalize(half.reshape(2, 3, 4, 35), dim=-1) for half in qk.chunk(2, 1))
    assert torch.allclose(attention_statistics(qk, 3).cosine_similarity(), q @ k.mT)


def test_merged_projection_is_the_projection_of_the_attended_values():
    attention, v, project_out = (
        random(2, 3, 4, 4).softmax(-1),
        random(2, 12, 5, 7),
        nn.Conv2d(12, 12, 1).double(),
    )
    expected = project_out((attention @ v.reshape(2, 3, 4, 35)).reshape(2, 12, 5, 7))
    assert torch.allclose(attend_and_project(attention, v, project_out), expected)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_statistics_leave_half_precision(dtype):
    """65,536 products of 2 × 2 exceed fp16's largest number and bf16's 8 bits."""
    twos = torch.full((1, 8, 256, 257), 2.0, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16):
        statistics = attention_statistics(twos, 1)
    for each in statistics:
        assert each.dtype == torch.float32
        assert torch.equal(each, torch.full_like(each, 4.0 * 256 * 257))


@pytest.mark.parametrize(('N', 'dtype'), [(96, torch.float32), (35, torch.float32), (64, torch.bfloat16)])
def test_products_of_all_channels(N, dtype):
    """How a GPU computes the sums, against head by head in double precision."""
    qk = random(2, N, 24).to(dtype)
    gram, square = channel_attention.products_of_all_channels(qk, 3)
    q, k = qk.double().unflatten(2, (2, 3, 4)).unbind(2)
    assert torch.allclose(gram.double(), torch.einsum('bnhi,bnhj->bhij', q, k), atol=1e-4)
    assert torch.allclose(square.double(), qk.double().square().sum(1), atol=1e-4)
