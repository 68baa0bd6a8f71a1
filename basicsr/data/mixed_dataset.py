"""Training samples of several sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch.utils.data import Dataset

from basicsr.data.sampler import SampleKey
from basicsr.utils.component import Component, Registered, component
from basicsr.utils.errors import DataError
from basicsr.utils.registry import DATASET_REGISTRY

ROUNDS = 8  # visits, in an epoch, of every pair of the largest of several sets


class SetOptions(Component):
    _schema_suffix = '_in_sets'
    _excluded = ('Dataset_Mixed',)  # both would draw the same random number
    _supplied = 0, frozenset({'weight'})

    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often a sample is of this set, relative to the others."""


@DATASET_REGISTRY.register()
class Dataset_Mixed(Dataset):
    """Training samples of several sets, drawn by weight.

    Args:
        sets: the sets: `type`, the keys of that type, and `weight`, how often a sample is of this set, relative to
            the others (1 if not given).
        in_memory: passed to each set that has this key.

    A sample's key decides its set, by random numbers that the set itself does not use. An epoch has ROUNDS times as
    many samples as the largest set has pairs, so that the pairs of every set come equally often, within 1 in ROUNDS.
    `dataset[i]` is a pair at full size, of the set that i decides. Raises ValueError on sets that cannot be made.
    """

    def __init__(
        self,
        sets: Annotated[Sequence[Annotated[SetOptions, Registered(DATASET_REGISTRY)]], Field(min_length=1)],
        in_memory: bool = False,
    ) -> None:
        if not sets:
            raise DataError('sets: found []; allowed: 1 set or more')
        sections = [component(DATASET_REGISTRY, section, SetOptions) for section in sets]
        self.sets = [_build(section, number, in_memory) for number, section in enumerate(sections, 1)]
        channels = [(_channels(dataset, 'lq'), _channels(dataset, 'gt')) for dataset in self.sets]
        if len(set(channels)) > 1:
            found = ' and '.join(str(gt) if lq == gt else f'{lq} (lq) and {gt} (gt)' for lq, gt in channels)
            raise DataError(f'sets: found images of {found} channels; allowed: the same number in all')
        self.lq_channels, self.channels = channels[0]
        weights = np.array([section.weight for section in sections])
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
        # A seed of its own, as the set may draw from default_rng(index).
        dataset = self._drawn(np.random.default_rng([index, 1]))
        return dataset[index % len(dataset)]

    def _drawn(self, generator: np.random.Generator) -> Any:
        return self.sets[int(np.searchsorted(self._until, generator.random(), side='right'))]


def _channels(dataset: Any, kind: str) -> int:
    return getattr(dataset, f'{kind}_channels', getattr(dataset, 'channels', 3))


def _build(section: SetOptions, number: int, in_memory: bool) -> Any:
    if getattr(section, 'dataroot_gt', '') is None:
        raise DataError(f'sets: found no dataroot_gt in set {number}; allowed: a value, to train')
    settings = {'in_memory': True} if in_memory and 'in_memory' in section.parameters else {}
    try:
        return DATASET_REGISTRY.get(section.type)(**section.arguments() | settings)
    except ValueError as error:
        raise DataError(f'sets: found a mistake in set {number} ({section.type}): {error}') from None
