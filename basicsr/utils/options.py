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
import textwrap
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Optional, Union

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model, model_serializer
from pydantic.json_schema import GenerateJsonSchema

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
Share = Annotated[float, Field(ge=0, lt=1)]

Key = tuple[str | int, ...]

FOLDER_NAME = r'^[^/\\\x00-\x1f]*[^/\\\x00-\x1f. ][^/\\\x00-\x1f]*$'

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


class Mistake(NamedTuple):
    key: Key
    text: str
    """`found …; allowed: …`"""


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra='forbid',
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class Component(Section):
    """A section with a `type`: the keys beside it are that class's constructor parameters."""

    _parameters: ClassVar[frozenset[str]] = frozenset()
    _given: ClassVar[tuple[int, frozenset[str]]] = 0, frozenset()
    """How many of the first parameters, and which others, do not come from options."""

    @model_serializer(mode='wrap')
    def _without_unset_nulls(self, handler: Any) -> dict[str, object]:  # (a user's class may be called Any)
        """None may stand for a default that YAML cannot express: to write it down would be to set it."""
        keys = self.model_fields_set
        return {key: value for key, value in handler(self).items() if value is not None or key in keys}


class LoaderOptions(Component):
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


class MetricOptions(Component):
    _given = 2, frozenset({'data_range', 'input_order'})  # both images, and what they are like

    better: Literal['higher', 'lower'] = 'higher'
    """Which way is better, to choose the best checkpoint."""


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
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    eps: Annotated[float, Field(gt=0)] = 1e-8


class AdamWOptions(AdamOptions):
    type: Literal['AdamW']
    weight_decay: Rate = 0.01


class MuonOptions(AdamWOptions):
    type: Literal['Muon']
    momentum: Share = 0.95
    """Of the matrices; the betas are of all other weights."""


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


class TrainOptions(Section):
    total_iter: PositiveInt
    """Training ends after this many iterations."""
    warmup_iter: Annotated[int, Field(ge=-1)] = -1
    """Linear warm-up of the learning rate; -1: none."""
    use_grad_clip: bool = True
    """Clip the norm of the gradient."""
    grad_clip_norm: Annotated[float, Field(gt=0)] = 0.01
    """The largest norm of the gradient."""
    accumulate: PositiveInt | Literal['auto'] = 1
    """Micro-batches (of mini_batch_sizes, or batch_size_per_gpu) that a process adds up in a step; auto: as many as
    keep the global batch of num_gpu devices on fewer of them."""
    precision: Literal['fp32', 'bf16', 'fp16', 'fp64'] = 'fp32'
    """bf16, fp16 (with a scaled loss; GPU only): autocast of the forward pass; fp64: all in double precision, to
    compare runs."""
    compile: bool = False
    """torch.compile of the network (of a Restormer, of its blocks): takes seconds to minutes at the start of every
    stage."""
    cuda_graph: bool = True
    """A Restormer in one process on a GPU: record a step's thousands of kernels (at the start of a stage, and after a
    validation), and launch them at once; false: one by one."""
    activation_checkpointing: bool | list[bool] = False
    """Compute activations again for the gradients instead of keeping them: much less memory, one more forward pass; a
    list: for each stage."""
    ema_decay: Share = 0.0
    """Of the averaged weights; 0: no average."""
    mixing_augs: MixingOptions = MixingOptions()


class ValOptions(Section):
    window_size: PositiveInt = 8
    """Sides are padded to a multiple of this, and cut after."""
    precision: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'fp32'
    """What to restore in."""
    tlc: bool | PositiveInt = False
    """Attention over local windows; true: of 384 pixels; a number: of so many, a multiple of 8. Weights that training
    saves say so, and are used so by demo.py, evaluate.py and `Restorer.from_checkpoint`."""
    tile: PositiveInt | None = None
    """Side of tiles to restore one by one, a multiple of 8; null: images as a whole."""
    tile_overlap: Count | None = None
    """Pixels that neighbouring tiles share; null: 32, or half a tile."""
    val_freq: PositiveInt = 5000
    """Iterations between validations."""
    save_img: bool = False
    """Write the restored images."""
    use_image: bool = True
    """Measure rounded images; false: before rounding."""
    rgb2bgr: bool = True
    """No effect."""
    max_minibatch: PositiveInt | None = None
    """No effect."""


class RunOptions(Section):
    """A whole option file, but for what depends on the registries."""

    name: Annotated[str, Field(pattern=FOLDER_NAME)]
    """Of the run: the folder in experiments/ or results/."""
    scale: int = 1
    """No effect."""
    num_gpu: Count = 1
    """Devices that the batch sizes were written for (see train.accumulate); 0: use the CPU."""
    manual_seed: Annotated[int, Field(ge=0, lt=2**63)] = 100
    """Everything random follows from it."""
    custom_imports: list[str] = []
    """Modules to import first; they register what they define."""
    path: PathOptions = PathOptions()
    logger: LoggerOptions = LoggerOptions()
    dist_params: DistOptions = DistOptions()


# ------------------------------------------------------------------ models made from the registries


class _OpenEnded(Section):
    """The constructor takes **kwargs."""

    model_config = ConfigDict(extra='allow')


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


def options_model() -> type[BaseModel]:
    """The model of a whole option file, for what the registries hold now."""
    import basicsr.archs
    import basicsr.data
    import basicsr.losses
    import basicsr.metrics
    import basicsr.models  # noqa: F401 - imported to fill the registries

    registries = (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY)
    return _options_model(tuple((name, r.get(name)) for r in registries for name in r.names()))


@lru_cache(maxsize=8)
def _options_model(registered: tuple[Any, ...]) -> type[BaseModel]:
    from basicsr.models.lr_scheduler import SCHEDULERS

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
        scheduler=(_choice(_component(name, cls) for name, cls in SCHEDULERS.items()), ...),
        optim_g=(_choice((AdamWOptions, AdamOptions, MuonOptions)), ...),
        pixel_opt=(_components(LOSS_REGISTRY), ...),
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


# ------------------------------------------------------------------ reading


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


# ------------------------------------------------------------------ checking


def load_options(
    path: str | Path, settings: Iterable[str] = ()
) -> tuple[BaseModel | None, dict[str, Any], list[str]]:
    """Reads an option file and the --force_yml settings, and checks every key by itself.

    Returns (options, the plain data, the mistakes); options is None if there are mistakes. What takes more
    than one key or a look at the disk is checked by `basicsr.models.option_checks`.
    Raises OptionError if the file cannot be read at all.
    """
    file = read_file(path, settings)
    options, data, mistakes = check_keys(file)
    lines = file.report(mistakes)
    return (None if lines else options), data, lines


def check_keys(file: OptionFile) -> tuple[BaseModel | None, dict[str, Any], list[Mistake]]:
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


def _validate(model: type[BaseModel], data: dict[str, Any]) -> tuple[BaseModel | None, list[Any]]:
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


def show(value: Any) -> str:
    """As it would stand in a file, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f'{text[:77]}...'


class _Untitled(GenerateJsonSchema):
    """Without a title for every key, which only repeats its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    return options_model().model_json_schema(schema_generator=_Untitled)


if __name__ == '__main__':
    print(json.dumps(json_schema(), indent=1, sort_keys=True))
