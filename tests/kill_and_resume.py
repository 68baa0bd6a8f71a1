"""A short run that is killed again and again, against one that is not.

    python tests/kill_and_resume.py --kills 20

sends a random one of SIGKILL, SIGTERM, SIGHUP, SIGINT and SIGUSR1 at random moments, resumes with --auto_resume each
time, and compares weights, averaged weights, optimizer state and every logged value, bit for bit. The tests use the
same functions.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 12  # iterations of a run
TIMES = 'step_time', 'data_time'
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1]

# Forks processes that have imported everything already.
FORKSERVER = multiprocessing.get_context('forkserver')
FORKSERVER.set_forkserver_preload(['basicsr.train', 'torch.distributed'])


def make_images(folder: Path, count: int = 6, size: tuple[int, int] = (45, 56)) -> None:
    """Smooth random pictures, and the same blurred."""
    generator = np.random.default_rng(0)
    for kind in ('input', 'target'):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        noise = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
        sharp = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), None, 0, 255, cv2.NORM_MINMAX)
        cv2.imwrite(str(folder / 'target' / f'{index}.png'), sharp)
        cv2.imwrite(str(folder / 'input' / f'{index}.png'), cv2.blur(sharp, (1, 5)))


# 12 steps of a tiny network in two stages; saves, logs and validates out of step with each other.
OPTIONS = f"""
num_gpu: 0
manual_seed: 5
datasets:
  train:
    num_worker_per_gpu: 1
    batch_size_per_gpu: 4
    mini_batch_sizes: [4, 2]
    gt_size: 32
    gt_sizes: [16, 32]
    iters: [5, 7]
  val: {{}}
network_g: {{type: Restormer, dim: 8, num_blocks: [1, 0, 0, 1], num_refinement_blocks: 0, heads: [1, 1, 2, 2]}}
train:
  total_iter: {TOTAL}
  scheduler: {{type: CosineAnnealingRestartCyclicLR, periods: [{TOTAL}], eta_mins: [1.0e-6]}}
  optim_g: {{type: AdamW, lr: 1.0e-3}}
  pixel_opt: {{type: L1Loss}}
  ema_decay: 0.9
  mixing_augs: {{mixup: true}}
val: {{val_freq: 5, metrics: {{psnr: {{type: calculate_psnr}}}}}}
logger: {{print_freq: 3, save_checkpoint_freq: 2, keep_last: 2}}
"""


def options(folder: Path, name: str, **train: object) -> dict:
    """OPTIONS for the images in a folder, with other keys of `train`."""
    content = {'name': name, **yaml.safe_load(OPTIONS)}
    for section in content['datasets'].values():
        section['type'] = 'Dataset_PairedImage'
        section['dataroot_lq'], section['dataroot_gt'] = str(folder / 'input'), str(folder / 'target')
    content['train'].update(train)
    return content


class Done(NamedTuple):
    returncode: int
    stdout: str
    """Including stderr."""


def run(arguments: list[str]) -> Done:
    """Runs a program in one thread: the same sums in the same order."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with tempfile.TemporaryFile('w+') as output:
        process = subprocess.Popen(
            arguments, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait()
        except BaseException:  # a test that takes too long, or Ctrl-C: leave nothing running
            process.terminate()  # a launcher ends the processes that it started, in groups of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        output.seek(0)
        return Done(process.returncode, output.read())


Prepare = Callable[[], None] | None


def train(
    option_file: Path,
    *arguments: str,
    prepare: Prepare = None,
    killed_after: float | None = None,
    by: signal.Signals = signal.SIGKILL,
) -> Done:
    """Runs basicsr/train.py in a forked process, after `prepare` there, to its end, or to a signal `by` after some
    seconds."""
    (done,) = _train([{}], ['-opt', str(option_file), *arguments], prepare, killed_after, by)
    return done


def free_port() -> str:
    with socket.create_server(('127.0.0.1', 0)) as free:
        return str(free.getsockname()[1])


def train_ranks(
    ranks: int, option_file: Path, *arguments: str, prepare: Prepare = None, launcher: str = 'pytorch'
) -> list[Done]:
    """Runs the ranks of one process group, with the variables that torchrun or Slurm sets."""
    names = 'RANK', 'LOCAL_RANK', 'WORLD_SIZE'
    place = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
    if launcher == 'slurm':
        names = 'SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS'
        place |= {'SLURM_JOB_NODELIST': 'node', 'PATH': os.environ['PATH']}
        del place['MASTER_ADDR']
    environments = [
        {**place, **dict(zip(names, map(str, (rank, rank, ranks)), strict=True))} for rank in range(ranks)
    ]
    return _train(environments, ['-opt', str(option_file), *arguments, '--launcher', launcher], prepare)


def _train(
    environments: list[dict[str, str]],
    arguments: list[str],
    prepare: Prepare,
    killed_after: float | None = None,
    by: signal.Signals = signal.SIGKILL,
) -> list[Done]:
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(index) for index in range(len(environments))]
        processes = [
            FORKSERVER.Process(target=_work, args=(arguments, environment, output, prepare))
            for environment, output in zip(environments, outputs, strict=True)
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(killed_after)
                if process.exitcode is None:
                    os.kill(process.pid, by)
                    process.join(60)
        finally:
            for process in processes:
                process.kill()  # the run itself; its loader's workers notice later
                process.join()
        return [
            Done(process.exitcode, output.read_text())
            for process, output in zip(processes, outputs, strict=True)
        ]


def _work(arguments: list[str], environment: dict[str, str], output: Path, prepare: Prepare) -> None:
    os.environ.update({**environment, 'CUDA_VISIBLE_DEVICES': '', 'HIP_VISIBLE_DEVICES': ''})
    with output.open('wb') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from basicsr.utils import cli

    assert Path(cli.__file__).is_relative_to(ROOT)
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # for the loader's workers
    if prepare is not None:
        prepare()
    sys.exit(cli.run('basicsr.train', arguments))


def dying_in_save(number: int) -> Callable[[], None]:
    """To prepare a run: it writes half of a file, and dies, at its n-th save."""
    return partial(_die_in_save, number)


def _die_in_save(number: int) -> None:
    saves, real_save = itertools.count(1), torch.save

    def save(content: object, file: io.BufferedWriter) -> None:
        if next(saves) == number:
            complete = io.BytesIO()
            real_save(content, complete)
            file.write(complete.getvalue()[: len(complete.getvalue()) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real_save(content, file)

    torch.save = save


def results(name: str) -> dict:
    """Everything that must not depend on how often a run was killed."""
    run_folder = ROOT / 'experiments' / name
    history = [json.loads(line) for line in (run_folder / 'history.jsonl').read_text().splitlines()]
    newest = max((run_folder / 'training_states').glob('*.state'), key=lambda path: int(path.stem))
    state = torch.load(newest, weights_only=True)
    return {
        'history': [{key: value for key, value in entry.items() if key not in TIMES} for entry in history],
        'iteration': state['iteration'],
        'state': state['model'],
        'samples': state['samples'],
        'weights': torch.load(run_folder / 'models' / 'net_g_latest.pth', weights_only=True),
        'best': torch.load(run_folder / 'models' / 'net_g_best.pth', weights_only=True),
        'files': sorted(path.name for path in (run_folder / 'models').iterdir()),
    }


def difference(one: object, other: object, where: str = '') -> str | None:
    """The first place where two nested results differ in any bit, or None."""
    if type(one) is not type(other):
        return f'{where}: {type(one).__name__} against {type(other).__name__}'
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, other) else f'{where}: tensors differ by {(one - other).abs().max()}'
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f'{where}: keys {sorted(map(str, one.keys() ^ other.keys()))}'
        return next(filter(None, (difference(one[key], other[key], f'{where}/{key}') for key in one)), None)
    if isinstance(one, list):
        if len(one) != len(other):
            return f'{where}: {len(one)} against {len(other)} entries'
        parts = (
            difference(a, b, f'{where}/{index}') for index, (a, b) in enumerate(zip(one, other, strict=True))
        )
        return next(filter(None, parts), None)
    return None if one == other else f'{where}: {one} against {other}'


class Runs:
    """Runs whose folders in experiments/ and results/ are removed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        make_images(folder)

    def name(self) -> str:
        self.names.append(f'test-{uuid.uuid4().hex[:8]}')
        return self.names[-1]

    def option_file(self, **train: object) -> tuple[str, Path]:
        name = self.name()
        path = self.folder / f'{name}.yml'
        path.write_text(yaml.safe_dump(options(self.folder, name, **train)))
        return name, path

    def clean(self) -> None:
        for kind in ('experiments', 'results'):
            for name in self.names:
                shutil.rmtree(ROOT / kind / name, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    generator = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        try:
            train(runs.option_file(total_iter=1)[1])  # imports are not part of the duration
            name, path = runs.option_file()
            began = time.perf_counter()
            complete = train(path)
            duration = time.perf_counter() - began
            assert complete.returncode == 0, complete.stdout
            expected = results(name)
            print(f'the run that is not killed took {duration:.1f} s')

            name, path = runs.option_file()
            kills = 0
            while kills < args.kills:
                by = generator.choice(SIGNALS)
                after = generator.uniform(0.1, 1.0) * duration
                done = train(path, '--auto_resume', killed_after=after, by=by)
                if done.returncode == 0:  # it ended before the signal
                    print(f'done after {kills} kills; starting a new run to kill')
                    found = difference(results(name), expected)
                    assert found is None, found
                    name, path = runs.option_file()
                    continue
                # A signal that comes before the program handles it kills it.
                assert done.returncode in (-by, 128 + by), done.stdout
                assert 'Traceback' not in done.stdout, done.stdout
                kills += 1
                states = (ROOT / 'experiments' / name / 'training_states').glob('*.state')
                print(f'{kills}: {by.name}, states {sorted(int(state.stem) for state in states)}')
            done = train(path, '--auto_resume')
            assert done.returncode == 0, done.stdout
            found = difference(results(name), expected)
            print('bit-identical' if found is None else f'NOT identical: {found}')
            return 0 if found is None else 1
        finally:
            runs.clean()


if __name__ == '__main__':
    sys.exit(main())
