"""Registries: the names that a `type:` in an option file may take."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar, overload

Entry = TypeVar('Entry', bound=Callable[..., Any])


class ComponentSection(Protocol):
    """A section of an option file that `Registry.build` takes; see `basicsr.utils.component.Component`."""

    @property
    def type(self) -> str: ...

    def arguments(self) -> dict[str, Any]: ...


class Registry:
    """Names → classes or functions.

    Args:
        kind: what the entries are, for messages.
        modules: pattern of the modules that register entries, such as `basicsr.archs.*_arch`. They are imported when
            the registry is first asked, so a new file registers itself.

    >>> ARCHS = Registry('architecture')
    >>> @ARCHS.register()
    ... class MyNet: ...
    >>> ARCHS.get('MyNet') is MyNet
    True
    """

    def __init__(self, kind: str, modules: str = '') -> None:
        self.kind = kind
        self._modules = modules
        self._entries: dict[str, Callable[..., Any]] = {}

    @overload
    def register(self, name: Entry) -> Entry: ...

    @overload
    def register(self, name: str | None = None) -> Callable[[Entry], Entry]: ...

    def register(self, name: Any = None) -> Any:
        """Decorator, with or without a name, with or without parentheses; `register(MyNet)` is a plain call. Raises
        ValueError if another object already has the name."""
        if callable(name):
            return self.register()(name)

        def add(entry: Entry) -> Entry:
            key = name or entry.__name__
            known = self._entries.setdefault(key, entry)
            if known is not entry and (known.__module__, known.__qualname__) != (
                entry.__module__,
                entry.__qualname__,
            ):
                raise ValueError(
                    f'{self.kind} {key!r} is registered twice: {known.__module__}, {entry.__module__}'
                )
            self._entries[key] = entry  # a reloaded module replaces its own entries
            return entry

        return add

    def build(self, section: ComponentSection, *args: Any, **kwargs: Any) -> Any:
        """Call the entry that `section.type` names with the section's constructor arguments. `args` and `kwargs` are
        what the caller supplies, such as the parameters of an optimizer."""
        return self.get(section.type)(*args, **kwargs, **section.arguments())

    def get(self, name: str) -> Callable[..., Any]:
        """Raises KeyError, listing the known names, if nothing has this name."""
        self._import_modules()
        if name not in self._entries:
            raise KeyError(f'no {self.kind} is called {name!r}; there are: {", ".join(self.names())}')
        return self._entries[name]

    def names(self) -> list[str]:
        self._import_modules()
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        self._import_modules()
        return name in self._entries

    def _import_modules(self) -> None:
        pattern, self._modules = self._modules, ''
        if pattern:
            package = importlib.import_module(pattern.rpartition('.')[0])
            for module in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):
                if fnmatchcase(module.name, pattern):
                    importlib.import_module(module.name)


ARCH_REGISTRY = Registry('architecture', 'basicsr.archs.*_arch')
DATASET_REGISTRY = Registry('dataset', 'basicsr.data.*_dataset')
LOSS_REGISTRY = Registry('loss', 'basicsr.losses.*_loss')
METRIC_REGISTRY = Registry('metric', 'basicsr.metrics.*')
MODEL_REGISTRY = Registry('model', 'basicsr.models.*_model')
OPTIMIZER_REGISTRY = Registry('optimizer', 'basicsr.models.optimizers')
SCHEDULER_REGISTRY = Registry('scheduler', 'basicsr.models.schedulers')
