"""The five registries: what a `type:` in an option file may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar('T', bound=Callable[..., Any])


class Registry:
    """Names → classes or functions.

    >>> ARCHS = Registry('architecture')
    >>> @ARCHS.register()
    ... class MyNet: ...
    >>> ARCHS.get('MyNet') is MyNet
    True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: Any = None) -> Any:
        """Decorator, with the name to register or without, and with or without parentheses; `register(MyNet)` is the
        same without being one. Raises ValueError if another object already has the name."""
        if callable(name):
            return self.register()(name)

        def add(entry: T) -> T:
            key = name or entry.__name__
            known = self._entries.setdefault(key, entry)
            if known is not entry and (known.__module__, known.__qualname__) != (
                entry.__module__,
                entry.__qualname__,
            ):
                raise ValueError(
                    f'{self.kind} {key!r} is registered twice: {known.__module__}, {entry.__module__}'
                )
            self._entries[key] = entry  # the same definition imported again (a reload) replaces itself
            return entry

        return add

    def get(self, name: str) -> Callable[..., Any]:
        """Raises KeyError, naming what there is, if nothing has this name."""
        if name not in self._entries:
            raise KeyError(f'no {self.kind} is called {name!r}; there are: {", ".join(self.names())}')
        return self._entries[name]

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


ARCH_REGISTRY = Registry('architecture')
DATASET_REGISTRY = Registry('dataset')
LOSS_REGISTRY = Registry('loss')
METRIC_REGISTRY = Registry('metric')
MODEL_REGISTRY = Registry('model')
