"""Option files: read, override, check, and describe as a JSON schema.

What an option file may contain stands here once, as pydantic models, but for the keys beside a `type:`:
those are the constructor parameters of the registered class, read from its signature. So an architecture
of your own is checked in the same way as ours, and nothing is listed twice.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import typing
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, create_model

from basicsr.options.sections import (
    Component,
    Section,
    _OpenEnded,
)
from basicsr.utils.registry import (
    Registry,
)

# ------------------------------------------------------------------ models made from the registries


@lru_cache(maxsize=256)
def _component(name: str, entry: Callable[..., Any], base: type[Component] = Component) -> type[Component]:
    """The model of a section with `type: name`."""
    first, given = base._given
    try:
        parameters = list(inspect.signature(entry).parameters.values())[first:]
    except (TypeError, ValueError):  # no signature to be had: anything goes
        parameters = [inspect.Parameter('options', inspect.Parameter.VAR_KEYWORD)]
    text = inspect.getdoc(entry) or ''
    descriptions = _documented_arguments(text)
    fields: dict[str, Any] = {}
    for parameter in parameters:
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and parameter.name not in given and _is_key(parameter.name):
            annotation, default = _typed_default(parameter, _annotation(parameter, entry))
            fields[parameter.name] = (annotation, Field(default, description=descriptions.get(parameter.name)))
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of parameters that share a name with a method of pydantic's
        model: type[Component] = create_model(
            name,
            __base__=(base, _OpenEnded) if open_ended else base,
            __doc__=' '.join(text.partition('\n\n')[0].split()),
            type=(Literal[name], ...),
            **fields,
        )
    model._parameters = frozenset(fields)
    return model


def _is_key(name: str) -> bool:
    """Whether a parameter of this name can be given in an option file."""
    return (
        name != 'type'
        and not name.startswith('_')
        and not (name.startswith('model_') and hasattr(BaseModel, name))
    )


def _annotation(parameter: inspect.Parameter, entry: Callable[..., Any]) -> Any:
    """What pydantic can check of an annotation; Any where it cannot be evaluated, or says nothing of YAML."""
    if parameter.annotation is parameter.empty:
        return Any

    def probe() -> None: ...

    # One at a time: a single annotation that exists for type checkers alone would spoil the others.
    probe.__annotations__ = {'value': parameter.annotation}
    try:
        function = inspect.unwrap(entry.__init__ if inspect.isclass(entry) else entry)  # type: ignore[misc]
        names = getattr(function, '__globals__', {})
        annotation = typing.get_type_hints(probe, names, include_extras=True)['value']
        TypeAdapter(annotation).json_schema()
    except Exception:  # anything can stand in an annotation
        return Any
    return annotation


def _typed_default(parameter: inspect.Parameter, annotation: Any) -> tuple[Any, Any]:
    """Annotation and default as YAML could give it, lists for tuples; None where it could not."""
    if parameter.default is parameter.empty:
        return annotation, ...
    try:
        text = json.dumps(parameter.default, allow_nan=False)
    except (TypeError, ValueError):
        text = 'null'
    if text == 'null':
        return Optional[annotation], None  # noqa: UP045 - not always a type that knows `|`
    try:
        return annotation, TypeAdapter(annotation).validate_json(text, strict=True)
    except ValidationError:  # an annotation that its own default contradicts says nothing
        return Any, json.loads(text)


def _documented_arguments(text: str) -> dict[str, str]:
    """Parameter → description, of a docstring with a section `Args:`."""
    section = re.search(r'^Args:\n((?:[ \t]+\S.*\n?)+)', text, re.MULTILINE)
    entries = re.findall(
        r'^(\w+(?:, \w+)*)(?: \(.*?\))?: (.*(?:\n[ \t]+.*)*)',
        textwrap.dedent(section[1]) if section else '',
        re.MULTILINE,
    )
    return {name: ' '.join(words.split()) for names, words in entries for name in names.split(', ')}


def _choice(models: Iterable[type[Section]]) -> Any:
    members = tuple(models)
    if len(members) == 1:
        return members[0]
    return Annotated[Union[members], Field(discriminator='type')]  # noqa: UP007 - made at run time


def _components(registry: Registry, base: type[Component] = Component) -> Any:
    return _choice(_component(name, registry.get(name), base) for name in registry.names())


def arguments(component: BaseModel, base: type[BaseModel] = Section) -> dict[str, Any]:
    """The keyword arguments that a component's section gives to its class: a copy, free to be changed."""
    not_its = {'type', *base.model_fields} - getattr(component, '_parameters', frozenset())
    keys = component.model_fields_set - not_its
    return {key: value for key, value in component.model_dump().items() if key in keys}


def plain_arguments(component: BaseModel) -> dict[str, Any]:
    """The same to keep in a file: what Python alone has, such as a Path, is as it is in the option file."""
    in_file = component.model_dump(mode='json')
    return {key: value if _is_plain(value) else in_file[key] for key, value in arguments(component).items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(each) for item in value.items() for each in item)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def build(entries: Registry | dict[str, Any], component: BaseModel, base: type[BaseModel] = Section) -> Any:
    """The registered object that `type:` names, called with the keys beside it."""
    return entries.get(component.type)(**arguments(component, base))  # type: ignore[attr-defined, misc]


def checked_section(
    entries: Registry | dict[str, Any], section: Any, base: type[Component] = Component
) -> BaseModel | None:
    """One section with a `type` by itself, as it would be in the checked options; None if it has mistakes."""
    name = section.get('type') if isinstance(section, dict) else None
    entry = entries.get(name) if isinstance(name, str) and name in entries else None
    if entry is None:
        return None
    try:
        return _component(name, entry, base).model_validate_json(json.dumps(section), strict=True)
    except ValidationError:
        return None
