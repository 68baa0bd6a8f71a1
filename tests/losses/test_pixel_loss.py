"""Losses against closed forms, element by element in Python floats."""

import inspect
import math

import pydantic
import pytest
import torch

from basicsr.losses.pixel_loss import CharbonnierLoss, L1Loss, MSELoss, PSNRLoss
from basicsr.utils.registry import LOSS_REGISTRY

PIXELWISE = {
    'L1Loss': lambda d: abs(d),
    'MSELoss': lambda d: d * d,
    'CharbonnierLoss': lambda d: math.hypot(d, 1e-3),
}
NAMES = [*PIXELWISE, 'PSNRLoss']


def images(shape=(2, 3, 4, 5), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator).to(dtype) for _ in range(2))


def differences(pred, target):
    return [p - t for p, t in zip(pred.flatten().tolist(), target.flatten().tolist(), strict=True)]


@pytest.mark.parametrize('name', PIXELWISE)
@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_pixelwise_losses_are_their_formula(name, reduction):
    pred, target = images()
    expected = torch.tensor([PIXELWISE[name](d) for d in differences(pred, target)]).view(pred.shape)
    if reduction != 'none':
        expected = getattr(expected, reduction)()
    loss = LOSS_REGISTRY.get(name)(loss_weight=0.3, reduction=reduction)(pred, target)
    torch.testing.assert_close(loss, 0.3 * expected)


def test_charbonnier_eps_is_the_value_at_zero():
    zeros = torch.zeros(1, 3, 2, 2)
    assert CharbonnierLoss(eps=0.25)(zeros, zeros).item() == 0.25


@pytest.mark.parametrize('to_y', [False, True])
def test_psnr_loss_is_the_mean_of_minus_the_psnr_of_each_image(to_y):
    pred, target = images()
    target[1] = pred[1] + 0.01  # two very different PSNRs: their mean is not the PSNR of the mean error
    psnrs = []
    for p, t in zip(pred.double(), target.double(), strict=True):
        if to_y:
            p, t = ((65.481 * x[0] + 128.553 * x[1] + 24.966 * x[2] + 16) / 255 for x in (p, t))
        mse = sum(d * d for d in differences(p, t)) / p.numel()
        psnrs.append(10 * math.log10(1 / (mse + 1e-8)))
    loss = PSNRLoss(loss_weight=0.5, toY=to_y)(pred, target)
    assert loss.item() == pytest.approx(-0.5 * (psnrs[0] + psnrs[1]) / 2, rel=1e-5)


def test_psnr_loss_of_identical_images_is_bounded():
    pred, _ = images()
    pred.requires_grad_()
    loss = PSNRLoss()(pred, pred.detach())
    loss.backward()
    assert loss.item() == pytest.approx(-80)
    assert torch.equal(pred.grad, torch.zeros_like(pred))


@pytest.mark.parametrize('name', NAMES)
def test_gradients(name):
    pred, target = images(dtype=torch.float64)
    loss = LOSS_REGISTRY.get(name)()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), pred.requires_grad_())


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_single_precision(name, dtype):
    pred, target = images((1, 3, 64, 64), dtype)
    loss = LOSS_REGISTRY.get(name)()
    assert loss(pred, target).dtype == torch.float32
    assert torch.equal(loss(pred, target), loss(pred.float(), target.float()))


def test_sums_and_squares_of_half_precision_neither_overflow_nor_vanish():
    ones, zeros = torch.ones(1, 3, 256, 256).half(), torch.zeros(1, 3, 256, 256).half()
    assert L1Loss(reduction='sum')(ones, zeros).item() == 3 * 256 * 256  # float16 ends at 65504
    tiny = (ones * 2.0**-13).half()
    assert MSELoss()(tiny, zeros).item() == 2.0**-26  # below the smallest float16


def test_luma_does_not_follow_autocast_into_half_precision():
    pred, target = images((1, 3, 16, 16))
    loss = PSNRLoss(toY=True)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(pred, target)
    assert torch.equal(inside, loss(pred, target))


@pytest.mark.parametrize(('name', 'options'), [*((name, {}) for name in NAMES), ('PSNRLoss', {'toY': True})])
def test_no_numbers_are_copied_to_the_device(name, options, monkeypatch):
    """A GPU would be waited for: they come from memory that is not pinned."""

    def forbidden(*_, **__):
        raise AssertionError('a tensor was made of numbers')

    pred, target = images()
    loss = LOSS_REGISTRY.get(name)(**options)
    for owner, function in ((torch, 'tensor'), (torch, 'as_tensor'), (torch.Tensor, 'new_tensor')):
        monkeypatch.setattr(owner, function, forbidden)
    assert loss(pred, target).isfinite()


def test_unsigned_integers_do_not_wrap():
    zero, one = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.ones(1, 3, 2, 2, dtype=torch.uint8)
    assert L1Loss()(zero, one).item() == 1


@pytest.mark.parametrize('name', NAMES)
def test_shapes_that_would_broadcast_are_refused(name):
    pred, target = images()
    with pytest.raises(ValueError, match=r'target: found shape \(2, 1, 4, 5\).*\(2, 3, 4, 5\)'):
        LOSS_REGISTRY.get(name)()(pred, target[:, :1])


@pytest.mark.parametrize(('to_y', 'shape'), [(True, (2, 1, 4, 5)), (True, (3, 4, 5)), (False, (3, 4, 5))])
def test_psnr_loss_refuses_shapes_without_images_or_luma(to_y, shape):
    with pytest.raises(ValueError, match='pred: found shape'):
        PSNRLoss(toY=to_y)(*images(shape))


@pytest.mark.parametrize('name', NAMES)
def test_unknown_reduction_is_refused(name):
    with pytest.raises(ValueError, match=r"reduction: found 'average'; allowed: .*mean"):
        LOSS_REGISTRY.get(name)(reduction='average')


def test_losses_refuse_arguments_that_give_nan_or_another_meaning():
    with pytest.raises(ValueError, match='reduction'):
        PSNRLoss(reduction='sum')
    with pytest.raises(ValueError, match='eps: found 0'):
        CharbonnierLoss(eps=0)


@pytest.mark.parametrize('name', NAMES)
def test_option_models_can_be_built_from_the_constructor(name):
    signature = inspect.signature(LOSS_REGISTRY.get(name), eval_str=True)
    fields = {p.name: (p.annotation, p.default) for p in signature.parameters.values()}
    model = pydantic.create_model('Options', __config__={'extra': 'forbid'}, **fields)
    assert model(loss_weight=2, reduction='mean').loss_weight == 2
    with pytest.raises(pydantic.ValidationError):
        model(reduction='average')
