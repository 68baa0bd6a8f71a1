"""Option files as YAML: values with their line numbers, and the overrides of --force_yml."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from basicsr.options.yaml_mistakes import find_problems, missing_space
from basicsr.utils.errors import OptionError
from basicsr.utils.text import show

Key = tuple[str | int, ...]
DEEPEST, LARGEST = 32, 20_000  # levels and values; aliases can make a small file endless
_TAG = 'tag:yaml.org,2002:'
_SCALARS = {f'{_TAG}{kind}' for kind in ('str', 'int', 'float', 'bool', 'null')}


class Mistake(NamedTuple):
    key: Key
    found: str
    allowed: str


class _Loader(yaml.SafeLoader):
    """Safe loading with the numbers of YAML 1.2: `3e-4` is one, `1:30`, `010` and dates are not; and with its tabs,
    which may stand between tokens and in text, but not in the indentation."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) in ('bool', 'null', 'merge')
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def scan_to_next_token(self) -> None:
        super().scan_to_next_token()
        while self.peek() == '\t' and (self.flow_level or not self._is_indentation()):
            self.forward()
            super().scan_to_next_token()

    def _is_indentation(self) -> bool:
        """Whether the next character indents the first token of its line."""
        before = self.buffer[self.pointer - self.column : self.pointer]
        behind = re.compile(r'[ \t]*([\r\n#\0]?)').match(self.buffer, self.pointer)
        return not (before.strip() or (behind and behind[1]))

    def scan_plain_spaces(self, indent: int, start_mark: yaml.Mark) -> list[str] | None:
        length = 0
        while self.peek(length) in ' \t':
            length += 1
        if '\t' not in self.prefix(length):
            return super().scan_plain_spaces(indent, start_mark)
        spaces = self.prefix(length)
        self.forward(length)
        return super().scan_plain_spaces(indent, start_mark) if self.peek() in '\r\n\0' else [spaces]


for _kind, _pattern in (
    ('int', r'[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+|0b[01]+)'),
    ('float', r'[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?'),
    ('float', r'[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)'),
):
    _Loader.add_implicit_resolver(f'{_TAG}{_kind}', re.compile(f'^({_pattern})$'), list('-+.0123456789'))


class _Document:
    """A YAML text as plain values, with the line of every key; or one value of it. Raises yaml.YAMLError."""

    def __init__(self, text: str, is_file: bool) -> None:
        self.lines: dict[Key, int | None] = {}
        self.written: dict[Key, str] = {}  # numbers, true and false as they are written
        self.repeated: list[Mistake] = []
        self._seen = 0
        self._text = text.splitlines()
        self._loader = _Loader(text)
        node = self._loader.get_single_node()
        if node is not None and is_file:
            self._check_spaces(0, node)
        self.data = None if node is None else self._value(node, ())

    def _value(self, node: yaml.Node, key: Key) -> Any:
        self._seen += 1
        if len(key) > DEEPEST or self._seen > LARGEST:
            raise _error(node, 'it is nested too deeply, or too large')
        if isinstance(node, yaml.MappingNode) and node.tag == f'{_TAG}map':
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and node.tag == f'{_TAG}seq':
            return [self._at(item, item, (*key, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            value = self._scalar(node)
            if isinstance(value, int | float):
                self.written[key] = node.value
            return value
        raise _error(node, f'{node.tag.replace(_TAG, "!!")} is not a number, text, list or mapping')

    def _at(self, mark: yaml.Node, node: yaml.Node, key: Key) -> Any:
        line = mark.start_mark.line
        self._check_spaces(line + 1, node)
        if isinstance(node, yaml.ScalarNode):  # it may begin below its key; an alias refers to a line above
            line = max(line, node.start_mark.line)
        self.lines[key] = line + 1
        return self._value(node, key)

    def _check_spaces(self, first: int, node: yaml.Node) -> None:
        """Refuse a `key:value` that passes for text, in line `first` (from 0) or below."""
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            start, end = node.start_mark, node.end_mark
            for line in range(max(first, start.line), end.line + (end.column > 0)):
                if problem := missing_space(self._text[line]):
                    raise _error(node, problem, line)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in node.value:
            if name.tag == f'{_TAG}merge':
                mappings = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for mapping in reversed(mappings):  # the first one wins
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
                self.repeated.append(Mistake(path, f'again, after line {self.lines[path]}', 'once'))
            own.add(name)
            if value.start_mark.index == name_node.end_mark.index and (problem := missing_space(name)):
                raise _error(name_node, problem)  # {key:value}
            result[name] = self._at(name_node, value, path)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = _text(node)
        try:
            value = self._loader.construct_object(node)
            show(value)  # fails for an integer of thousands of digits
        except (ValueError, LookupError, TypeError):
            raise _error(node, f'{text!r} is no {node.tag.removeprefix(_TAG)}') from None
        return value


def _text(node: yaml.ScalarNode) -> str:
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise _error(node, 'half of a Unicode character (a lone surrogate)') from None
    return node.value


def _error(node: yaml.Node, problem: str, line: int | None = None) -> yaml.MarkedYAMLError:
    mark = node.start_mark if line is None else yaml.Mark('', 0, line, 0, None, 0)
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _parse(text: str, source: str, is_file: bool = True) -> _Document:
    def where(line: int) -> str:
        return f'{source}:{line}' if line and is_file else source

    document = partial(_Document, is_file=is_file)
    try:
        return document(text)
    except yaml.MarkedYAMLError as error:
        problems = [(line + 1, problem) for line, problem in find_problems(text, error, document)]
    except yaml.reader.ReaderError as error:
        line = text.count('\n', 0, error.position) + 1
        problems = [(line, f'the character {show(text[error.position])} is not allowed')]
    except RecursionError:
        problems = [(0, 'it is nested too deeply')]
    raise OptionError([f'{where(line)}: is not valid YAML: {problem}' for line, problem in problems])


def yaml_value(text: str) -> Any:
    """Read one value as in an option file. Raises OptionError."""
    return _parse(text, show(text), is_file=False).data


@dataclass
class OptionFile:
    """An option file with the --force_yml settings in it, as plain data."""

    source: str
    data: dict[str, Any]
    lines: dict[Key, int | None]  # None: from the command line
    written: dict[Key, str]  # numbers, true and false as they are written
    mistakes: list[Mistake]
    misread: list[str] = field(default_factory=list)  # settings that name no key

    def override(self, setting: str) -> None:
        """Set the `a:b=c` of --force_yml; c is read as YAML. Runs no code."""
        name, equals, text = setting.partition('=')
        key: Key = tuple(name.strip().split(':'))
        allowed = ''
        if not equals or not all(key):
            allowed = 'KEY:SUBKEY=VALUE'
        elif str(key[0]).startswith('x-'):
            allowed = f'keys outside {key[0]}, whose anchors are already replaced by their content'
        elif self._has_dots(key):
            allowed = f'{dotted(key).replace(".", ":")}={text} (colons between the keys)'
        if allowed:
            self.misread.append(f'--force_yml: found {show(setting)}; allowed: {allowed}')
            return
        try:
            value = _parse(text, f'--force_yml: {dotted(key)}: {show(text)}', is_file=False)
            key = self._set(key, value.data)
        except OptionError as error:
            self.misread += error.mistakes
            return
        # The key, the sections that it is in, and the keys below it now come from the command line.
        forced = [*(key[: depth + 1] for depth in range(len(key))), *((*key, *below) for below in value.lines)]
        kept = {known: line for known, line in self.lines.items() if known[: len(key)] != key}
        self.lines = {**dict.fromkeys(forced), **kept}
        others = {known: text for known, text in self.written.items() if known[: len(key)] != key}
        self.written = others | {(*key, *below): text for below, text in value.written.items()}
        self.mistakes += [repeated._replace(key=(*key, *repeated.key)) for repeated in value.repeated]

    def _has_dots(self, key: Key) -> bool:
        """Whether the user wrote dots instead of colons. The name of a set, loss or metric may have dots."""
        *above, _ = dotted(key).split('.')
        if len(above) < len(key):
            return False
        if '.' in str(key[0]):
            return True
        with contextlib.suppress(LookupError, TypeError):
            value_at(self.data, key)
            return False
        try:
            return isinstance(value_at(self.data, above), dict)
        except (LookupError, TypeError):
            return False

    def _set(self, key: Key, value: Any) -> Key:
        """Return the key with numbers for places in a list. Raises OptionError."""
        section: Any = self.data
        done: Key = ()
        for step in key:
            if isinstance(section, list) and str(step).isdecimal() and int(step) < len(section):
                step = int(step)
            elif not isinstance(section, dict):
                is_list = isinstance(section, list)
                allowed = f'a place in the list, from 0 to {len(section) - 1}' if is_list else 'a mapping there'
                found = f'{show(section)} at {dotted(done)}'
                raise OptionError([f'--force_yml: {dotted(key)}: found {found}; allowed: {allowed}'])
            done = (*done, step)
            if len(done) == len(key):
                section[step] = value
            elif (section.get(step) if isinstance(section, dict) else section[step]) is None:
                section[step] = {}
            section = section[step]
        return done

    def report(self, mistakes: Iterable[Mistake]) -> list[str]:
        """One sentence per mistake, in the order of the file's lines."""
        ordered = sorted([*self.mistakes, *mistakes], key=lambda mistake: self._line(mistake.key) or 0)
        return self.misread + [
            f'{self._where(key)}: {dotted(key)}: found {found}; allowed: {allowed}'
            for key, found, allowed in ordered
        ]

    def _line(self, key: Key) -> int | None:
        """The line of a key, or of the section where it is missing."""
        return self.lines.get(key, 0) if key in self.lines or not key else self._line(key[:-1])

    def _where(self, key: Key) -> str:
        line = self._line(key)
        return '--force_yml' if line is None else f'{self.source}:{line}' if line else self.source


def dotted(key: Key) -> str:
    return '.'.join(map(str, key))


def value_at(data: Any, key: Iterable[str | int]) -> Any:
    """The value of a key. Raises KeyError, IndexError or TypeError if there is none."""
    for step in key:
        data = data[step]
    return data


def _read_text(path: str | Path) -> str:
    """Raises OptionError unless the file is UTF-8."""
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else 'is not a text file'
        raise OptionError([f'{path}: cannot be read as an option file: {reason}']) from None
    try:
        if b'\0' not in content:
            return content.decode('utf-8-sig')
        where, found = f'{path}', 'NUL bytes, as in UTF-16'
    except UnicodeDecodeError as error:
        where = f'{path}:{content[: error.start].count(10) + 1}'
        found = f'the byte 0x{content[error.start]:02x}, which is not UTF-8'
    raise OptionError([f'{where}: found {found}; allowed: UTF-8 (save the file in this encoding)'])


def read_file(path: str | Path, settings: Iterable[str] = ()) -> OptionFile:
    """Read a file and the --force_yml settings; leave out the top-level keys that begin with `x-`, which only hold
    anchors. Raises OptionError unless the file is a mapping."""
    document = _parse(_read_text(path), str(path))
    if not isinstance(document.data, dict):
        found = 'nothing' if document.data is None else show(document.data)
        raise OptionError([f'{path}: found {found}; allowed: a mapping of option names to values'])
    file = OptionFile(
        str(path),
        {name: value for name, value in document.data.items() if not name.startswith('x-')},
        document.lines,
        document.written,
        [mistake for mistake in document.repeated if not str(mistake.key[0]).startswith('x-')],
    )
    for setting in settings:
        file.override(setting)
    return file


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The plain data of an option file. Raises OptionError."""
    return read_file(path).data
