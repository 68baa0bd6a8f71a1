"""Loss between features of a network that was trained to recognise objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VGG19_Weights, vgg19

from basicsr.utils.checkpoint import apply_weights, load_weights
from basicsr.utils.files import resolve
from basicsr.utils.registry import LOSS_REGISTRY

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CONVOLUTIONS = (2, 2, 4, 4, 4)  # of each block of VGG19, between the poolings


@LOSS_REGISTRY.register()
class PerceptualLoss(nn.Module):
    """loss_weight · Σ weight · mean |VGG19(pred) − VGG19(target)|, features before the ReLU.

    Johnson et al., "Perceptual losses for real-time style transfer and super-resolution" (ECCV 2016); layers before
    the activation as in ESRGAN (Wang et al., ECCV Workshops 2018). Use it beside a pixel loss:

        train:
          pixel_opt: {type: L1Loss}
          losses:
            perceptual: {type: PerceptualLoss, loss_weight: 0.01}

    Args:
        loss_weight: factor of the loss.
        layers: convolution → weight, such as {conv3_4: 0.5, conv5_4: 1}.
        weights: file of VGG19 weights (a state dict of torchvision's vgg19); None downloads torchvision's
            IMAGENET1K_V1 (548 MB) into the cache of torch.hub.

    Raises ValueError on an unknown layer, CheckpointError on a file that does not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, loss_weight: float = 1.0, layers: dict[str, float] | None = None, weights: str | None = None
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        places = _places()
        self.layers = {'conv5_4': 1.0} if layers is None else layers
        if not self.layers or not self.layers.keys() <= places.keys():
            raise ValueError(f'layers: found {self.layers}; allowed: weights of {", ".join(places)}')
        self._weight_at = {places[name]: weight for name, weight in self.layers.items()}
        self.features = _vgg19_features(weights)[: max(self._weight_at) + 1]
        self.features.requires_grad_(False)
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Two (B, 3, H, W), RGB in [0, 1] → a scalar. Raises ValueError on other shapes."""
        if pred.shape != target.shape or pred.ndim != 4 or pred.shape[1] != 3:
            found = f'{tuple(pred.shape)} and {tuple(target.shape)}'
            raise ValueError(f'pred, target: found shapes {found}; allowed: both (B, 3, H, W)')
        loss = pred.new_zeros((), dtype=torch.float32)
        x, y = ((image.to(self.mean.dtype) - self.mean) / self.std for image in (pred, target.detach()))
        for index, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if index in self._weight_at:
                loss = loss + self._weight_at[index] * F.l1_loss(x.float(), y.float())
        return self.loss_weight * loss


def _places() -> dict[str, int]:
    """conv<block>_<number> → index in VGG19's features: each convolution is followed by its ReLU, each block by a
    pooling."""
    places, index = {}, 0
    for block, count in enumerate(CONVOLUTIONS, 1):
        for number in range(1, count + 1):
            places[f'conv{block}_{number}'] = index
            index += 2
        index += 1
    return places


def _vgg19_features(weights: str | None) -> nn.Sequential:
    if weights is None:
        features = vgg19(weights=VGG19_Weights.IMAGENET1K_V1).features
    else:
        network = vgg19()
        apply_weights(network, load_weights(resolve(weights), names=network.state_dict().keys()))
        features = network.features
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # the features before it are still needed
    return features
