"""Leaving autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

# Evaluated at import: torch.compile cannot trace this call.
_AUTOCAST = frozenset(kind for kind in ('cpu', 'cuda', 'mps', 'xpu') if torch.amp.is_autocast_available(kind))


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switches autocast off, where a device has it: asked for one that has none, PyTorch raises."""
    if device.type in _AUTOCAST:
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
