"""The sections of an option file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from basicsr.utils.component import Component, Registered, Section, unregistered
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    OPTIMIZER_REGISTRY,
    SCHEDULER_REGISTRY,
)

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]

# Keys of published option files that have no effect here.
WITHOUT_EFFECT = ('scale', 'datasets.*.prefetch_mode', 'val.rgb2bgr', 'val.max_minibatch', 'logger.wandb')


def without_effect(section: Component) -> tuple[str, ...]:
    """The keys that have no effect for a dataset of this type."""
    return getattr(DATASET_REGISTRY.get(section.type), 'without_effect', ())


FOLDER_NAME = r'^[^/\\\x00-\x1f]*[^/\\\x00-\x1f. ][^/\\\x00-\x1f]*$'
FOLDER_NAMES = 'the name of a folder, at most 200 bytes, without slashes'  # in messages


def is_folder_name(name: str) -> bool:
    """Whether it is the name of one folder, of at most 200 bytes."""
    return bool(re.match(FOLDER_NAME, name)) and len(name.encode()) <= 200


def _folder_name(name: str) -> str:
    if not is_folder_name(name):
        raise PydanticCustomError('folder_name', f'Input should be {FOLDER_NAMES}')
    return name


def _registered_model(name: str) -> str:
    if name not in MODEL_REGISTRY.names():
        raise unregistered(MODEL_REGISTRY.names(), 'literal_error')
    return name


class LoaderOptions(Component):
    """How a dataset is loaded; the other keys of a dataset belong to its `type`."""

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
    """Training: shuffle in every epoch; false: the order of the names."""
    num_worker_per_gpu: Count = 4
    """Processes that decode images; 0: decode in the training process."""
    dataset_enlarge_ratio: PositiveInt = 1
    """Repetitions of the set in one epoch."""
    prefetch_mode: str | None = None
    """No effect."""


class MetricOptions(Component):
    _supplied = 2, frozenset({'data_range', 'input_order'})  # both images and their format

    better: Literal['higher', 'lower'] | None = None
    """Which way is better, to choose the best checkpoint; null: as the metric says, else higher."""


class PathOptions(Section):
    pretrain_network_g: str | None = None
    """Weights to start from (training) or to test."""
    param_key_g: str | None = None
    """Which weights of that file, as params or params_ema; null: the averaged ones if it has any."""
    strict_load_g: bool = True
    """false: load what fits, and log what does not."""
    resume_state: str | None = None
    """Training state to resume from; --auto_resume takes the newest of this run."""


class MixingOptions(Section):
    mixup: bool = False
    """Mix pairs of a batch."""
    mixup_beta: Positive = 1.2
    """Both parameters of the Beta distribution that the mixing weight is drawn from."""
    use_identity: bool = True
    """Leave every other batch, on average, as it is."""


class OptimizerOptions(Component):
    _supplied = 1, frozenset({'fused'})  # the network's parameters


class LoggerOptions(Section):
    print_freq: PositiveInt = 100
    """Iterations between log lines."""
    save_checkpoint_freq: PositiveInt = 5000
    """Iterations between checkpoints."""
    keep_last: PositiveInt | None = 3
    """Checkpoints to keep beside the best; ~ keeps all."""
    use_tb_logger: bool = True
    """Write TensorBoard events."""
    wandb: dict[str, Any] | None = None
    """No effect."""


class DistOptions(Section):
    backend: Literal['nccl', 'gloo', 'auto'] = 'auto'
    """nccl falls back to gloo where there is no GPU."""
    port: Annotated[int, Field(ge=1, le=65535)] = 29500
    """Port of the first node, with --launcher slurm."""


class TrainOptions(Section):
    total_iter: PositiveInt
    """Training ends after this many iterations."""
    warmup_iter: Annotated[int, Field(ge=-1)] = -1
    """Linear warm-up of the learning rate; -1: none."""
    use_grad_clip: bool = True
    """Clip the norm of the gradient."""
    grad_clip_norm: Positive = 0.01
    """Largest norm of the gradient."""
    accumulate: PositiveInt | Literal['auto'] = 1
    """Micro-batches (of mini_batch_sizes, or batch_size_per_gpu) that a process accumulates in a step; auto: as many as
    keep the global batch of num_gpu devices on fewer devices."""
    precision: Literal['fp32', 'bf16', 'fp16', 'fp64'] = 'fp32'
    """bf16, fp16 (with a scaled loss; GPU only): autocast of the forward pass; fp64: everything in double precision,
    to compare runs."""
    compile: bool = False
    """Use torch.compile for the network (for each block of a Restormer); takes seconds to minutes at the start of every
    stage."""
    cuda_graph: bool = True
    """Restormer in one process on a GPU: record a step's thousands of kernels at the start of a stage and after a
    validation, and launch them at once; false: one by one."""
    activation_checkpointing: bool | list[bool] = False
    """Recompute activations in the backward pass instead of keeping them: much less memory, one more forward pass; a
    list: for each stage."""
    ema_decay: Share = 0.0
    """Decay rate of the averaged weights; 0: no average."""
    mixing_augs: MixingOptions = MixingOptions()
    optim_g: Annotated[OptimizerOptions, Registered(OPTIMIZER_REGISTRY)]
    scheduler: Annotated[Component, Registered(SCHEDULER_REGISTRY)]
    pixel_opt: Annotated[Component, Registered(LOSS_REGISTRY)] | None = None
    """Loss of the restored against the clean image; optional if `losses` has one."""
    losses: dict[str, Annotated[Component, Registered(LOSS_REGISTRY)]] = Field(default={})
    """Name: another loss, added to pixel_opt."""


class ValOptions(Section):
    window_size: PositiveInt = 8
    """Images are padded to a multiple of this, and results cropped."""
    precision: Literal['auto', 'fp32', 'bf16', 'fp16'] = 'fp32'
    """Precision of the restoration."""
    tlc: bool | PositiveInt = False
    """Attention over local windows of 384 pixels (true), or of this many, a multiple of 8. Training stores the value
    with the weights; demo.py, evaluate.py and `Restorer.from_checkpoint` use it."""
    tile: PositiveInt | None = None
    """Side of tiles to restore one by one, a multiple of 8; null: no tiles."""
    tile_overlap: Count | None = None
    """Pixels that adjacent tiles share; null: 32, or half a tile."""
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
    metrics: dict[str, Annotated[MetricOptions, Registered(METRIC_REGISTRY)]] = Field(default={})
    """Name: metric. The first one chooses the best checkpoint."""


class RunOptions(Section):
    """An option file of train.py or test.py."""

    name: Annotated[str, AfterValidator(_folder_name), Field(json_schema_extra={'pattern': FOLDER_NAME})]
    """The run's folder in experiments/ or results/."""
    model_type: Annotated[
        str,
        BeforeValidator(_registered_model),
        Field(json_schema_extra=lambda schema: schema.update(enum=[*MODEL_REGISTRY.names()])),
    ] = 'ImageCleanModel'
    """The training step."""
    scale: int = 1
    """No effect."""
    num_gpu: Count = 1
    """Devices that the batch sizes are meant for (see train.accumulate); 0: use the CPU."""
    manual_seed: Annotated[int, Field(ge=0, lt=2**63)] = 100
    """Seed of all random numbers."""
    custom_imports: list[str] = Field(default=[])
    """Modules to import first; they register what they define."""
    datasets: dict[str, Annotated[LoaderOptions, Registered(DATASET_REGISTRY)]]
    """`train` is the training set; all others are for validation or testing."""
    network_g: Annotated[Component, Registered(ARCH_REGISTRY)]
    path: PathOptions = PathOptions()
    train: TrainOptions | None = None
    """Required by train.py only."""
    val: ValOptions = ValOptions()
    logger: LoggerOptions = LoggerOptions()
    dist_params: DistOptions = DistOptions()
