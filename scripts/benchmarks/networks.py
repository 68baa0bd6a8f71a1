"""The network that is measured, and its plain formulation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.archs import restormer_reference as reference
from basicsr.archs.from_weights import build_network, network_options
from basicsr.archs.restormer_arch import Restormer
from basicsr.utils.checkpoint import load_weights


def all_options(weights: Path | None) -> dict[str, Any]:
    """All constructor arguments of the network in a file; None: the defaults. Raises CheckpointError, and ValueError
    on another network."""
    options = {name: p.default for name, p in inspect.signature(Restormer).parameters.items()}
    if weights is not None:
        options |= network_options(load_weights(weights))
        if options.pop('type', 'Restormer') != 'Restormer':
            raise ValueError(
                f'{weights}: found another network; allowed: Restormer, which has a plain formulation'
            )
    return options


def load_network(weights: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    """In eval mode, with all its constructor's arguments; None: the default one with random weights."""
    options = all_options(weights)
    if weights is not None:
        return build_network(load_weights(weights)), options
    torch.manual_seed(0)
    return Restormer(**options).eval(), options


def plain(network: nn.Module, options: dict[str, Any], mode: str = 'plain') -> Callable[[Tensor], Tensor]:
    """The network's parameters in the plain formulation: under autocast with `+bf16`, and with `+compile` its blocks
    compiled one by one, each kind once."""
    block = torch.compile(reference.block, dynamic=False) if 'compile' in mode else reference.block
    parameters = dict(network.named_parameters())

    def restore(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled='bf16' in mode):
            return reference.restormer(parameters, x, block=block)

    return restore
