"""Reads and checks option files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, create_model

from basicsr.options.checks import Purpose, _Checks, _unjudged, _whole
from basicsr.options.components import _choice, _components
from basicsr.options.messages import _describe, _real_key
from basicsr.options.option_file import (
    Key,
    Mistake,
    OptionFile,
    read_file,
    without_effect,
)
from basicsr.options.sections import (
    AdamOptions,
    AdamWOptions,
    LoaderOptions,
    MetricOptions,
    MuonOptions,
    RunOptions,
    TrainOptions,
    ValOptions,
)
from basicsr.utils.errors import OptionError
from basicsr.utils.logger import get_logger
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    OPTIMIZER_REGISTRY,
    SCHEDULER_REGISTRY,
)
from basicsr.utils.text import show


def options_model() -> type[RunOptions]:
    """The model of a whole option file, for what the registries hold now."""
    registries = (
        ARCH_REGISTRY,
        DATASET_REGISTRY,
        LOSS_REGISTRY,
        METRIC_REGISTRY,
        MODEL_REGISTRY,
        OPTIMIZER_REGISTRY,
        SCHEDULER_REGISTRY,
    )
    return _options_model(tuple((name, r.get(name)) for r in registries for name in r.names()))


@lru_cache(maxsize=8)
def _options_model(registered: tuple[Any, ...]) -> type[RunOptions]:
    validation = create_model(
        'ValOptions',
        __base__=ValOptions,
        metrics=(
            dict[str, _components(METRIC_REGISTRY, MetricOptions)],
            Field({}, description='Name: metric. The first one chooses the best checkpoint.'),
        ),
    )
    training = create_model(
        'TrainOptions',
        __base__=TrainOptions,
        scheduler=(_components(SCHEDULER_REGISTRY), ...),
        optim_g=(_choice((AdamWOptions, AdamOptions, MuonOptions)), ...),
        pixel_opt=(_components(LOSS_REGISTRY) | None, None),
        losses=(dict[str, _components(LOSS_REGISTRY)], Field({})),
    )
    return create_model(
        'RestormerOptions',
        __base__=RunOptions,
        __doc__='An option file of train.py or test.py.',
        model_type=(
            Literal[tuple(MODEL_REGISTRY.names())],
            Field('ImageCleanModel', description='The training step.'),
        ),
        datasets=(
            dict[str, _components(DATASET_REGISTRY, LoaderOptions)],
            Field(description='`train` is trained on; all others are for validation or testing.'),
        ),
        network_g=(_components(ARCH_REGISTRY), ...),
        train=(training | None, Field(None, description='Needed by train.py alone.')),
        val=(validation, validation()),
    )


def load_options(
    path: str | Path, settings: Iterable[str] = ()
) -> tuple[RunOptions | None, dict[str, Any], list[str]]:
    """Reads an option file and the --force_yml settings, and checks every key by itself.

    Returns (options, the plain data, the mistakes); options is None if there are mistakes. What takes more
    than one key or a look at the disk is checked by `basicsr.options.checks`.
    Raises OptionError if the file cannot be read at all.
    """
    file = read_file(path, settings)
    options, data, mistakes = check_keys(file)
    lines = file.report(mistakes)
    return (None if lines else options), data, lines


def check_keys(file: OptionFile) -> tuple[RunOptions | None, dict[str, Any], list[Mistake]]:
    """The options, or None; the plain data, with integers where they are meant; and every mistake that a
    single key has. Imports what `custom_imports` names."""
    mistakes = list(_import_custom(file.data.get('custom_imports')))
    model = options_model()
    options, problems = _validate(model, file.data)
    # `!!float 4e3`, or 4000.0, is an integer to those who write option files, where one belongs.
    keys = {_real_key(item['loc'], file.data) for item in problems if item['type'] == 'int_type'}
    data = _with_integers(file.data, keys)
    if keys:
        options, problems = _validate(model, data)
    return options, data, [*mistakes, *_describe(problems, model, data)]


def _validate(model: type[RunOptions], data: dict[str, Any]) -> tuple[RunOptions | None, list[Any]]:
    try:
        # JSON, because pydantic's strict mode then takes lists and mappings where YAML has nothing else.
        return model.model_validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _with_integers(data: Any, keys: set[Key], key: Key = ()) -> Any:
    if isinstance(data, dict):
        return {name: _with_integers(value, keys, (*key, name)) for name, value in data.items()}
    if isinstance(data, list):
        return [_with_integers(value, keys, (*key, index)) for index, value in enumerate(data)]
    return int(data) if key in keys and isinstance(data, float) and data.is_integer() else data


def _import_custom(modules: Any) -> Iterator[Mistake]:
    for index, name in enumerate(modules if isinstance(modules, list) else []):
        if isinstance(name, str):
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:  # the user's own code: whatever it raises is the answer
                reason = ' '.join(f'{type(error).__name__}: {error}'.split())
                text = (
                    f'found {show(name)}, whose import fails ({reason}); allowed: modules that can be imported'
                )
                yield Mistake(('custom_imports', index), text)


def read_options(path: str | Path, settings: list[str], purpose: Purpose, world_size: int = 1) -> RunOptions:
    """The checked options of a file. Raises OptionError with every mistake that is in it."""
    file = read_file(path, settings)
    options, data, mistakes = check_keys(file)
    wrong = {_whole(mistake.key) for mistake in mistakes}
    wrong |= _unjudged(data, wrong)
    checks = _Checks(data, wrong, purpose, world_size)
    mistakes += [mistake for mistake in checks.run() if _whole(mistake.key) not in wrong]
    lines = file.report(mistakes)
    if lines or options is None:
        raise OptionError(lines)
    if ignored := without_effect(data):
        get_logger().warning('These options have no effect here: %s', ', '.join(ignored))
    return options
