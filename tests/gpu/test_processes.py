"""Two processes that share one GPU, by gloo: the training of one process that accumulates."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from kill_and_resume import ROOT, results

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def option_file(runs):
    name, path = runs.option_file(precision='fp32', accumulate='auto')
    content = yaml.safe_load(path.read_text())
    content['num_gpu'] = 2
    content['dist_params'] = {'backend': 'gloo'}
    path.write_text(yaml.safe_dump(content))
    return name, path


def train(path, processes):
    """Under Slurm each process may see a GPU of its own; here both see the same one."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / 'basicsr' / 'train.py'), '-opt', str(path)]
    shared = {'CUDA_VISIBLE_DEVICES': '0', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    started = []
    for rank in range(processes):
        slurm = {'SLURM_PROCID': rank, 'SLURM_LOCALID': rank, 'SLURM_NTASKS': processes}
        launcher = ['--launcher', 'slurm'] if processes > 1 else []
        environment = {**os.environ, **shared, **{key: str(value) for key, value in slurm.items()}}
        started.append(subprocess.Popen([*command, *launcher], env=environment))
    assert [process.wait(timeout=600) for process in started] == [0] * processes


def test_two_processes_train_as_one(runs):
    losses = []
    for processes in (1, 2):
        name, path = option_file(runs)
        train(path, processes)
        losses.append([line['loss'] for line in results(name)['history'] if line['kind'] == 'train'])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
