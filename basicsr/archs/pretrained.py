"""The weights of `path.pretrain_network_g`, for training and testing alike."""

from __future__ import annotations

from typing import Any

from torch import nn

from basicsr.utils.checkpoint import apply_weights, load_weights
from basicsr.utils.files import resolve
from basicsr.utils.logger import get_logger


def load_pretrained(net: nn.Module, path_options: Any) -> None:
    """Into the network, saying which weights of the file they are, and what was left out if not strict.
    Raises CheckpointError."""
    weights = load_weights(resolve(path_options.pretrain_network_g))
    differences = apply_weights(net, weights, path_options.strict_load_g)
    logger = get_logger()
    logger.info('Weights: %s of %s', weights.key or 'the tensors', weights.path)
    for difference in differences:
        logger.warning('Left out: %s', difference)
