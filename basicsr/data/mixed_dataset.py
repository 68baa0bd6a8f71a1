"""Training samples of several sets."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torch.utils.data import Dataset

from basicsr.data.sampler import SampleKey
from basicsr.utils.errors import DataError
from basicsr.utils.registry import DATASET_REGISTRY
from basicsr.utils.text import show

ROUNDS = 8  # visits, in an epoch, of every pair of the largest of several sets


@DATASET_REGISTRY.register()
class Dataset_Mixed(Dataset):
    """Training samples of several sets, drawn by weight.

    Args:
        sets: the sets: `type`, the keys of that type, and `weight`, how often a sample is of this set, relative to
            the others (1 if not given).
        in_memory: as the same key of those sets that have it.

    A sample's key decides its set, by random numbers that the set itself does not use. An epoch has ROUNDS times as
    many samples as the largest set has pairs, so that the pairs of every set come equally often, within 1 in ROUNDS.
    `dataset[i]` is a pair at full size, of the set that i decides. Raises DataError on sets that cannot be made.
    """

    def __init__(self, sets: list[dict[str, Any]], in_memory: bool = False) -> None:
        if not sets:
            raise DataError('sets: found []; allowed: a list of sets, each with type and weight')
        weights = np.array([section.get('weight', 1) for section in sets])
        if not (weights.dtype.kind in 'if' and weights.min() > 0 and weights.max() < np.inf):
            raise DataError(f'sets: found the weights {show(weights.tolist())}; allowed: numbers above 0')
        self.sets = [_set_of(section, number, in_memory) for number, section in enumerate(sets, 1)]
        channels = [getattr(dataset, 'channels', 3) for dataset in self.sets]
        if len(set(channels)) > 1:
            raise DataError(
                f'sets: found images of {" and ".join(map(str, channels))} channels; allowed: the same number in all'
            )
        self.channels = channels[0]
        self._until = (weights / weights.sum()).cumsum()[:-1]

    def __len__(self) -> int:
        return ROUNDS * max(len(dataset) for dataset in self.sets)

    def files(self, index: int) -> str:
        """For messages: which pairs it may be; the index alone does not tell the set."""
        return ' or '.join(dataset.files(index % len(dataset)) for dataset in self.sets)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        if isinstance(key, SampleKey):
            # Jump ahead in the random stream; the dataset uses its beginning.
            stream: Any = key.generator().bit_generator
            choice = np.random.Generator(stream.jumped())
            dataset = self._drawn(choice)
            return dataset[key._replace(index=key.index % len(dataset))]
        index = range(len(self))[key]
        # Not the random numbers of the index alone, of which the set may take the first.
        dataset = self._drawn(np.random.default_rng([index, 1]))
        return dataset[index % len(dataset)]

    def _drawn(self, generator: np.random.Generator) -> Any:
        return self.sets[int(np.searchsorted(self._until, generator.random(), side='right'))]


def _set_of(section: dict[str, Any], number: int, in_memory: bool) -> Any:
    name = section.get('type')
    known = [each for each in DATASET_REGISTRY.names() if each != Dataset_Mixed.__name__]
    if name not in known:
        raise DataError(f'sets: found {show(name)} as the type of set {number}; allowed: {", ".join(known)}')
    entry = DATASET_REGISTRY.get(name)
    options = {key: value for key, value in section.items() if key not in ('type', 'weight')}
    try:
        _check(entry, options)
        if in_memory and 'in_memory' in inspect.signature(entry).parameters:
            options['in_memory'] = True
        return entry(**options)
    except ValueError as error:
        raise DataError(f'sets: found a mistake in set {number} ({name}): {error}') from None


def _check(entry: Callable[..., Any], options: dict[str, Any]) -> None:
    """Raises DataError if these are not arguments of a dataset to train on."""
    signature = inspect.signature(entry)
    try:
        signature.bind(**options)
    except TypeError as error:  # an unknown key, or a missing one
        raise DataError(f'{error}; allowed: {", ".join(signature.parameters)}') from None
    if 'dataroot_gt' in signature.parameters and not options.get('dataroot_gt'):
        raise DataError('dataroot_gt: found nothing; allowed: a folder, as training needs clean images')
    for key, value in options.items():
        if not _fits(entry, key, value):
            raise DataError(f'{key}: found {show(value)}; allowed: {signature.parameters[key].annotation}')


def _fits(entry: Callable[..., Any], key: str, value: Any) -> bool:
    """Whether the annotation of a parameter allows a value; True if it says nothing."""
    try:
        hints = typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry)
        # As option files are checked: JSON, in whose strict mode a list is a tuple.
        TypeAdapter(hints.get(key, Any)).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    except Exception:  # an annotation may be anything
        return True
    return True
