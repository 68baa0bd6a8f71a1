"""Mistakes in option files, as sentences."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel

from basicsr.options.option_file import Key, Mistake, dotted
from basicsr.utils.text import show

_ALLOWED = {
    'missing': 'a value, as this key is needed',
    'bool_type': 'true or false',
    'int_type': 'an integer',
    'float_type': 'a number',
    'string_type': 'text (in quotes, if it looks like something else)',
    'list_type': 'a list',
    'dict_type': 'a mapping',
    'model_type': 'a mapping',
    'model_attributes_type': 'a mapping',
    'string_pattern_mismatch': 'the name of a folder, without slashes',
    'union_tag_not_found': 'the name of a registered class',
}


def _describe(problems: list[Any], model: type[BaseModel], data: dict[str, Any]) -> Iterator[Mistake]:
    known: list[Key] | None = None
    found: dict[Key, str] = {}
    allowed: dict[Key, list[str]] = {}
    for item in problems:
        key = _real_key(item['loc'], data, missing=item['type'] == 'missing')
        if item['type'].startswith('union_tag'):
            key = (*key, 'type')
        if item['type'] == 'extra_forbidden':
            if known is None:
                schema = model.model_json_schema()
                known = list(dict.fromkeys(_known_keys(schema, schema.get('$defs', {}), data)))
            found[key] = f'an unknown key{_hint(key, known)}'
            here = ', '.join(str(other[-1]) for other in known if other[:-1] == key[:-1])
            allowed[key] = [here or 'none']
        else:
            found[key] = _found(key, data)
            allowed.setdefault(key, []).append(_allowed(item))
    for key, texts in allowed.items():
        yield Mistake(key, f'found {found[key]}; allowed: {" or ".join(dict.fromkeys(texts))}')


def _real_key(location: tuple[int | str, ...], data: Any, missing: bool = False) -> Key:
    """pydantic's location without the names of a union's members that it puts between the keys."""
    key: list[int | str] = []
    entered = None
    for index, step in enumerate(location):
        if isinstance(data, dict):
            is_tag = step == data.get('type') and data is not entered and index < len(location) - 1
            if is_tag:
                entered = data
            elif step in data or (missing and index == len(location) - 1):
                key.append(step)
                data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int):
            key.append(step)
            data = data[step] if step < len(data) else None
    return tuple(key)


def _found(key: Key, data: Any) -> str:
    for step in key:
        try:
            data = data[step]
        except LookupError:
            return 'nothing'
    return show(data)


def _allowed(item: Any) -> str:
    context = item.get('ctx', {})
    if item['type'] in ('union_tag_invalid', 'literal_error'):
        return str(context.get('expected_tags', context.get('expected'))).replace("'", '"')
    if item['type'] in ('too_short', 'too_long'):
        return f'{context.get("min_length", context.get("max_length"))} items'
    message = item['msg'].replace('Input should be ', '').replace('String should have ', 'text with ')
    return _ALLOWED.get(item['type'], message)


def _known_keys(schema: Any, definitions: Any, data: Any, prefix: Key = ()) -> Iterator[Key]:
    """Every key that could stand in a file with these types and these datasets."""
    objects = list(_objects(schema, definitions)) if len(prefix) < 8 else []  # a user's type may hold itself
    given = data if isinstance(data, dict) else {}
    same_type = [
        section
        for section in objects
        if section.get('properties', {}).get('type', {}).get('const') == given.get('type')
    ]
    for section in same_type or objects:
        for name, value in section.get('properties', {}).items():
            yield (*prefix, name)
            yield from _known_keys(value, definitions, given.get(name), (*prefix, name))
        if isinstance(section.get('additionalProperties'), dict):
            for name, value in given.items():
                yield from _known_keys(section['additionalProperties'], definitions, value, (*prefix, name))


def _objects(schema: Any, definitions: Any) -> Iterator[Any]:
    """The mappings that a JSON schema allows."""
    if '$ref' in schema:
        schema = definitions[schema['$ref'].rpartition('/')[2]]
    for combination in ('oneOf', 'anyOf', 'allOf'):
        for member in schema.get(combination, ()):
            yield from _objects(member, definitions)
    if 'properties' in schema or 'additionalProperties' in schema:
        yield schema


def _hint(key: Key, known: Collection[Key]) -> str:
    """The key of this name in another section; or the most similar one here, or anywhere."""
    section, name = key[:-1], str(key[-1])
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
