"""Reads and checks option files."""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any

from basicsr.options.checks import Purpose, find_mistakes
from basicsr.options.option_file import Key, Mistake, dotted, read_file, value_at
from basicsr.options.sections import WITHOUT_EFFECT, RunOptions, without_effect
from basicsr.options.validation import validate
from basicsr.utils.errors import OptionError
from basicsr.utils.logger import get_logger
from basicsr.utils.text import show


def read_options(
    path: str | Path, settings: Iterable[str] = (), purpose: Purpose | None = None, world_size: int = 1
) -> RunOptions:
    """Read an option file and the --force_yml settings, and check them for a run of `world_size` processes; without a
    purpose check each key on its own only. Warns of keys without effect. Raises OptionError with every mistake."""
    file = read_file(path, settings)
    mistakes = list(_import_custom(file.data.get('custom_imports')))
    options, invalid = validate(file.data, file.written)
    mistakes += invalid
    if purpose is not None:
        valid, left_out = (options, set()) if options is not None else _valid_part(file.data, file.written)
        if valid is not None:
            mistakes += find_mistakes(valid, left_out, purpose, world_size)
    lines = file.report(mistakes)
    if lines or options is None:
        raise OptionError(lines)
    patterns = [
        *WITHOUT_EFFECT,
        *(
            f'datasets.{phase}.{key}'
            for phase, section in options.datasets.items()
            for key in without_effect(section)
        ),
    ]
    keys = map(dotted, file.lines)
    if ignored := [key for key in keys if any(fnmatchcase(key, pattern) for pattern in patterns)]:
        get_logger().warning('These options have no effect here: %s', ', '.join(ignored))
    return options


def _valid_part(data: dict[str, Any], written: dict[Key, str]) -> tuple[RunOptions | None, set[Key]]:
    """Options without the invalid keys, and these keys; a section that needs one of them is left out, too. None if
    nothing is left."""
    data = copy.deepcopy(data)
    left_out: set[Key] = set()
    while True:
        data.setdefault('name', 'unnamed')  # the checks do not depend on it
        options, mistakes = validate(data, written)
        if options is not None:
            return options, left_out
        for mistake in mistakes:
            key = tuple(takewhile(lambda step: isinstance(step, str), mistake.key))  # a list, not its item
            section = key[:-1]
            try:
                del value_at(data, section)[key[-1]]
            except (KeyError, TypeError):  # it is missing, or its section is left out
                if not section:
                    return None, left_out
                key = section
                with contextlib.suppress(KeyError):
                    del value_at(data, section[:-1])[section[-1]]
            left_out.add(key)


def _import_custom(modules: Any) -> Iterator[Mistake]:
    for index, name in enumerate(modules if isinstance(modules, list) else []):
        if isinstance(name, str | int | float):
            name = name if isinstance(name, str) else show(name)
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:  # the user's own code may raise anything
                reason = ' '.join(f'{type(error).__name__}: {error}'.split())
                found = f'{show(name)}, whose import fails ({reason})'
                yield Mistake(('custom_imports', index), found, 'modules that can be imported')
