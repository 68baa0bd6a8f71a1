import pytest
import torch
from torch import nn
from torchvision.models import vgg19
from torchvision.models.feature_extraction import create_feature_extractor

from basicsr.losses.perceptual_loss import PerceptualLoss
from basicsr.utils.errors import CheckpointError


@pytest.fixture(scope='module')
def network():
    """VGG19 with random weights."""
    torch.manual_seed(0)
    return vgg19().eval()


@pytest.fixture
def make(network, monkeypatch):
    monkeypatch.setattr('basicsr.losses.perceptual_loss.vgg19', lambda **_: network)
    return PerceptualLoss


@pytest.fixture
def images():
    return torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_loss_is_the_weighted_distance_of_torchvisions_features(network, make, images):
    layers = {'conv1_2': 0.25, 'conv3_4': 2.0}
    # The third block begins after 2 × 2 + 1 + 2 × 2 + 1 layers.
    nodes = {'features.2': 'conv1_2', 'features.16': 'conv3_4'}
    loss = make(loss_weight=3.0, layers=layers)(*images)
    extract = create_feature_extractor(network, nodes)
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    one, other = (extract((image - mean) / std) for image in images)
    expected = 3 * sum(weight * (one[name] - other[name]).abs().mean() for name, weight in layers.items())
    torch.testing.assert_close(loss, expected)


def test_gradient_reaches_the_prediction_alone(make, images):
    pred, target = (image.clone().requires_grad_() for image in images)
    loss = make(layers={'conv2_1': 1.0})
    loss(pred, target).backward()
    assert pred.grad.abs().sum() > 0 and target.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_double_precision_is_compared_in_single(make, images):
    loss = make(layers={'conv1_1': 1.0})
    torch.testing.assert_close(loss(*images.double()), loss(*images))


def test_names_count_convolutions_from_one(make):
    loss = make(layers={'conv5_4': 1.0})
    convolutions = [layer for layer in loss.features if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 16 and loss.features[-1] is convolutions[-1]


def test_unknown_layer_is_refused(make):
    with pytest.raises(ValueError, match=r'layers: found .*conv9_1.*allowed: weights of conv1_1'):
        make(layers={'conv9_1': 1.0})


def test_grey_images_are_refused(make):
    with pytest.raises(ValueError, match=r'allowed: both \(B, 3, H, W\)'):
        make()(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


def test_file_of_other_weights_is_refused(tmp_path):
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='does not fit this VGG'):
        PerceptualLoss(weights=str(tmp_path / 'other.pth'))


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / 'page.pth').write_text('<!DOCTYPE html>')
    with pytest.raises(CheckpointError, match='is a web page'):
        PerceptualLoss(weights=str(tmp_path / 'page.pth'))


def test_weights_of_a_file_are_used(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / 'vgg19.pth')
    loss = PerceptualLoss(layers={'conv1_1': 1.0}, weights=str(tmp_path / 'vgg19.pth'))
    assert torch.equal(loss.features[0].weight, network.features[0].weight)
