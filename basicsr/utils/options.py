"""Option files: read, override, check, and describe as a JSON schema.

What an option file may contain stands here once, as pydantic models, but for the keys beside a `type:`:
those are the constructor parameters of the registered class, read from its signature. So an architecture
of your own is checked in the same way as ours, and nothing is listed twice.

`python -m basicsr.utils.options` prints the JSON schema (options/schema.json, for editors).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]

# Published option files have these; nothing here depends on them.
WITHOUT_EFFECT = (
    'scale',
    'datasets.*.prefetch_mode',
    'val.rgb2bgr',
    'val.max_minibatch',
    'logger.wandb',
)


class OptionError(ValueError):
    """All that is wrong with an option file; each line names file, key, found and allowed."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__('\n'.join(mistakes))
        self.mistakes = mistakes


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra='forbid', protected_namespaces=(), use_attribute_docstrings=True
    )


class LoaderOptions(Section):
    """How a dataset is read; the other keys of a dataset belong to its `type`."""

    name: str | None = None
    """Shown in logs and used as a folder name; default: the key of the dataset."""
    gt_size: PositiveInt | None = None
    """Training: the (largest) patch in pixels."""
    batch_size_per_gpu: PositiveInt | None = None
    """Training: the (largest) batch of one process."""
    mini_batch_sizes: list[PositiveInt] | None = None
    """Progressive training: the batch of one process in every stage."""
    gt_sizes: list[PositiveInt] | None = None
    """Progressive training: the patch in pixels in every stage."""
    iters: list[PositiveInt] | None = None
    """Progressive training: the length of every stage in iterations."""
    use_shuffle: bool = True
    """Training: a new order in every epoch; false: the order of the names."""
    num_worker_per_gpu: Count = 4
    """Processes that decode; 0: decode in the training process."""
    dataset_enlarge_ratio: PositiveInt = 1
    """Repeats of the set in one epoch."""
    prefetch_mode: str | None = None
    """No effect."""


class PathOptions(Section):
    pretrain_network_g: str | None = None
    """Weights to start from (training) or to test."""
    strict_load_g: bool = True
    """false: load what fits, and log what does not."""
    resume_state: str | None = None
    """A .state file to continue from; --auto_resume finds the newest by itself."""


class MixingOptions(Section):
    mixup: bool = False
    """Mix pairs of a batch."""
    mixup_beta: Annotated[float, Field(gt=0)] = 1.2
    """Both parameters of the Beta distribution of the mixing weight."""
    use_identity: bool = True
    """Leave every other batch, on average, as it is."""


class AdamOptions(Section):
    type: Literal['Adam']
    lr: Rate
    """The base of the learning-rate schedule."""
    weight_decay: Rate = 0.0
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [
        0.9,
        0.999,
    ]
    eps: Annotated[float, Field(gt=0)] = 1e-8


class AdamWOptions(AdamOptions):
    type: Literal['AdamW']
    weight_decay: Rate = 0.01


class LoggerOptions(Section):
    print_freq: PositiveInt = 100
    """Iterations between log lines."""
    save_checkpoint_freq: PositiveInt = 5000
    """Iterations between checkpoints."""
    keep_last: PositiveInt | None = 3
    """Checkpoints kept, beside the best; ~ keeps all."""
    use_tb_logger: bool = True
    """Write TensorBoard events."""
    wandb: dict[str, Any] | None = None
    """No effect."""


class DistOptions(Section):
    backend: Literal['nccl', 'gloo', 'auto'] = 'auto'
    """nccl falls back to gloo where there is no GPU."""
    port: Annotated[int, Field(ge=1, le=65535)] = 29500
    """Of the first node, with --launcher slurm."""


# ------------------------------------------------------------------ models made from the registries


def _parameters(entry: Callable[..., Any], skip: int = 0) -> tuple[dict[str, Any], bool]:
    """Constructor parameters as pydantic fields, and whether the constructor takes any other keyword."""
    function = entry.__init__ if inspect.isclass(entry) else entry
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError:  # annotations that exist for type checkers alone: names are still checked
        hints = {}
    fields: dict[str, Any] = {}
    open_ended = False
    for parameter in list(inspect.signature(entry).parameters.values())[skip:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            default = ... if parameter.default is parameter.empty else parameter.default
            if isinstance(default, tuple):
                default = list(default)
            annotation = hints.get(parameter.name, Any)
            if default is None:
                annotation = Optional[annotation]  # noqa: UP045 - an annotation may be a string-less typing object
            fields[parameter.name] = (annotation, default)
    return fields, open_ended


def _component(
    name: str, entry: Callable[..., Any], base: type[Section] = Section, skip: int = 0
) -> type[Section]:
    fields, open_ended = _parameters(entry, skip)
    config = ConfigDict(**{**Section.model_config, 'extra': 'allow' if open_ended else 'forbid'})
    model = create_model(
        name, __base__=base, __doc__=inspect.getdoc(entry) or '', type=(Literal[name], ...), **fields
    )
    model.model_config = config
    model.model_rebuild(force=True)
    return model


def _choice(models: Iterable[type[Section]]) -> Any:
    members = tuple(models)
    if len(members) == 1:
        return members[0]
    return Annotated[Union[members], Field(discriminator='type')]  # noqa: UP007 - made at run time


def _components(registry: Registry, base: type[Section] = Section, skip: int = 0) -> Any:
    return _choice(_component(name, registry.get(name), base, skip) for name in registry.names())


class _MetricBase(Section):
    better: Literal['higher', 'lower'] = 'higher'
    """Which way is better, to choose the best checkpoint."""


def options_model() -> type[BaseModel]:
    """The model of a whole option file, for what the registries hold now."""
    import basicsr.archs
    import basicsr.data
    import basicsr.losses
    import basicsr.metrics
    import basicsr.models
    from basicsr.models.lr_scheduler import SCHEDULERS

    validation = create_model(
        'ValOptions',
        __base__=Section,
        window_size=(
            PositiveInt,
            Field(8, description='Sides are padded to a multiple of this, and cut after.'),
        ),
        val_freq=(PositiveInt, Field(5000, description='Iterations between validations.')),
        save_img=(bool, Field(False, description='Write the restored images.')),
        use_image=(bool, Field(True, description='Measure rounded images; false: before rounding.')),
        rgb2bgr=(bool, Field(True, description='No effect.')),
        max_minibatch=(PositiveInt | None, Field(None, description='No effect.')),
        metrics=(
            dict[str, _components(METRIC_REGISTRY, _MetricBase, skip=2)],
            Field(default_factory=dict, description='Name: metric. The first one chooses the best checkpoint.'),
        ),
    )
    training = create_model(
        'TrainOptions',
        __base__=Section,
        total_iter=(PositiveInt, Field(description='Training ends after this many iterations.')),
        warmup_iter=(int, Field(-1, ge=-1, description='Linear warm-up of the learning rate; -1: none.')),
        use_grad_clip=(bool, Field(True, description='Clip the norm of the gradient.')),
        grad_clip_norm=(float, Field(0.01, gt=0, description='The largest norm of the gradient.')),
        precision=(Literal['fp32', 'bf16'], Field('fp32', description='bf16: autocast of the forward pass.')),
        ema_decay=(float, Field(0.0, ge=0, lt=1, description='Of the averaged weights; 0: no average.')),
        scheduler=(_choice(_component(name, cls) for name, cls in SCHEDULERS.items()), ...),
        mixing_augs=(MixingOptions, Field(default_factory=MixingOptions)),
        optim_g=(_choice((AdamWOptions, AdamOptions)), ...),
        pixel_opt=(_components(LOSS_REGISTRY), ...),
    )
    return create_model(
        'RestormerOptions',
        __base__=Section,
        name=(
            str,
            Field(
                pattern=r'^[^/\\]*[^/\\.][^/\\]*$',
                description='Of the run: the folder in experiments/ or results/.',
            ),
        ),
        model_type=(
            Literal[tuple(MODEL_REGISTRY.names())],
            Field('ImageCleanModel', description='The training step.'),
        ),
        scale=(int, Field(1, description='No effect.')),
        num_gpu=(
            int,
            Field(1, ge=0, description='Processes that the batch sizes were written for; 0: use the CPU.'),
        ),
        manual_seed=(int, Field(100, ge=0, description='Everything random follows from it.')),
        custom_imports=(
            list[str],
            Field(default_factory=list, description='Modules to import first; they register what they define.'),
        ),
        datasets=(dict[str, _components(DATASET_REGISTRY, LoaderOptions)], ...),
        network_g=(_components(ARCH_REGISTRY), ...),
        path=(PathOptions, Field(default_factory=PathOptions)),
        train=(training | None, Field(None, description='Needed by train.py alone.')),
        val=(validation, Field(default_factory=validation)),
        logger=(LoggerOptions, Field(default_factory=LoggerOptions)),
        dist_params=(DistOptions, Field(default_factory=DistOptions)),
    )


def arguments(component: BaseModel, base: type[BaseModel] = Section) -> dict[str, Any]:
    """The keyword arguments that a component's section gives to its class: a copy, free to be changed."""
    keys = (set(component.model_fields_set) - set(base.model_fields)) - {'type'}
    return component.model_dump(include=keys)


def build(registry: Registry, component: BaseModel, base: type[BaseModel] = Section) -> Any:
    """The registered object that `type:` names, called with the keys beside it."""
    return registry.get(component.type)(**arguments(component, base))  # type: ignore[attr-defined]


# ------------------------------------------------------------------ reading


class _Loader(yaml.SafeLoader):
    """Safe loading; numbers as in YAML 1.2 (`3e-4` is one); a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag != 'tag:yaml.org,2002:merge' and isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key {key_node.value!r} is given twice', key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != 'tag:yaml.org,2002:timestamp']
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'), list('-+.0123456789')
)


def _whole_numbers(value: Any) -> Any:
    """`!!float 4e3` is the integer 4000 to those who write option files."""
    if isinstance(value, dict):
        return {str(key): _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parse_yaml(text: str, source: str) -> Any:
    try:
        return _whole_numbers(yaml.load(text, Loader=_Loader))  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise OptionError([f'{source}: is not valid YAML: {" ".join(str(error).split())}']) from None


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else 'is not a text file'
        raise OptionError([f'{path}: cannot be read as an option file: {reason}']) from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise OptionError([f'{path}: found {_show(data)}; allowed: a mapping of option names to values'])
    return data


def override(data: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """A copy of `data` with every `a:b=c` of --force_yml in it; c is read as YAML. Runs no code."""
    mistakes = []
    for setting in settings:
        key, equals, text = setting.partition('=')
        parts = key.strip().split(':')
        if not equals or not all(parts):
            mistakes.append(f'--force_yml: found {setting!r}; allowed: KEY:SUBKEY=VALUE')
            continue
        try:
            value = parse_yaml(text, f'--force_yml {setting}')
        except OptionError as error:
            mistakes.extend(error.mistakes)
            continue
        try:
            data = _with(data, parts, value)
        except TypeError:
            mistakes.append(f'--force_yml {setting}: {key} leads through a value that has no keys')
    if mistakes:
        raise OptionError(mistakes)
    return data


def _with(data: Any, parts: list[str], value: Any) -> Any:
    if not parts:
        return value
    if data is None:
        data = {}
    if isinstance(data, list) and parts[0].isdigit() and int(parts[0]) < len(data):
        index = int(parts[0])
        return [*data[:index], _with(data[index], parts[1:], value), *data[index + 1 :]]
    if not isinstance(data, dict):
        raise TypeError
    return {**data, parts[0]: _with(data.get(parts[0]), parts[1:], value)}


def without_effect(data: dict[str, Any]) -> list[str]:
    """Keys of the file that published option files have, and that do nothing here."""
    found = []
    for pattern in WITHOUT_EFFECT:
        expression = re.compile(re.escape(pattern).replace(r'\*', r'[^.]+'))
        found += [key for key, value in _flatten(data) if expression.fullmatch(key) and value is not None]
    return found


def _flatten(data: Any, prefix: str = '') -> Iterable[tuple[str, Any]]:
    if prefix:
        yield prefix, data
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _flatten(value, f'{prefix}.{key}' if prefix else str(key))


# ------------------------------------------------------------------ checking


def load_options(
    path: str | Path, settings: Iterable[str] = ()
) -> tuple[BaseModel | None, dict[str, Any], list[str]]:
    """Reads an option file and the --force_yml settings, and checks every key by itself.

    Returns (options, the plain data, the mistakes); options is None if there are mistakes. What takes more
    than one key or a look at the disk is checked by `basicsr.utils.option_checks`.
    Raises OptionError if the file cannot be read at all, or a custom import fails.
    """
    path = Path(path)
    data = override(read_yaml(path), list(settings))
    _import_custom(data.get('custom_imports'), path)
    model = options_model()
    forced = [setting.partition('=')[0].strip().split(':') for setting in settings]
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise OptionError(
            [f'{path}: holds a value that is no number, text, list or mapping: {error}']
        ) from None
    try:
        # JSON, because pydantic's strict mode then takes lists and mappings where YAML has nothing else.
        return model.model_validate_json(text, strict=True), data, []
    except ValidationError as error:
        return None, data, _describe(error, model, data, str(path), forced)


def _import_custom(modules: Any, path: Path) -> None:
    for name in modules if isinstance(modules, list) else []:
        try:
            importlib.import_module(str(name))
        except Exception as error:  # the module is the user's own: whatever it raises is the answer
            raise OptionError(
                [f'{path}: custom_imports: {name!r} cannot be imported: {type(error).__name__}: {error}']
            ) from error


def _describe(
    error: ValidationError, model: type[BaseModel], data: dict[str, Any], source: str, forced: list[list[str]]
) -> list[str]:
    by_key: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for item in error.errors(include_url=False):
        keys = _real_keys(item['loc'], data)
        if item['type'] in ('union_tag_not_found', 'union_tag_invalid'):
            keys = [*keys, 'type']
        key = '.'.join(map(str, keys))
        missing = object()
        value = reduce(lambda part, step: _step(part, step, missing), keys, data)
        if item['type'] == 'extra_forbidden':
            known = _known_keys(model, item['loc'][:-1])
            close = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.6)
            hint = f'did you mean {close[0]!r}? ' if close else ''
            found[key] = 'an unknown key'
            by_key.setdefault(key, []).append(f'{hint}allowed here: {", ".join(known)}')
            continue
        found[key] = 'nothing' if value is missing else _show(value)
        by_key.setdefault(key, []).append(_allowed(item))
    lines = []
    for key, allowed in by_key.items():
        origin = '--force_yml' if any(key.split('.')[: len(part)] == part for part in forced) else source
        unique = list(dict.fromkeys(allowed))
        prefix = '' if found[key] == 'an unknown key' else 'allowed: '
        lines.append(f'{origin}: {key}: found {found[key]}; {prefix}{" or ".join(unique)}')
    return lines


def _allowed(item: Any) -> str:
    context = item.get('ctx', {})
    if item['type'] == 'union_tag_invalid':
        return str(context['expected_tags'])
    if item['type'] == 'union_tag_not_found':
        return 'the name of a registered class'
    if item['type'] == 'string_pattern_mismatch':
        return 'a name without slashes'
    if item['type'] == 'missing':
        return 'a value; this key is needed'
    message = (
        item['msg']
        .replace('Input should be ', '')
        .replace('an object', 'a mapping')
        .replace('an array', 'a list')
    )
    return (
        message.replace('a valid ', 'a ')
        .replace('a integer', 'an integer')
        .replace('a dictionary', 'a mapping')
    )


def _step(part: Any, key: Any, missing: object) -> Any:
    if isinstance(part, dict):
        return part.get(key, missing)
    if isinstance(part, list) and isinstance(key, int) and key < len(part):
        return part[key]
    return missing


def _real_keys(location: tuple[int | str, ...], data: Any) -> list[int | str]:
    """pydantic's location without the union tags that it puts between the keys."""
    keys: list[int | str] = []
    for index, key in enumerate(location):
        last = index == len(location) - 1
        inside = (isinstance(data, dict) and key in data) or (isinstance(data, list) and isinstance(key, int))
        if inside:
            keys.append(key)
            data = data[key]  # type: ignore[index]
        elif last and isinstance(data, dict):
            keys.append(key)
    return keys


def _known_keys(model: Any, location: tuple[int | str, ...]) -> list[str]:
    for key in location:
        model = _descend(model, key)
    return list(model.model_fields)


def _descend(annotation: Any, key: int | str) -> Any:
    """The model that stands behind one step of pydantic's location."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        field: FieldInfo | None = annotation.model_fields.get(str(key))
        return annotation if field is None else _plain(field.annotation)  # None: the step is a union tag
    arguments_ = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return _plain(arguments_[1])
    members = [_plain(member) for member in arguments_]
    return next(member for member in members if getattr(member, '__name__', None) == key or _tag(member) == key)


def _tag(model: Any) -> Any:
    field = getattr(model, 'model_fields', {}).get('type')
    return typing.get_args(field.annotation)[0] if field else None


def _plain(annotation: Any) -> Any:
    if typing.get_origin(annotation) is Annotated:
        return _plain(typing.get_args(annotation)[0])
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    if type(None) in typing.get_args(annotation) and len(members) == 1:
        return _plain(members[0])
    return annotation


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f'{text[:77]}...'


def json_schema() -> dict[str, Any]:
    return options_model().model_json_schema()


if __name__ == '__main__':
    print(json.dumps(json_schema(), indent=1, sort_keys=True))
