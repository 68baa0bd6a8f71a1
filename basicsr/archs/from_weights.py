"""From a checkpoint to the network that it describes, or into a network."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from basicsr.utils.checkpoint import Weights, apply_weights, load_weights
from basicsr.utils.errors import CheckpointError
from basicsr.utils.files import resolve
from basicsr.utils.logger import get_logger
from basicsr.utils.registry import ARCH_REGISTRY

PUBLISHED_EXPANSION = 2.66


def load_pretrained(
    net: nn.Module, path: str | os.PathLike[str], strict: bool = True, key: str | None = None
) -> None:
    """Copy the weights of a file into a network, and log which of the file's weights they are.

    Args:
        path: relative to the repository root, or absolute.
        strict: raise on any difference in names and shapes; else log each one and copy the rest.
        key: as `load_weights` takes it; None: averaged weights, if there are any.

    Raises CheckpointError.
    """
    weights = load_weights(resolve(path), key, net.state_dict().keys())
    differences = apply_weights(net, weights, strict)
    logger = get_logger()
    logger.info('Weights: %s of %s', weights.key or 'the tensors', weights.path)
    for difference in differences:
        logger.warning('Not loaded: %s', difference)


def network_options(weights: Weights) -> dict[str, Any]:
    """The file's `network_g`; without one, the options of the Restormer that has these tensors.

    Raises CheckpointError if they are not a Restormer's.
    """
    if weights.network_g is not None:
        return dict(weights.network_g)
    options = _restormer_options(weights.params)
    if options is None:
        raise CheckpointError(
            f'{weights.path}: the tensors are not those of a Restormer, and the file does not name their network '
            '(it has no network_g)'
        )
    return options


def _restormer_options(params: dict[str, Tensor]) -> dict[str, Any] | None:
    """Inferred from names and shapes alone. None if the tensors are not a Restormer's."""
    embed, output = params.get('patch_embed.proj.weight'), params.get('output.weight')
    if embed is None or output is None or embed.ndim != 4 or output.ndim != 4:
        return None

    def count(level: str) -> int:
        return len({name.split('.')[1] for name in params if name.startswith(f'{level}.')})

    def heads(*levels: str) -> int:
        temperatures = (params.get(f'{level}.0.attn.temperature') for level in levels)
        return next(
            (len(t) for t in temperatures if t is not None and t.ndim), 1
        )  # without blocks, any number fits

    hidden = {
        (w.shape[1], w.shape[0] // 2)
        for name, w in params.items()
        if name.endswith('.ffn.project_in.weight') and w.ndim == 4 and w.shape[1]
    }
    expansion = _expansion_factor(hidden)
    if expansion is None:
        return None
    bias_free = any(name.endswith('.norm1.body.weight') for name in params) and not any(
        name.endswith('.norm1.body.bias') for name in params
    )
    return {
        'type': 'Restormer',
        'inp_channels': embed.shape[1],
        'out_channels': output.shape[0],
        'dim': embed.shape[0],
        'num_blocks': [
            count(level) for level in ('encoder_level1', 'encoder_level2', 'encoder_level3', 'latent')
        ],
        'num_refinement_blocks': count('refinement'),
        'heads': [
            heads('encoder_level1', 'refinement'),
            heads('encoder_level2'),
            heads('encoder_level3'),
            heads('latent'),
        ],
        'ffn_expansion_factor': expansion,
        'bias': 'output.bias' in params,
        'LayerNorm_type': 'BiasFree' if bias_free else 'WithBias',
        'dual_pixel_task': 'skip_conv.weight' in params,
    }


def _expansion_factor(widths: set[tuple[int, int]]) -> float | None:
    """A factor with int(channels · factor) = hidden for every (channels, hidden): the published one if it fits, else
    the shortest decimal, else None. A pair allows hidden/channels ≤ factor < (hidden + 1)/channels."""

    def fits(factor: float) -> bool:
        return all(int(channels * factor) == hidden for channels, hidden in widths)

    if fits(PUBLISHED_EXPANSION):
        return PUBLISHED_EXPANSION
    low = max(Fraction(hidden, channels) for channels, hidden in widths)
    decimals = (math.ceil(low * 10**digits) / 10**digits for digits in range(16))
    return next((factor for factor in decimals if fits(factor)), None)


def build_network(weights: Weights) -> nn.Module:
    """The network that a file describes, with its weights, on the CPU, in eval mode.

    Raises CheckpointError if the options do not describe a network, or the weights do not fit it.
    """
    options = network_options(weights)
    name = options.pop('type', 'Restormer')
    try:
        net = ARCH_REGISTRY.get(name)(**options)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[:1]
        raise CheckpointError(
            f'{weights.path} describes a network that cannot be built: {"".join(reason)}'
        ) from error
    apply_weights(net, weights)
    return net.eval()
