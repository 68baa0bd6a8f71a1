"""Several processes on a CPU, started as users start them: the same run as one, resume, and one that dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import cache

import pytest
import torch
import torch.distributed as dist
import yaml
from kill_and_resume import DIE_IN_A_SAVE, ROOT, Runs, command, difference, results, run

from basicsr.utils.dist import Rank, join, leave
from basicsr.utils.errors import LaunchError

ENVIRONMENT = {'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': '', 'HIP_VISIBLE_DEVICES': ''}

# Starts as many tasks as SLURM_NTASKS says, each with its number, and ends with the worst of their statuses.
FAKE_SRUN = """#!/usr/bin/env bash
[[ $1 == --kill-on-bad-exit=1 ]] || exit 9
shift
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
done
status=0
for ((task = 0; task < SLURM_NTASKS; task++)); do wait -n || status=$?; done
exit $status
"""
FAKE_SCONTROL = '#!/usr/bin/env bash\n[[ "$*" == "show hostnames node" ]] && echo 127.0.0.1\n'

# Runs train.py with a change to one process: what it does in iteration 6.
STOP_ONE = """
import contextlib, os, signal, sys
from basicsr.data.sources import DataError
from basicsr.models.image_clean_model import ImageCleanModel
real = ImageCleanModel.step
def step(self, batches, iteration, *rest):
    if iteration == 6 and self.process.rank == 1:
        {act}
    real(self, batches, iteration, *rest)
ImageCleanModel.step = step
from basicsr.train import main
status = main(sys.argv[1:])
if os.environ['RANK'] == '1':
    # Gone for the other, and not for the launcher, which would end the other before it can say why.
    sys.stdout.flush()
    for file in range(3, 1000):
        with contextlib.suppress(OSError):
            os.set_inheritable(file, False)
    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)'])
sys.exit(status)
"""


@pytest.fixture(scope='module', autouse=True)
def on_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


def option_file(runs, data=None, **train):
    """Of a run whose batches are written for four devices."""
    name, path = runs.option_file(**{'accumulate': 'auto', **train})
    content = yaml.safe_load(path.read_text())
    content['num_gpu'] = 4
    batches = {'batch_size_per_gpu': 2, 'mini_batch_sizes': [2, 1], 'dataset_enlarge_ratio': 2}
    content['datasets']['train'] = {**(data or content['datasets']['train']), **batches}
    path.write_text(yaml.safe_dump(content))
    return name, path


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """Precision → what one process makes of four micro-batches a step."""
    made = Runs(tmp_path_factory.mktemp('alone'))

    @cache
    def result(precision):
        name, path = option_file(made, precision=precision)
        assert_is_whole(run(command(path)))
        return results(name)

    yield result
    made.clean()


def assert_is_whole(done):
    assert done.returncode == 0, done.stdout
    assert 'a global batch of 8 (2 at a time' in done.stdout and 'was meant' not in done.stdout


def by_torchrun(processes, path, *arguments):
    return run([str(ROOT / 'scripts' / 'train_dist.sh'), str(processes), str(path), *arguments])


def by_slurm(processes, path, folder, monkeypatch):
    for name, text in (('srun', FAKE_SRUN), ('scontrol', FAKE_SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(folder), prepend=os.pathsep)
    for name, value in {'NTASKS': str(processes), 'JOB_NODELIST': 'node', 'SUBMIT_DIR': str(ROOT)}.items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        monkeypatch.setenv('MASTER_PORT', str(free.getsockname()[1]))
    return run([str(ROOT / 'scripts' / 'train_slurm.sh'), str(path)])


def assert_alike(ours, theirs, loss, weights=None, after=0):
    """Loss curves within `loss`, of each value, and weights and averaged weights within `weights`."""
    histories = [
        [
            (entry['kind'], entry['iter'], entry.get('loss', entry.get('psnr')))
            for entry in each['history']
            if entry['iter'] >= after
        ]
        for each in (ours, theirs)
    ]
    assert len(histories[0]) == len(histories[1]) > 5
    for one, other in zip(*histories, strict=True):
        assert one[:2] == other[:2] and one[2] == pytest.approx(other[2], rel=loss)
    for kind in ('params', 'params_ema') if weights else ():
        for name, tensor in theirs['weights'][kind].items():
            assert (ours['weights'][kind][name] - tensor).abs().max() <= weights, name


@pytest.mark.parametrize(('precision', 'loss', 'weights'), [('fp64', 1e-9, 1e-9), ('fp32', 1e-5, None)])
def test_one_by_four_two_by_two_and_four_by_one_are_the_same_run(
    runs, alone, tmp_path, monkeypatch, precision, loss, weights
):
    """With mixup and averaged weights. The last four are started as by Slurm."""
    name, path = option_file(runs, precision=precision)
    assert_is_whole(by_torchrun(2, path))
    assert_alike(results(name), alone(precision), loss, weights)
    name, path = option_file(runs, precision=precision)
    assert_is_whole(by_slurm(4, path, tmp_path, monkeypatch))
    assert_alike(results(name), alone(precision), loss, weights)


def test_two_processes_killed_and_resumed_end_with_the_same_bits(runs, tmp_path):
    """Packed data, a worker each, accumulation, averaged weights, mixup, Muon."""
    pack = tmp_path / 'pairs.pack'
    made = run(
        [
            *(sys.executable, str(ROOT / 'scripts' / 'prepare_data.py'), '--output', str(pack)),
            *('--input_dir', str(tmp_path / 'input'), '--target_dir', str(tmp_path / 'target')),
        ]
    )
    assert made.returncode == 0, made.stdout

    def packed():
        _, path = runs.option_file()
        train = yaml.safe_load(path.read_text())['datasets']['train']
        data = {key: value for key, value in train.items() if not key.startswith('dataroot')}
        data.update(type='Dataset_PackedImage', dataroot=str(pack))
        return option_file(runs, data, optim_g={'type': 'Muon', 'lr': 1e-3})

    whole, path = packed()
    assert by_torchrun(2, path).returncode == 0
    name, path = packed()
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    for save in (3, 6):
        script = tmp_path / 'dying.py'
        script.write_text(DIE_IN_A_SAVE.replace('{save}', str(save)))
        done = run([*launch, str(script), '-opt', str(path), '--launcher', 'pytorch', '--auto_resume'])
        assert done.returncode != 0 and 'SIGKILL' in done.stdout, done.stdout
    done = by_torchrun(2, path, '--auto_resume')
    assert done.returncode == 0 and 'Resumed after' in done.stdout, done.stdout
    assert difference(results(name), results(whole)) is None


@pytest.mark.parametrize('accumulate', ['auto', 2])
def test_going_on_with_another_number_of_processes(runs, alone, accumulate):
    """Two processes, then one. With `auto` the batches stay as they are, and the run is the same; otherwise they
    become smaller, and yet the samples go on in the same order: none is skipped, and none comes twice."""
    name, path = option_file(runs, precision='fp64', accumulate=accumulate, total_iter=8)
    assert by_torchrun(2, path).returncode == 0
    content = yaml.safe_load(path.read_text())
    content['train']['total_iter'] = 20
    path.write_text(yaml.safe_dump(content))
    done = run(command(path, '--auto_resume'))
    assert done.returncode == 0 and 'Resumed after iteration 8' in done.stdout, done.stdout
    if accumulate == 'auto':
        # The end of the first run was logged, and began a new mean: the means are alike from then on.
        assert_alike(results(name), alone('fp64'), 1e-9, 1e-9, after=10)
    # 8 iterations of 8 samples; and then, of micro-batches of 2 and of 1, one iteration and eleven.
    assert results(name)['samples'] == 8 * 8 + (4 if accumulate == 'auto' else 2) * (2 + 11)


@pytest.mark.parametrize(
    ('act', 'said'),
    [
        ("raise DataError('a.png: is cut short')", ['rank 1: a.png: is cut short'] * 2),
        ('raise KeyboardInterrupt', ['rank 1: KeyboardInterrupt']),
        ('os.kill(os.getpid(), signal.SIGKILL)', ['SIGKILL']),
    ],
)
def test_one_that_dies_ends_all_and_says_why(runs, tmp_path, act, said):
    script = tmp_path / 'stop_one.py'
    script.write_text(STOP_ONE.format(act=act))
    _, path = option_file(runs)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = run([*launch, str(script), '-opt', str(path), '--launcher', 'pytorch'])
    assert done.returncode != 0
    for text in set(said):
        assert done.stdout.count(text) >= said.count(text), done.stdout
    assert '[rank' not in done.stdout  # the traceback of a process


def test_a_number_of_processes_that_cannot_share_the_batch_is_refused_once(runs):
    _, path = option_file(runs)
    done = by_torchrun(3, path)
    assert done.returncode != 0
    assert done.stdout.count('allowed: 1, 2, 4 processes (the nearest: 2 or 4)') == 1, done.stdout


@pytest.mark.parametrize(
    ('script', 'arguments'), [('train_dist.sh', []), ('train_dist.sh', ['x', 'y.yml']), ('train_slurm.sh', [])]
)
def test_scripts_say_how_they_are_used(script, arguments):
    done = subprocess.run(
        [str(ROOT / 'scripts' / script), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and 'usage:' in done.stderr


def test_a_job_that_slurm_starts_again_goes_on(runs, tmp_path, monkeypatch):
    _, path = option_file(runs, total_iter=4)
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    done = by_slurm(1, path, tmp_path, monkeypatch)
    assert done.returncode == 0, done.stdout
    done = by_slurm(1, path, tmp_path, monkeypatch)
    assert done.returncode == 0 and 'Nothing to do' in done.stdout, done.stdout


def test_a_start_that_does_not_say_where_the_first_process_is(monkeypatch):
    for name in ('MASTER_ADDR', 'SLURM_JOB_NODELIST'):
        monkeypatch.delenv(name, raising=False)
    for nodes in (None, 'node[1-2]'):  # with the second, scontrol would be asked, and there is none
        if nodes:
            monkeypatch.setenv('SLURM_JOB_NODELIST', nodes)
            monkeypatch.setenv('PATH', '')
        with pytest.raises(LaunchError, match=r'^MASTER_ADDR is not set, and scontrol does not name the first'):
            join(Rank(0, 2), torch.device('cpu'), 'auto', 29500)


def test_a_port_that_is_taken_is_a_sentence(monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
        monkeypatch.setenv('MASTER_PORT', str(port))
        with pytest.raises(LaunchError, match=rf'do not find each other at 127\.0\.0\.1:{port} .*; allowed: '):
            join(Rank(0, 2), torch.device('cpu'), 'auto', 29500)


@pytest.mark.parametrize(('status', 'ends_with'), [(0, None), (1, 1), (130, 130), (None, 1)])
def test_one_that_stops_alone_does_not_wait_for_the_others_under_nccl(monkeypatch, capfd, status, ends_with):
    ended, destroyed = [], []
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'get_backend', lambda: 'nccl')
    monkeypatch.setattr(dist, 'destroy_process_group', lambda: destroyed.append(1))
    monkeypatch.setattr(os, '_exit', ended.append)
    try:
        if status is None:
            raise KeyError('what happened')
        leave(status)
    except KeyError:
        leave(status)
    assert ended == ([] if ends_with is None else [ends_with])
    if ends_with is None:
        assert destroyed
    assert ('what happened' in capfd.readouterr().err) == (status is None)
