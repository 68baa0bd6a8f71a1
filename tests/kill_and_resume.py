"""A short run that is killed again and again, against one that never was.

    python tests/kill_and_resume.py --kills 20

kills (SIGKILL) at random moments, resumes with --auto_resume each time, and compares weights, averaged
weights, optimiser state and every logged value, bit for bit. The tests use the same functions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
TIMES = ('step_time', 'data_time')

# Saves half of a file, and then dies, at the n-th save.
DIE_IN_A_SAVE = """
import io, os, signal, sys, torch
from basicsr.train import main
saves, real_save = 0, torch.save
def save(content, file):
    global saves
    saves += 1
    if saves == {save}:
        whole = io.BytesIO()
        real_save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real_save(content, file)
torch.save = save
sys.exit(main(sys.argv[1:]))
"""


def make_images(folder: Path, count: int = 6, size: tuple[int, int] = (61, 72)) -> None:
    """Smooth random pictures, and the same blurred."""
    generator = np.random.default_rng(0)
    for kind in ('input', 'target'):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        noise = generator.integers(0, 256, (*size, 3)).astype(np.uint8)
        sharp = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), None, 0, 255, cv2.NORM_MINMAX)
        cv2.imwrite(str(folder / 'target' / f'{index}.png'), sharp)
        cv2.imwrite(str(folder / 'input' / f'{index}.png'), cv2.blur(sharp, (1, 5)))


def options(folder: Path, name: str, **train: object) -> dict:
    """20 steps of a tiny network in two stages; saves, logs and validates out of step with each other."""
    data = {
        'type': 'Dataset_PairedImage',
        'dataroot_lq': str(folder / 'input'),
        'dataroot_gt': str(folder / 'target'),
    }
    return {
        'name': name,
        'num_gpu': 0,
        'manual_seed': 5,
        'datasets': {
            'train': {
                **data,
                'num_worker_per_gpu': 1,
                'batch_size_per_gpu': 4,
                'mini_batch_sizes': [4, 2],
                'gt_size': 48,
                'gt_sizes': [32, 48],
                'iters': [9, 11],
            },
            'val': data,
        },
        'network_g': {
            'type': 'Restormer',
            'dim': 8,
            'num_blocks': [1, 1, 1, 1],
            'num_refinement_blocks': 1,
            'heads': [1, 1, 2, 2],
        },
        'train': {
            'total_iter': 20,
            'scheduler': {'type': 'CosineAnnealingRestartCyclicLR', 'periods': [20], 'eta_mins': [1e-6]},
            'optim_g': {'type': 'AdamW', 'lr': 1e-3},
            'pixel_opt': {'type': 'L1Loss'},
            'ema_decay': 0.9,
            'mixing_augs': {'mixup': True},
            **train,
        },
        'val': {'val_freq': 5, 'metrics': {'psnr': {'type': 'calculate_psnr'}}},
        'logger': {'print_freq': 3, 'save_checkpoint_freq': 2, 'keep_last': 2},
    }


def command(option_file: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / 'basicsr' / 'train.py'), '-opt', str(option_file), *arguments]


def run(arguments: list[str], killed_after: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs to the end, or for some seconds. One thread: the same sums in the same order."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    with tempfile.TemporaryFile('w+') as output:
        process = subprocess.Popen(
            arguments, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=killed_after)
        except subprocess.TimeoutExpired:
            process.kill()  # the run itself; its loader's workers notice later
            process.wait()
        except BaseException:  # a test that takes too long, or Ctrl-C: nothing goes on behind it
            process.terminate()  # a launcher then ends those that it started, in groups of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        output.seek(0)
        return subprocess.CompletedProcess(arguments, process.returncode, output.read())


def results(name: str) -> dict:
    """What must not depend on how often a run was killed."""
    run_folder = ROOT / 'experiments' / name
    history = [json.loads(line) for line in (run_folder / 'history.jsonl').read_text().splitlines()]
    state = torch.load(run_folder / 'training_states' / '20.state', weights_only=True)
    return {
        'history': [{key: value for key, value in entry.items() if key not in TIMES} for entry in history],
        'state': state['model'],
        'samples': state['samples'],
        'weights': torch.load(run_folder / 'models' / 'net_g_latest.pth', weights_only=True),
        'best': torch.load(run_folder / 'models' / 'net_g_best.pth', weights_only=True),
        'files': sorted(path.name for path in (run_folder / 'models').iterdir()),
    }


def difference(one: object, other: object, where: str = '') -> str | None:
    """The first place where two nested results are not the same bits; None if there is none."""
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
    """Runs whose folders in experiments/ are removed at the end."""

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
    generator = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        try:
            name, path = runs.option_file()
            began = time.perf_counter()
            whole = run(command(path))
            duration = time.perf_counter() - began
            assert whole.returncode == 0, whole.stdout
            expected = results(name)
            print(f'the run that is not killed took {duration:.1f} s')

            name, path = runs.option_file()
            kills = 0
            while kills < args.kills:
                done = run(command(path, '--auto_resume'), killed_after=generator.uniform(0.3, 1.0) * duration)
                if done.returncode == 0:  # it was done before the kill: back to a state from the middle
                    states = sorted((ROOT / 'experiments' / name / 'training_states').glob('*.state'))
                    print(f'done after {kills} kills; starting a new run to kill')
                    assert difference(results(name), expected) is None and states
                    name, path = runs.option_file()
                    continue
                assert done.returncode == -signal.SIGKILL, done.stdout
                kills += 1
                states = sorted(
                    int(state.stem)
                    for state in (ROOT / 'experiments' / name / 'training_states').glob('*.state')
                )
                print(f'kill {kills}: states {states}')
            done = run(command(path, '--auto_resume'))
            assert done.returncode == 0, done.stdout
            found = difference(results(name), expected)
            print('bit-identical' if found is None else f'NOT identical: {found}')
            return 0 if found is None else 1
        finally:
            runs.clean()


if __name__ == '__main__':
    sys.exit(main())
