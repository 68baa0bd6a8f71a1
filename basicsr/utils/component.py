"""Sections with a `type`: the keys beside it are the constructor parameters of the class registered by that name.

A `Component` field names its registry, `optim_g: Annotated[Component, Registered(OPTIMIZER_REGISTRY)]`, and validates
each section with a model made from the constructor's signature. So a user's own class is checked like the built-in
ones, and no key is listed twice.
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
from typing import Any, ClassVar, Literal, Optional, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    create_model,
    model_serializer,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema, to_json

from basicsr.utils.registry import Registry


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra='forbid',
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Component(Section):
    parameters: ClassVar[frozenset[str]] = frozenset()  # of the constructor, as far as they can be keys
    _supplied: ClassVar[tuple[int, frozenset[str]]] = 0, frozenset()
    """(n, names): positional and named parameters that the caller supplies."""
    _schema_suffix: ClassVar[str] = ''
    """Suffix in the JSON schema, if another kind of section has the same types."""
    _excluded: ClassVar[tuple[str, ...]] = ()
    """Registered names that are no types of this section."""

    type: str

    def arguments(self, plain: bool = False) -> dict[str, Any]:
        """Return a copy of the keyword arguments that the section sets, without the keys of loaders or metrics beside
        them. `plain`: for a checkpoint; values that only Python has, such as a Path, as they are in the file."""
        names = (self.model_fields_set & self.parameters) | {*(self.model_extra or ())}
        values = {name: value for name, value in self.model_dump().items() if name in names}
        written = self.model_dump(mode='json') if plain else values
        return {name: value if _is_plain(value) else written[name] for name, value in values.items()}

    @model_serializer(mode='wrap')
    def _without_unset_nulls(self, handler: Any) -> dict[str, object]:  # (a user's class may be called Any)
        """Omit unset None values: they may stand for defaults that YAML cannot express."""
        given = self.model_fields_set
        return {name: value for name, value in handler(self).items() if value is not None or name in given}


AnyComponent = TypeVar('AnyComponent', bound=Component)


class Registered:
    """Annotation of a `Component` field: `type` is a name in `registry`."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(
        self, base: type[AnyComponent], _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def validate(section: Any) -> AnyComponent:
            return component(self.registry, section, base)

        # The annotation alone would be serialised without the keys of the type.
        return core_schema.no_info_plain_validator_function(validate, metadata={'base': base})

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        base = schema['metadata']['base']
        models = {name: _model(name, self.registry.get(name), base) for name in types_of(self.registry, base)}
        choices = {name: model.__pydantic_core_schema__ for name, model in models.items()}
        return handler(core_schema.tagged_union_schema(choices, discriminator='type'))


def component(registry: Registry, section: Any, base: type[AnyComponent]) -> AnyComponent:
    """Validate one section by itself. Raises ValidationError, with keys relative to the section."""
    if isinstance(section, base):
        return section
    if not isinstance(section, dict):
        raise PydanticCustomError('dict_type', 'Input should be a mapping')
    name = section.get('type')
    if name not in types_of(registry, base):
        error = unregistered(types_of(registry, base), 'literal_error' if 'type' in section else 'missing')
        details = {'type': error, 'loc': ('type',), 'input': name}
        raise ValidationError.from_exception_data(registry.kind, [details])  # type: ignore[list-item]
    # JSON: in pydantic's strict mode it alone lets a list be a tuple.
    text = to_json(section, inf_nan_mode='constants')
    return _model(name, registry.get(name), base).model_validate_json(text, strict=True)


def types_of(registry: Registry, base: type[Component]) -> list[str]:
    return [name for name in registry.names() if name not in base._excluded]


def unregistered(names: Iterable[str], kind: Literal['literal_error', 'missing']) -> PydanticCustomError:
    expected = ', '.join(f'"{name}"' for name in names)
    return PydanticCustomError(kind, 'Input should be {expected}', {'expected': expected})


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(each) for item in value.items() for each in item)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


# ------------------------------------------------------------------ signature → model


@lru_cache(maxsize=256)
def _model(name: str, entry: Callable[..., Any], base: type[AnyComponent]) -> type[AnyComponent]:
    positional, named = base._supplied
    try:
        parameters = list(inspect.signature(entry).parameters.values())[positional:]
    except (TypeError, ValueError):  # no signature: accept any key
        parameters = [inspect.Parameter('options', inspect.Parameter.VAR_KEYWORD)]
    text = inspect.getdoc(entry) or ''
    descriptions = _documented_arguments(text)
    fields: dict[str, Any] = {}
    for parameter in parameters:
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and parameter.name not in named and _is_key(parameter.name):
            annotation, default = _typed_default(parameter, _annotation(parameter, entry))
            fields[parameter.name] = (annotation, Field(default, description=descriptions.get(parameter.name)))
    any_key = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # parameters that share a name with a method of pydantic's
        model = create_model(
            name + base._schema_suffix,
            __base__=base,
            __doc__=' '.join(text.partition('\n\n')[0].split()),
            __cls_kwargs__={'extra': 'allow'} if any_key else None,
            type=(Literal[name], ...),  # type: ignore[arg-type]
            **fields,
        )
    model.parameters = frozenset(fields)
    return model


def _is_key(name: str) -> bool:
    """Whether an option file can give a parameter of this name."""
    is_pydantics = name.startswith('model_') and hasattr(BaseModel, name)
    return not (name in ('type', 'arguments') or name.startswith('_') or is_pydantics)


def _annotation(parameter: inspect.Parameter, entry: Callable[..., Any]) -> Any:
    """The type that pydantic checks; Any if the annotation cannot be evaluated, or has no counterpart in YAML."""
    if parameter.annotation is parameter.empty:
        return Any

    def probe() -> None: ...

    # One at a time: one annotation that exists for type checkers alone would spoil the others.
    probe.__annotations__ = {'value': parameter.annotation}
    try:
        function = inspect.unwrap(entry.__init__ if inspect.isclass(entry) else entry)
        names = getattr(function, '__globals__', {})
        annotation = typing.get_type_hints(probe, names, include_extras=True)['value']
        TypeAdapter(annotation).json_schema()
    except Exception:  # an annotation may be anything
        return Any
    return annotation


def _typed_default(parameter: inspect.Parameter, annotation: Any) -> tuple[Any, Any]:
    """Annotation and default as YAML gives them, lists for tuples; None for a default that YAML cannot express."""
    if parameter.default is parameter.empty:
        return annotation, ...
    try:
        text = json.dumps(parameter.default, allow_nan=False)
    except (TypeError, ValueError):
        text = 'null'
    if text == 'null':
        return Optional[annotation], None  # noqa: UP045 - not every annotation has `|`
    try:
        return annotation, TypeAdapter(annotation).validate_json(text, strict=True)
    except ValidationError:  # the default contradicts the annotation
        return Any, json.loads(text)


def _documented_arguments(text: str) -> dict[str, str]:
    """Parameter → description, from the section `Args:` of a docstring."""
    section = re.search(r'^Args:\n((?:[ \t]+\S.*\n?)+)', text, re.MULTILINE)
    entries = re.findall(
        r'^(\w+(?:, \w+)*)(?: \(.*?\))?: (.*(?:\n[ \t]+.*)*)',
        textwrap.dedent(section[1]) if section else '',
        re.MULTILINE,
    )
    return {name: ' '.join(words.split()) for names, words in entries for name in names.split(', ')}
