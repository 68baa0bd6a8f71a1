"""Finds the weights of a network in the checkpoint of any program, by the names of their tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Words in the keys and prefixes of averaged weights.
AVERAGED = {'ema', 'avg', 'average', 'averaged', 'polyak', 'swa', 'shadow'}
# Added by torch.compile, FSDP and activation checkpointing, around the network or a part of it.
_WRAPPERS = re.compile(r'\b_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.')


def find_weights(content: Mapping[Any, Any], names: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """The sets of tensors that have most of the `names` and more than half of them, by their place in the checkpoint.

    A place is the keys of a dictionary, and a prefix of names: 'params', 'state_dict.generator.', or '' for the top of
    the checkpoint. A set has all tensors with that prefix, by their names without it. Averaged sets come first, then
    those in fewer dictionaries, then in the order of the file.
    """
    names = frozenset(names)
    counts: Counter[str] = Counter()
    sets = {}
    for keys, entries in dictionaries(content):
        tensors = tensors_in(entries)
        prefixes = Counter(
            prefix for name in tensors for prefix in _prefixes(name) if name[len(prefix) :] in names
        )
        for prefix, count in prefixes.items():
            place = '.'.join([*keys, prefix] if prefix else keys)
            counts[place] = count
            sets[place] = {
                name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
            }
    most = max(len(names) // 2 + 1, *counts.values(), 0)
    places = sorted((place for place in sets if counts[place] == most), key=_averaged_words, reverse=True)
    return {place: sets[place] for place in places}


def _prefixes(name: str) -> Iterator[str]:
    """Yields '', 'a.' and 'a.b.' for 'a.b.c'."""
    yield ''
    for dot in re.finditer(r'\.', name):
        yield name[: dot.end()]


def _averaged_words(place: str) -> int:
    """More in 'ema.ema_model.' than in 'ema.online_model.'."""
    return sum(word.lower() in AVERAGED for word in re.findall('[A-Z]?[a-z]+|[A-Z]+', place))


def dictionaries(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """The dictionaries of a checkpoint, with their keys: itself, then those in it, down to three levels."""
    found: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen = {id(content)}  # a damaged or malicious file may have a dictionary in itself
    for keys, entries in found:
        yield keys, entries
        for key, each in entries.items() if len(keys) < 3 else ():
            if isinstance(key, str) and isinstance(each, dict) and id(each) not in seen:
                seen.add(id(each))
                found.append(((*keys, key), each))


def tensors_in(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors and arrays, all as tensors, by their names without wrappers."""
    found = {}
    for name, each in entries.items():
        if isinstance(each, np.ndarray) and each.dtype.kind in 'biufc':
            each = torch.from_numpy(np.array(each, each.dtype.newbyteorder('='), subok=False))
        if isinstance(name, str) and isinstance(each, Tensor):
            found[_WRAPPERS.sub('', name)] = each.detach()
    return found


def unwrapped(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes wrappers from the names and, if all have it, the prefix `module.` (DataParallel)."""
    bare = {_WRAPPERS.sub('', name): tensor for name, tensor in params.items()}
    while bare and all(name.startswith('module.') for name in bare):
        bare = {name.removeprefix('module.'): tensor for name, tensor in bare.items()}
    return bare
