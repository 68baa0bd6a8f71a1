"""Checks each key on its own: plain data in, options or mistakes out."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from basicsr.options.option_file import Key, Mistake, dotted, value_at
from basicsr.options.sections import RunOptions
from basicsr.utils.text import show

_MAPPINGS = {'dict_type', 'model_type', 'model_attributes_type'}
_LISTS = {'list_type', 'tuple_type'}
_ALLOWED = {
    'missing': 'a value (required)',
    'bool_type': 'true or false',
    'int_type': 'an integer',
    'float_type': 'a number',
    'string_type': 'text (in quotes, if it looks like something else)',
    **dict.fromkeys(_LISTS, 'a list'),
    **dict.fromkeys(_MAPPINGS, 'a mapping'),
}


def validate(data: dict[str, Any], written: Mapping[Key, str]) -> tuple[RunOptions | None, list[Mistake]]:
    """Return the options, or None; and the mistakes.

    A key that takes an integer also takes 4e3. A key that takes text also takes a number, true and false, as the text
    in `written`. A section or a list without a value takes its defaults; an entry of `datasets`, `losses` or `metrics`
    without a value is left out.
    """
    options, errors = _validate(data)
    if not errors:
        return options, []
    data = copy.deepcopy(data)
    kinds: dict[Key, set[str]] = {}
    for error in errors:
        kinds.setdefault(_key(error, data), set()).add(error['type'])
    empty = []
    for key, types in kinds.items():
        section, value = value_at(data, key[:-1]), value_at(data, key) if 'missing' not in types else None
        if 'int_type' in types and isinstance(value, float) and value.is_integer():
            section[key[-1]] = int(value)
        elif 'string_type' in types and isinstance(value, int | float):
            section[key[-1]] = written.get(key, value)
        elif value is None and types <= _MAPPINGS | _LISTS and isinstance(key[-1], str):
            del section[key[-1]]
            empty.append(key)
    options, errors = _validate(data)
    if required := {_key(error, data) for error in errors if error['type'] == 'missing'}.intersection(empty):
        for key in required:
            # {}: the mistakes then name the keys that it needs.
            value_at(data, key[:-1])[key[-1]] = {} if kinds[key] & _MAPPINGS else None
        options, errors = _validate(data)
    return options, [*_describe(errors, data)]


def _validate(data: dict[str, Any]) -> tuple[RunOptions | None, list[ErrorDetails]]:
    try:
        # JSON: in pydantic's strict mode it alone lets a list be a tuple.
        return RunOptions.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _describe(errors: list[ErrorDetails], data: dict[str, Any]) -> Iterator[Mistake]:
    known: list[Key] = []
    found: dict[Key, str] = {}
    allowed: dict[Key, list[str]] = {}
    for error in errors:
        key = _key(error, data)
        if error['type'] == 'missing' and key[-1] == 'type' and (close := _misspelt_type(data, key[:-1])):
            key = (*key[:-1], close)
            found[key], allowed[key] = 'an unknown key (did you mean type?)', ['type']
        elif error['type'] == 'extra_forbidden':
            known = known or [*_known_keys(data)]
            found[key] = f'an unknown key{_hint(key, known)}'
            allowed[key] = [', '.join(str(other[-1]) for other in known if other[:-1] == key[:-1]) or 'none']
        else:
            found[key] = 'nothing' if error['type'] == 'missing' else show(error['input'])
            allowed.setdefault(key, []).append(_allowed(error))
    for key, texts in allowed.items():
        yield Mistake(key, found[key], ' or '.join(dict.fromkeys(texts)))


def _misspelt_type(data: Any, section: Key) -> str | None:
    return next(iter(difflib.get_close_matches('type', value_at(data, section), n=1)), None)


def _key(error: ErrorDetails, data: Any) -> Key:
    """pydantic's location, without the types that it puts between the keys for a union such as `int | list[int]`."""
    key: Key = ()
    for step in error['loc']:
        if step in (data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()):
            key = (*key, step)
            data = data[step]
    return (*key, error['loc'][-1]) if error['type'] == 'missing' else key


def _allowed(error: ErrorDetails) -> str:
    context = error.get('ctx', {})
    if 'expected' in context:
        return str(context['expected']).replace("'", '"')
    if error['type'] in ('too_short', 'too_long'):
        limit, count = (
            ('most', context['max_length']) if 'max_length' in context else ('least', context['min_length'])
        )
        return f'at {limit} {count} item{"s" * (count != 1)}'
    message = error['msg'].replace('Input should be ', '').replace('String should have ', 'text with ')
    return _ALLOWED.get(error['type'], message)


# ------------------------------------------------------------------ the nearest known key


def _known_keys(data: dict[str, Any]) -> Iterator[Key]:
    """Every key that a file with these types and these names of datasets and metrics may have."""
    schema = RunOptions.model_json_schema()

    def keys(schema: Any, data: Any, prefix: Key) -> Iterator[Key]:
        if '$ref' in schema:
            schema = definitions[schema['$ref'].rpartition('/')[2]]
        given = data if isinstance(data, dict) else {}
        references = schema.get('discriminator', {}).get('mapping', {})
        members = [member for kind in ('oneOf', 'anyOf', 'allOf') for member in schema.get(kind, ())]
        if reference := references.get(str(given.get('type'))):
            members = [{'$ref': reference}]
        for member in members:
            yield from keys(member, data, prefix)
        below = dict(schema.get('properties', {}))
        yield from ((*prefix, name) for name in below)
        if isinstance(schema.get('additionalProperties'), dict):
            below |= dict.fromkeys(given, schema['additionalProperties'])
        if isinstance(data, list):
            for index, value in enumerate(data):
                yield from keys(schema.get('items', {}), value, (*prefix, index))
        if len(prefix) < 8:  # a user's type may contain itself
            for name, value in below.items():
                yield from keys(value, given.get(name), (*prefix, name))

    definitions = schema.get('$defs', {})
    return iter(dict.fromkeys(keys(schema, data, ())))


def _hint(key: Key, known: list[Key]) -> str:
    """The key of this name in another section; or the most similar one here, or anywhere."""
    section, name = key[:-1], str(key[-1])
    if len(parts := tuple(re.split('[.:]', name))) > 1 and (*section, *parts) in known:
        return f' (write {parts[-1]} in the section {dotted((*section, *parts[:-1]))})'
    here = [other for other in known if other[:-1] == section]
    elsewhere = sorted((other for other in known if other[:-1] != section), key=len)
    if longer := [str(other[-1]) for other in here if str(other[-1]).startswith(name)]:
        return f' (did you mean {longer[0]}?)'
    for keys, similarity in ((elsewhere, 1.0), (here, 0.6), (elsewhere, 0.8)):
        names = [str(other[-1]) for other in keys]
        if close := difflib.get_close_matches(name, names, n=1, cutoff=similarity):
            nearest = keys[names.index(close[0])]
            return f' (did you mean {close[0] if keys is here else dotted(nearest)}?)'
    return ''
