"""Option files as YAML: values with their line numbers, and overrides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from basicsr.options.sections import (
    WITHOUT_EFFECT,
)
from basicsr.utils.errors import OptionError
from basicsr.utils.text import show

Key = tuple[str | int, ...]


class Mistake(NamedTuple):
    key: Key
    text: str
    """`found …; allowed: …`"""


class _Loader(yaml.SafeLoader):
    """Safe loading, numbers as in YAML 1.2: `3e-4` is one, but not `1:30`, `010` or a date."""


_TAG = 'tag:yaml.org,2002:'


_SCALARS = {f'{_TAG}{kind}' for kind in ('str', 'int', 'float', 'bool', 'null')}

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in ('bool', 'null', 'merge')]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in (
    ('int', r'[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+|0b[01]+)'),
    ('float', r'[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?'),
    ('float', r'[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)'),
):
    _Loader.add_implicit_resolver(f'{_TAG}{_kind}', re.compile(f'^({_pattern})$'), list('-+.0123456789'))


class _Document:
    """A YAML text as plain values, with the line of every key. Raises yaml.YAMLError."""

    DEEPEST, LARGEST = 32, 20_000  # aliases can make a small file endless

    def __init__(self, text: str) -> None:
        self.lines: dict[Key, int] = {}
        self.repeated: list[Mistake] = []
        self._seen = 0
        self._loader = _Loader(text)
        node = self._loader.get_single_node()
        self.data = None if node is None else self._value(node, ())

    def _value(self, node: yaml.Node, key: Key) -> Any:
        self._seen += 1
        if len(key) > self.DEEPEST or self._seen > self.LARGEST:
            raise _error(node, 'it is nested too deeply, or too large')
        if isinstance(node, yaml.MappingNode) and node.tag == f'{_TAG}map':
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and node.tag == f'{_TAG}seq':
            items = []
            for index, item in enumerate(node.value):
                path = (*key, index)
                self.lines[path] = item.start_mark.line + 1
                items.append(self._value(item, path))
            return items
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            raise _error(node, f'{node.tag.replace(_TAG, "!!")} is no number, text, list or mapping')
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        merged = [value for name, value in node.value if name.tag == f'{_TAG}merge']
        result: dict[str, Any] = {}
        for value in merged:
            mappings = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for mapping in reversed(mappings):  # of several that are merged, the first wins
                if not isinstance(mapping, yaml.MappingNode):
                    raise _error(mapping, 'only mappings can be merged')
                result |= self._value(mapping, key)
        own: set[str] = set()
        for name_node, value in node.value:
            if name_node.tag == f'{_TAG}merge':
                continue
            if not isinstance(name_node, yaml.ScalarNode):
                raise _error(name_node, 'a key must be a name')
            name = _text(name_node)  # as written: `on:` and `5:` are names, too
            path = (*key, name)
            if name in own:
                self.repeated.append(
                    Mistake(path, f'found again, after line {self.lines[path]}; allowed: once')
                )
            own.add(name)
            self.lines[path] = name_node.start_mark.line + 1
            result[name] = self._value(value, path)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = _text(node)
        try:
            value = self._loader.construct_object(node)
            show(value)  # an integer of thousands of digits cannot be
        except (ValueError, LookupError, TypeError):
            raise _error(node, f'{text!r} is no {node.tag.removeprefix(_TAG)}') from None
        return value


def _text(node: yaml.ScalarNode) -> str:
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise _error(node, 'half of a character') from None
    return node.value


def _error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _parse(text: str, source: str, with_line: bool = True) -> _Document:
    try:
        return _Document(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f'{source}:{mark.line + 1}' if mark and with_line else source
        problem = ', '.join(filter(None, (error.context, error.problem)))
        raise OptionError([f'{where}: is not valid YAML: {problem}']) from None
    except yaml.YAMLError as error:
        raise OptionError([f'{source}: is not valid YAML: {" ".join(str(error).split())}']) from None
    except RecursionError:
        raise OptionError([f'{source}: is not valid YAML: it is nested too deeply']) from None


def yaml_value(text: str) -> Any:
    """A value by itself, read as in option files. Raises OptionError."""
    return _parse(text, show(text), with_line=False).data


@dataclass(frozen=True)
class OptionFile:
    """An option file with the --force_yml settings in it, as plain data that nobody changes."""

    source: str
    data: dict[str, Any]
    lines: dict[Key, int | None]  # None: from the command line
    mistakes: list[Mistake] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)  # settings that say nothing about any key

    def report(self, mistakes: Iterable[Mistake]) -> list[str]:
        """All that is wrong, the file's mistakes in the order of its lines."""
        found = sorted([*self.mistakes, *mistakes], key=lambda mistake: self._line(mistake.key) or 0)
        return [
            *self.misread,
            *(f'{self._where(mistake.key)}: {dotted(mistake.key)}: {mistake.text}' for mistake in found),
        ]

    def _line(self, key: Key) -> int | None:
        """The line of a key; of the section where it is missing."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 0)

    def _where(self, key: Key) -> str:
        line = self._line(key)
        return '--force_yml' if line is None else f'{self.source}:{line}' if line else self.source


def dotted(key: Key) -> str:
    return '.'.join(map(str, key))


def read_file(path: str | Path, settings: Iterable[str] = ()) -> OptionFile:
    """Raises OptionError if the file cannot be read as a mapping."""
    try:
        text = Path(path).read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else 'is not a text file'
        raise OptionError([f'{path}: cannot be read as an option file: {reason}']) from None
    document = _parse(text, str(path))
    if not isinstance(document.data, dict):
        found = 'nothing' if document.data is None else show(document.data)
        raise OptionError([f'{path}: found {found}; allowed: a mapping of option names to values'])
    file = OptionFile(str(path), document.data, {**document.lines}, document.repeated)
    return reduce(override, settings, file)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The plain data of an option file. Raises OptionError."""
    return read_file(path).data


def override(file: OptionFile, setting: str) -> OptionFile:
    """A copy of the file with the `a:b=c` of --force_yml in it; c is read as YAML. Runs no code."""
    name, equals, text = setting.partition('=')
    key = tuple(name.strip().split(':'))
    mistakes, misread = list(file.mistakes), list(file.misread)
    data, lines = file.data, {**file.lines}
    try:
        if not equals or not all(key):
            raise OptionError([f'--force_yml: found {show(setting)}; allowed: KEY:SUBKEY=VALUE'])
        value = _parse(text, f'--force_yml: {dotted(key)}: {show(text)}', with_line=False)
        key = _with_places(data, key)
        data = _with(data, key, value.data)
        lines = {known: line for known, line in lines.items() if known[: len(key)] != key}
        lines |= {key[:depth]: None for depth in range(1, len(key) + 1) if key[:depth] not in lines}
        mistakes += [Mistake((*key, *repeated.key), repeated.text) for repeated in value.repeated]
    except OptionError as error:
        misread += error.mistakes
    return OptionFile(file.source, data, lines, mistakes, misread)


def _with_places(data: Any, key: Key) -> Key:
    """Numbers for the parts of a key that are places in a list."""
    found: list[Any] = []
    for part in key:
        if isinstance(data, list):
            part = int(part) if part.isdecimal() else part
            data = data[part] if isinstance(part, int) and part < len(data) else None
        else:
            data = data.get(part) if isinstance(data, dict) else None
        found.append(part)
    return tuple(found)


def _with(data: Any, key: Key, value: Any, above: Key = ()) -> Any:
    if not key:
        return value
    first, below, here = key[0], key[1:], (*above, key[0])
    if isinstance(data, dict | None):
        data = data or {}
        return {**data, first: _with(data.get(first), below, value, here)}
    allowed = 'a mapping there'
    if isinstance(data, list):
        if isinstance(first, int) and first < len(data):
            return [*data[:first], _with(data[first], below, value, here), *data[first + 1 :]]
        allowed = f'a place in the list, from 0 to {len(data) - 1}' if data else 'a list that is not empty'
    there = f'found {show(data)} at {dotted(above)}; allowed: {allowed}'
    raise OptionError([f'--force_yml: {dotted((*above, *key))}: {there}'])


def without_effect(data: dict[str, Any]) -> list[str]:
    """Keys of the options that published option files have, and that do nothing here."""
    patterns = [re.compile(re.escape(pattern).replace(r'\*', r'[^.]+')) for pattern in WITHOUT_EFFECT]
    return [key for pattern in patterns for key in map(dotted, _all_keys(data)) if pattern.fullmatch(key)]


def _all_keys(data: Any, prefix: Key = ()) -> Iterator[Key]:
    for name, value in data.items() if isinstance(data, dict) else ():
        yield (*prefix, name)
        yield from _all_keys(value, (*prefix, name))
