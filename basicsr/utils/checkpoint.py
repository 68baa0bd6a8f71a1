"""Loads and saves network weights.

A checkpoint is a dictionary: `params` and, with averaged weights, `params_ema`, tensors by name; `network_g`, the
network's options; `iter`, the iteration; `tlc`, the setting it was validated with. A safetensors file holds the same,
what is not a tensor as JSON in its metadata. Published files have `params` alone; their options are inferred from the
tensors. In files of other programs the weights are found by the names of the tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from basicsr.utils.checkpoint_file import read_checkpoint as read_checkpoint
from basicsr.utils.errors import CheckpointError
from basicsr.utils.files import atomic_write
from basicsr.utils.find_weights import find_weights, tensors_in, unwrapped
from basicsr.utils.text import listed, printable

RESTORMER = ('patch_embed.proj.weight', 'output.weight')  # names that every Restormer has


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one network, from a file.

    `params` are on the CPU, in the file's types, by the names of the unwrapped network. `key` is their place in the
    file: 'params_ema', 'params', 'state_dict.generator.' (with a prefix of their names), …, or '' for a file of tensors
    alone.
    """

    path: Path
    params: dict[str, Tensor]
    key: str
    network_g: dict[str, Any] | None = None
    tlc: bool | int = False
    """TLC, or its window, as they were validated with; the default for inference."""
    iteration: int = 0

    def with_tlc(self, asked: bool | int | None) -> bool | int:
        """`asked`, or the file's setting if that is None."""
        return self.tlc if asked is None else asked

    def __str__(self) -> str:
        return f'{self.path} ({self.key})' if self.key else f'{self.path}'


def load_weights(
    path: str | os.PathLike[str], key: str | None = None, names: Collection[str] | None = None
) -> Weights:
    """Loads the weights of one network, from a file of this or another program.

    Searches the file for a set of tensors with the network's names, in any dictionary and with any prefix. Takes the
    first by the order of `find_weights`: averaged ones, if there are any. Without such a set, takes the tensors under
    the first of `params_ema`, `params` and `state_dict` that has any, else those at the top of the file.

    Args:
        key: takes another set: a key of the file, as 'params', a `Weights.key`, or a part of one, as 'generator'.
        names: the network's names; by default those of a Restormer, or none if the file states its network.

    Raises CheckpointError if the file is unreadable or has no tensors there.
    """
    path = Path(path)
    content = read_checkpoint(path)
    if names is None:
        names = RESTORMER if content.get('network_g') is None else ()
    key, params = _selected(content, key, find_weights(content, names), path)
    if uncommon := [name for name, tensor in params.items() if not _is_dense(tensor)]:
        raise CheckpointError(
            f'{path} has tensors of an uncommon kind {_where(key)}: {_listed(uncommon)}; allowed: dense ones, whose '
            'numbers are all in the file'
        )
    stated = content if key else {}  # in a file of tensors alone, these would be names of parameters
    network_g, tlc, iteration = (stated.get(name) for name in ('network_g', 'tlc', 'iter'))
    if not isinstance(network_g, dict | None):
        kind = type(network_g).__name__
        raise CheckpointError(f'{path}: network_g is a {kind}; allowed: a dictionary of options')
    if not isinstance(tlc, bool | int | None):
        raise CheckpointError(
            f'{path}: tlc is a {type(tlc).__name__}; allowed: true, false, or a number of pixels'
        )
    return Weights(
        path=path,
        params=params,
        key=printable(key),
        network_g=network_g,
        tlc=tlc or False,
        iteration=iteration if isinstance(iteration, int) else 0,
    )


def _selected(
    content: dict[Any, Any], key: str | None, found: dict[str, dict[str, Tensor]], path: Path
) -> tuple[str, dict[str, Tensor]]:
    """The place of the weights in the file, and their tensors. Raises CheckpointError."""
    if key is None:
        places = [*found]
    else:
        bare = key.rstrip('.')
        exact = [place for place in found if place.rstrip('.') == bare]
        places = exact or [place for place in found if f'.{bare}.' in f'.{place}.']
    if places:
        return places[0], found[places[0]]
    if key is None:
        usual = ('params_ema', 'params', 'state_dict')
        key = next((name for name in usual if isinstance(content.get(name), dict) and content[name]), '')
    elif key not in content:
        there = _listed(dict.fromkeys([*found, *content]))
        raise CheckpointError(f'{path} has nothing under {printable(repr(key))}; it has: {there}')
    entries = content[key] if key else content
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f'{path} has no tensors {_where(key)}; it has: {_listed(content)}')
    if others := [name for name, each in entries.items() if not tensors_in({name: each})]:
        raise CheckpointError(f'{path} has entries that are not tensors {_where(key)}: {_listed(others)}')
    return key, unwrapped(tensors_in(entries))


def _where(key: str) -> str:
    return f'under {printable(repr(key))}' if key else 'at its top'


def _is_dense(tensor: Tensor) -> bool:
    """False for tensors without their numbers (on the device meta), and for a small storage that is expanded to a large
    shape."""
    return (
        tensor.device.type == 'cpu'
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _listed(names: Iterable[Any]) -> str:
    return listed(printable(str(name)) for name in names) or 'nothing'


def apply_weights(net: nn.Module, weights: Weights, strict: bool = True) -> list[str]:
    """Copies the weights into the network. Returns the differences between the two, one string per tensor.

    Raises CheckpointError on any difference, before anything is copied; if not `strict`, copies the tensors whose name
    and shape match, and raises only if none does.
    """
    wanted = net.state_dict()
    # Prefixes were removed from the file's names, but may belong to names of this network.
    bare = unwrapped(wanted)
    names = dict(zip(bare, wanted, strict=True)) if len(bare) == len(wanted) else {}
    found = {names.get(name, name): tensor for name, tensor in weights.params.items()}
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    other_shape = {
        name: f'{name} is {_shape(found[name])} and should be {_shape(tensor)}'
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    }
    fitting = {name: found[name] for name in wanted if name in found and name not in other_shape}
    if (missing or unexpected or other_shape) and (strict or not fitting):
        groups = {
            'missing in the file': missing,
            'not in the network': unexpected,
            'of another shape': [*other_shape.values()],
        }
        differences = '; '.join(f'{kind}: {_listed(names)}' for kind, names in groups.items() if names)
        raise CheckpointError(f'{weights.path} does not fit this {type(net).__name__}: {differences}')
    net.load_state_dict(fitting, strict=False)
    return [
        *(f'{name} is missing in the file' for name in missing),
        *(f'{name} is not in the network' for name in unexpected),
        *other_shape.values(),
    ]


def _shape(tensor: Tensor) -> str:
    return '×'.join(str(size) for size in tensor.shape) or 'a number'


def save_checkpoint(
    path: str | os.PathLike[str],
    params: Mapping[str, Tensor],
    network_g: Mapping[str, Any] | None,
    iteration: int,
    params_ema: Mapping[str, Tensor] | None = None,
    tlc: bool | int = False,
) -> None:
    """Writes a file from which `load_weights` and `build_network` restore the network: by safetensors if the path ends
    in .safetensors, else by torch.save. Atomic; raises OSError.

    `network_g` must be plain values (numbers, strings, lists, dictionaries); None if they are unknown. In a safetensors
    file with averaged weights, the names begin with `params.` and `params_ema.`.
    """
    sets = {'params': _portable(params)}
    about: dict[str, Any] = {'iter': iteration, 'tlc': tlc}
    if network_g is not None:
        about = {'network_g': dict(network_g), **about}
    if params_ema is not None:
        sets['params_ema'] = _portable(params_ema)
    if Path(path).suffix.lower() == '.safetensors':
        flat = (
            sets['params']
            if len(sets) == 1
            else {f'{kind}.{name}': tensor for kind, named in sets.items() for name, tensor in named.items()}
        )
        separate = {name: tensor.clone() for name, tensor in flat.items()}  # safetensors refuses shared memory
        metadata = {name: json.dumps(value) for name, value in about.items()}
        atomic_write(path, safetensors.torch.save(separate, metadata))
        return
    content = {'params': sets.pop('params'), **about, **sets}
    atomic_write(path, lambda file: torch.save(content, file))


def _portable(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in unwrapped(params).items()}
