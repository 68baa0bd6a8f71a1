"""Reads and checks option files."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from basicsr.options.checks import Purpose, find_mistakes
from basicsr.options.option_file import Mistake, OptionFile, dotted, read_file
from basicsr.options.sections import WITHOUT_EFFECT, RunOptions
from basicsr.options.validation import validate
from basicsr.utils.errors import OptionError
from basicsr.utils.logger import get_logger
from basicsr.utils.text import show


def read_options(
    path: str | Path, settings: Iterable[str], purpose: Purpose, world_size: int = 1
) -> RunOptions:
    """Read an option file and the --force_yml settings, and check them for a run of `world_size` processes. Warns of
    keys without effect. Raises OptionError with every mistake in it."""
    file = read_file(path, settings)
    options, data, mistakes = _check_keys(file)
    mistakes += find_mistakes(data, {mistake.key for mistake in mistakes}, purpose, world_size)
    lines = file.report(mistakes)
    if lines or options is None:
        raise OptionError(lines)
    keys = map(dotted, file.lines)
    if ignored := [key for key in keys if any(fnmatchcase(key, pattern) for pattern in WITHOUT_EFFECT)]:
        get_logger().warning('These options have no effect here: %s', ', '.join(ignored))
    return options


def load_options(
    path: str | Path, settings: Iterable[str] = ()
) -> tuple[RunOptions | None, dict[str, Any], list[str]]:
    """Like `read_options`, but check every key by itself only, without a look at files and classes.

    Returns (options, plain data, mistakes); options is None if there are mistakes. Raises OptionError if the file
    cannot be read at all.
    """
    file = read_file(path, settings)
    options, data, mistakes = _check_keys(file)
    lines = file.report(mistakes)
    return (None if lines else options), data, lines


def _check_keys(file: OptionFile) -> tuple[RunOptions | None, dict[str, Any], list[Mistake]]:
    failed_imports = list(_import_custom(file.data.get('custom_imports')))
    options, data, mistakes = validate(file.data)
    return options, data, failed_imports + mistakes


def _import_custom(modules: Any) -> Iterator[Mistake]:
    for index, name in enumerate(modules if isinstance(modules, list) else []):
        if isinstance(name, str):
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:  # the user's own code may raise anything
                reason = ' '.join(f'{type(error).__name__}: {error}'.split())
                found = f'{show(name)}, whose import fails ({reason})'
                yield Mistake(('custom_imports', index), found, 'modules that can be imported')
