"""The sections of an option file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from basicsr.options.components import Component, Registered, Section, unregistered
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

FOLDER_NAME = r'^[^/\\\x00-\x1f]*[^/\\\x00-\x1f. ][^/\\\x00-\x1f]*$'

# Keys of published option files that have no effect here.
WITHOUT_EFFECT = ('scale', 'datasets.*.prefetch_mode', 'val.rgb2bgr', 'val.max_minibatch', 'logger.wandb')


def _registered_model(name: str) -> str:
    if name not in MODEL_REGISTRY:
        raise unregistered(MODEL_REGISTRY, 'literal_error')
    return name


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
    _supplied = 2, frozenset({'data_range', 'input_order'})  # both images and their format

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


class OptimizerOptions(Component):
    _supplied = 1, frozenset({'fused'})  # the network's parameters


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
    optim_g: Annotated[OptimizerOptions, Registered(OPTIMIZER_REGISTRY)]
    scheduler: Annotated[Component, Registered(SCHEDULER_REGISTRY)]
    pixel_opt: Annotated[Component, Registered(LOSS_REGISTRY)] | None = None
    """A loss of restored and clean image; may be left out where `losses` has one."""
    losses: dict[str, Annotated[Component, Registered(LOSS_REGISTRY)]] = Field(default={})
    """Name: further loss, added to pixel_opt."""


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
    metrics: dict[str, Annotated[MetricOptions, Registered(METRIC_REGISTRY)]] = Field(default={})
    """Name: metric. The first one chooses the best checkpoint."""


class RunOptions(Section):
    """An option file of train.py or test.py."""

    name: Annotated[str, Field(pattern=FOLDER_NAME)]
    """The run's folder in experiments/ or results/."""
    model_type: Annotated[
        str,
        AfterValidator(_registered_model),
        Field(json_schema_extra=lambda schema: schema.update(enum=[*MODEL_REGISTRY.names()])),
    ] = 'ImageCleanModel'
    """The training step."""
    scale: int = 1
    """No effect."""
    num_gpu: Count = 1
    """Devices that the batch sizes were written for (see train.accumulate); 0: use the CPU."""
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
