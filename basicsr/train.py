"""Trains a network from an option file.

One process, on a GPU, or on the CPU if there is none or with `num_gpu: 0`:
    python basicsr/train.py -opt options/Deblurring_Restormer_quickstart.yml
One node with 8 GPUs (as scripts/train_dist.sh does):
    torchrun --nproc_per_node=8 basicsr/train.py -opt options/Deblurring_Restormer.yml --launcher pytorch
That file has `train.accumulate: auto`: 1, 2 and 4 GPUs train on the same global batches, and take longer.
Two nodes, on each of them (RANK is 0 and 1; HOST is the first node):
    torchrun --nnodes=2 --node_rank=RANK --master_addr=HOST --nproc_per_node=8 \
        basicsr/train.py -opt options/Deblurring_Restormer.yml --launcher pytorch
Slurm (as scripts/train_slurm.sh does):
    srun python basicsr/train.py -opt options/Deblurring_Restormer.yml --launcher slurm

The run is stored in experiments/<name>. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 (as Slurm sends with --signal=USR1@60) end
it after the current step and save a training state; a second signal ends it at once. The same command with
--auto_resume resumes from the newest valid state, also after a kill. On a CPU the run then ends with the same bits as
one that was never stopped. With another number of processes the order of samples stays the same. If the global batch
stays the same, too, so do the losses: on a CPU within 1e-9 in double and 1e-5 in single precision.

Exit status: 0 if the run is complete, 1 after an error or if the console lost output, 2 on wrong options, 128 + n after
signal n: 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, installed or not
    from basicsr.utils.cli import run

    sys.exit(run('basicsr.train'))

import argparse
import contextlib
import logging
import shutil
import time

import torch
import yaml

from basicsr.options.arguments import add_option_file
from basicsr.options.load import read_options
from basicsr.options.option_file import read_file
from basicsr.options.sections import RunOptions, is_folder_name
from basicsr.training.run_directory import RunDirectory
from basicsr.training.trainer import Trainer
from basicsr.utils.cli import exit_status, file_or_folder
from basicsr.utils.device import resolve_device
from basicsr.utils.dist import LAUNCHERS, Rank, find_rank, join, leave, report_failure
from basicsr.utils.errors import OptionError, RunError, TrainingError
from basicsr.utils.files import ROOT, atomic_write, resolve
from basicsr.utils.logger import get_logger, log_to_console, log_to_file
from basicsr.utils.memory import is_out_of_memory, keep_all_memory

# --debug: every part of the loop runs within a minute.
DEBUG_SETTINGS = ['logger:print_freq=1', 'logger:save_checkpoint_freq=8', 'val:val_freq=8']


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Trains a network from an option file.')
    add_option_file(parser)
    parser.add_argument(
        '--launcher',
        choices=LAUNCHERS,
        default='none',
        help='what starts the processes (default: none, one process)',
    )
    parser.add_argument(
        '--auto_resume', action='store_true', help='resume from the newest state of this run, if any'
    )
    parser.add_argument(
        '--experiments_dir',
        type=file_or_folder,
        default=ROOT / 'experiments',
        metavar='FOLDER',
        help='where the folders of runs are; default: %(default)s',
    )
    parser.add_argument('--debug', action='store_true', help='log every step, validate and save every 8')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main(args: argparse.Namespace) -> int:
    log_to_console()
    status = None
    try:
        status = exit_status(lambda: _train(args))
    finally:
        leave(status)
    return status


def _train(args: argparse.Namespace) -> None:
    rank = find_rank(args.launcher)
    logger = log_to_console(rank.index)
    options = _options(args, rank)
    device = _device(options, rank, args.launcher)
    directory = RunDirectory(args.experiments_dir / options.name)
    # Before the ranks join: afterwards the main rank makes the folder.
    is_new = not directory.root.exists()
    asked = options.path.resume_state
    if not is_new and not (args.auto_resume or (asked and directory.owns(resolve(asked)))):
        raise RunError(
            f'{directory.root} exists and is left unchanged; --auto_resume resumes it, and --force_yml '
            'name=ANOTHER_NAME starts a new run' + (f', also from {asked}' if asked else '')
        )
    join(rank, device, options.dist_params.backend, options.dist_params.port)
    with contextlib.ExitStack() as stack:
        stack.enter_context(report_failure(rank))
        rank.gather(is_new)  # a barrier: with some backends, joining is none
        if rank.is_main:
            stack.enter_context(directory.locked())
            log_to_file(directory.log)
        logger.info('%s on %s, %d process(es).', options.name, device, rank.world_size)
        try:
            trainer = Trainer(options, device, rank, directory, args.auto_resume)
        except BaseException as error:
            if is_new and rank.is_main:  # nothing is trained yet: free the name
                shutil.rmtree(directory.root, ignore_errors=True)
            if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
                raise TrainingError(
                    f'{device} is out of memory before the first step; does another process use it?'
                ) from error
            raise
        if rank.is_main:
            snapshot = directory.new_snapshot(Path(args.opt).name)
            atomic_write(snapshot, yaml.safe_dump(options.model_dump(mode='json'), sort_keys=False).encode())
        trainer.run()


def _options(args: argparse.Namespace, rank: Rank) -> RunOptions:
    """All ranks find the same mistakes: one rank of each node reports them."""
    settings = [*(DEBUG_SETTINGS if args.debug else []), *args.force_yml]
    try:
        if _resumes(args, settings):
            settings.append('path:pretrain_network_g=~')  # the state has the weights; that file may be gone
        return read_options(args.opt, settings, 'train', rank.world_size)
    except OptionError:
        if rank.local_index:
            get_logger().setLevel(logging.CRITICAL)
            # When one rank exits, the launcher stops the others: let the reporting rank be first.
            time.sleep(20)
        raise


def _resumes(args: argparse.Namespace, settings: list[str]) -> bool:
    """Whether the run starts from a training state. Raises OptionError if the option file is not YAML."""
    data = read_file(args.opt, settings).data
    path, name = data.get('path'), str(data.get('name'))
    if isinstance(path, dict) and path.get('resume_state'):
        return True
    return args.auto_resume and is_folder_name(name) and RunDirectory(args.experiments_dir / name).has_states()


def _device(options: RunOptions, rank: Rank, launcher: str) -> torch.device:
    device = resolve_device('cpu' if options.num_gpu == 0 else 'auto')
    if device.type == 'mps':  # its fused optimizers ignore `found_inf`
        device = torch.device('cpu')
    if device.type == 'cpu':
        keep_all_memory()
    if device.type == 'cuda':
        # Sizes are constant within a stage, so cuDNN may time its algorithms. For a Restormer that takes up to half a
        # minute per stage, and its heuristics are as fast.
        torch.backends.cudnn.benchmark = options.network_g.type != 'Restormer'
        # Slurm may show each process only its own GPU, which then is number 0.
        is_own = launcher == 'slurm' and torch.cuda.device_count() == 1
        return resolve_device(f'cuda:{0 if is_own else rank.local_index}')
    return device
