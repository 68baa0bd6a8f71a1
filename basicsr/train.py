"""Trains a network from an option file.

One process, on a GPU or (with `num_gpu: 0`, or where there is none) on the CPU:
    python basicsr/train.py -opt options/Deblurring_Restormer_quickstart.yml
One node with 8 GPUs (what scripts/train_dist.sh does):
    torchrun --nproc_per_node=8 basicsr/train.py -opt options/Deblurring_Restormer.yml --launcher pytorch
With `train.accumulate: auto`, as in that file, 1, 2 and 4 GPUs train on the same batches, in more time.
Two nodes, on each of them (RANK is 0 and 1; HOST is the first node):
    torchrun --nnodes=2 --node_rank=RANK --master_addr=HOST --nproc_per_node=8 \
        basicsr/train.py -opt options/Deblurring_Restormer.yml --launcher pytorch
Slurm (what scripts/train_slurm.sh does):
    srun python basicsr/train.py -opt options/Deblurring_Restormer.yml --launcher slurm

The run is kept in experiments/<name>. After a kill, the same command with --auto_resume goes on where the
newest whole state was saved, and ends with the same bits as a run that was never stopped (on a CPU). With another
number of processes the samples go on in the same order; where the global batch stays the same, so do the losses,
on a CPU within 1e-9 in double and 1e-5 in single precision.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

# Run as a script, Python puts basicsr/ itself in front, where `data` or `utils` would shadow other packages.
if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import basicsr  # noqa: F401 - before PyTorch, as it says how its threads wait

import torch
import yaml

from basicsr.models.entry_point import exit_status, option_parser
from basicsr.options.load import read_options
from basicsr.training.run_directory import RunDirectory
from basicsr.training.trainer import Training
from basicsr.utils.device import resolve_device
from basicsr.utils.dist import LAUNCHERS, Process, find_process, join, last_words, leave
from basicsr.utils.errors import OptionError, RunError, TrainingError
from basicsr.utils.files import ROOT, atomic_write, resolve
from basicsr.utils.logger import get_logger, log_to_console, log_to_file
from basicsr.utils.memory import is_out_of_memory, keep_all_memory

# --debug: enough to see every part of the loop within a minute.
DEBUG_SETTINGS = ['logger:print_freq=1', 'logger:save_checkpoint_freq=8', 'val:val_freq=8']


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = option_parser('Trains a network from an option file.')
    parser.add_argument(
        '--launcher',
        choices=LAUNCHERS,
        default='none',
        help='what started the processes (default: none, one process)',
    )
    parser.add_argument(
        '--auto_resume', action='store_true', help='go on from the newest state of this run, if any'
    )
    parser.add_argument('--debug', action='store_true', help='log every step, validate and save every 8')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 done, 1 stopped, 2 wrong options, 130 interrupted."""
    args = parse(argv)
    log_to_console()
    again = 'Interrupted. The same command with --auto_resume goes on from the newest state.'
    status = None
    try:
        status = exit_status(lambda: _train(args), again)
    finally:
        leave(status)
    return status


def _train(args: argparse.Namespace) -> None:
    settings = [*(DEBUG_SETTINGS if args.debug else []), *args.force_yml]
    process = find_process(args.launcher)
    logger = log_to_console(process.rank)
    options = _options(args, settings, process)
    device = _device(options, process, args.launcher)
    root = ROOT / 'experiments' / options.name
    # Before the processes have found each other: after that, the first one makes the folder.
    is_new = not root.exists()
    directory = RunDirectory(root)
    asked = options.path.resume_state
    if not is_new and not (args.auto_resume or (asked and directory.has_state(resolve(asked)))):
        raise RunError(
            f'{root} exists already, and is not touched; --auto_resume goes on with it, and '
            '--force_yml name=ANOTHER_NAME starts a new run' + (f', also from {asked}' if asked else '')
        )
    join(process, device, options.dist_params.backend, options.dist_params.port)
    with contextlib.ExitStack() as stack:
        stack.enter_context(last_words(process))
        process.gather(is_new)  # all have looked by now, which joining alone does not mean with every backend
        if process.is_main:
            stack.enter_context(directory.locked())
            log_to_file(directory.log)
        logger.info('%s on %s, %d process(es).', options.name, device, process.world_size)
        try:
            training = Training(options, device, process, directory, args.auto_resume)
        except BaseException as error:
            if is_new and process.is_main:  # nothing has been trained: the name is free again
                shutil.rmtree(root, ignore_errors=True)
            if is_out_of_memory(error):
                raise TrainingError(
                    f'{device} is out of memory before the first step; is another process on it?'
                ) from error
            raise
        snapshot = directory.root / Path(args.opt).name
        if process.is_main and not snapshot.exists():
            atomic_write(snapshot, yaml.safe_dump(options.model_dump(mode='json'), sort_keys=False).encode())
        training.run()


def _options(args: argparse.Namespace, settings: list[str], process: Process) -> Any:
    """Mistakes are the same for all processes: one of each node tells them."""
    try:
        return read_options(args.opt, settings, 'train', process.world_size)
    except OptionError:
        if process.local_rank:
            get_logger().setLevel(logging.CRITICAL)
            time.sleep(20)  # a launcher that sees one end stops the others, who may be later
        raise


def _device(options: Any, process: Process, launcher: str) -> torch.device:
    device = resolve_device('cpu' if options.num_gpu == 0 else 'auto')
    if device.type == 'mps':  # whose fused optimisers do not heed `found_inf`
        device = torch.device('cpu')
    if device.type == 'cpu':
        keep_all_memory()
    if device.type == 'cuda':
        # cuDNN may time its algorithms, as the sizes of a stage do not change. For a Restormer that takes up to
        # half a minute a stage, and its heuristics are as fast.
        torch.backends.cudnn.benchmark = options.network_g.type != 'Restormer'
        # Slurm may show each of its processes a GPU of its own, the first one there.
        is_own = launcher == 'slurm' and torch.cuda.device_count() == 1
        return resolve_device(f'cuda:{0 if is_own else process.local_rank}')
    return device


if __name__ == '__main__':
    sys.exit(main())
