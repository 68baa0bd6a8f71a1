"""Several ranks on a CPU: the same run as one, resume, failures, launchers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
import yaml
from kill_and_resume import ROOT, Runs, difference, dying_in_save, free_port, results, train, train_ranks
from kill_and_resume import run as run_program

from basicsr.models.image_clean_model import ImageCleanModel
from basicsr.training.trainer import Trainer
from basicsr.utils.cli import run
from basicsr.utils.dist import Rank, find_rank, join, leave
from basicsr.utils.errors import DataError, LaunchError

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


@pytest.fixture(scope='module', autouse=True)
def on_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHON', sys.executable)
        patch.setenv('CUDA_VISIBLE_DEVICES', '')
        patch.setenv('HIP_VISIBLE_DEVICES', '')
        yield


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands of Slurm, for one node."""
    for name, text in (('srun', FAKE_SRUN), ('scontrol', FAKE_SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv('MASTER_ADDR', raising=False)


def option_file(runs, data=None, **train):
    """8 iterations, with batches written for four devices."""
    name, path = runs.option_file(**{'accumulate': 'auto', 'total_iter': 8, **train})
    content = yaml.safe_load(path.read_text())
    content['num_gpu'] = 4
    batches = {'batch_size_per_gpu': 2, 'mini_batch_sizes': [2, 1], 'dataset_enlarge_ratio': 2}
    content['datasets']['train'] = {**(data or content['datasets']['train']), **batches}
    path.write_text(yaml.safe_dump(content))
    return name, path


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """Precision → results of one rank with four micro-batches a step."""
    made = Runs(tmp_path_factory.mktemp('alone'))

    @cache
    def result(precision):
        name, path = option_file(made, precision=precision)
        assert_complete(train(path))
        return results(name)

    yield result
    made.clean()


def assert_complete(*ranks):
    assert [done.returncode for done in ranks] == [0] * len(ranks), ranks
    said = ranks[0].stdout
    assert 'a global batch of 8 (2 at a time' in said and 'of the intended one' not in said
    assert all(done.stdout == '' for done in ranks[1:])


def assert_close(ours, theirs, loss, weights=None, after=0):
    """Each loss within `loss`, relative; weights and averaged weights within `weights`."""
    histories = [[entry for entry in each['history'] if entry['iter'] >= after] for each in (ours, theirs)]
    assert len(histories[0]) > 1
    for one, other in zip(*histories, strict=True):
        assert (one['kind'], one['iter']) == (other['kind'], other['iter'])
        value = 'loss' if 'loss' in one else 'psnr'
        assert one[value] == pytest.approx(other[value], rel=loss)
    for kind in ('params', 'params_ema') if weights else ():
        for name, tensor in theirs['weights'][kind].items():
            assert (ours['weights'][kind][name] - tensor).abs().max() <= weights, name


# -------------------------------------------------------------- the same run


@pytest.mark.parametrize(
    ('precision', 'ranks', 'loss', 'weights'),
    [
        ('fp64', 2, 1e-9, 1e-9),
        pytest.param('fp64', 4, 1e-9, 1e-9, marks=pytest.mark.slow),
        pytest.param('fp32', 2, 1e-5, None, marks=pytest.mark.slow),
    ],
)
def test_ranks_share_four_micro_batches(runs, alone, slurm, precision, ranks, loss, weights):
    """The same run as one rank that accumulates four, with mixup and averaged weights. Four start as under Slurm."""
    name, path = option_file(runs, precision=precision)
    assert_complete(*train_ranks(ranks, path, launcher='slurm' if ranks == 4 else 'pytorch'))
    assert_close(results(name), alone(precision), loss, weights)


@pytest.mark.slow
def test_several_loss_terms_on_one_and_two_ranks(runs):
    found = []
    for ranks in (1, 2):
        name, path = option_file(runs, precision='fp64', total_iter=3, losses={'squares': {'type': 'MSELoss'}})
        assert_complete(*(train_ranks(2, path) if ranks == 2 else [train(path)]))
        found.append([entry for entry in results(name)['history'] if entry['kind'] == 'train'])
    for one, two in zip(*found, strict=True):
        assert 'loss_squares' in one and one.pop('kind') == two.pop('kind')
        assert one == pytest.approx(two, rel=1e-9)


@pytest.mark.slow
def test_two_ranks_killed_and_resumed_end_with_the_same_bits(runs, tmp_path):
    """Packed data, a worker each, accumulation, averaged weights, mixup, Muon."""
    pack = tmp_path / 'pairs.pack'
    folders = ['--input_dir', str(tmp_path / 'input'), '--target_dir', str(tmp_path / 'target')]
    assert run('scripts.prepare_data', [*folders, '--output', str(pack), '--workers', '0']) == 0

    def packed():
        _, path = runs.option_file()
        section = yaml.safe_load(path.read_text())['datasets']['train']
        data = {key: value for key, value in section.items() if not key.startswith('dataroot')}
        data.update(type='Dataset_PackedImage', dataroot=str(pack))
        return option_file(runs, data, optim_g={'type': 'Muon', 'lr': 1e-3})

    complete, path = packed()
    assert_complete(*train_ranks(2, path))
    name, path = packed()
    for save in (3, 5):
        main, other = train_ranks(2, path, '--auto_resume', prepare=dying_in_save(save))
        assert main.returncode == -signal.SIGKILL and other.returncode == 1, (main, other)
    main, _ = train_ranks(2, path, '--auto_resume')
    assert main.returncode == 0 and 'Resumed after' in main.stdout, main.stdout
    assert difference(results(name), results(complete)) is None


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', ['auto', 2])
def test_resuming_with_another_number_of_ranks(runs, alone, accumulate):
    """Two ranks, then one. With `auto` the batches stay the same, and so does the run. Otherwise they become smaller,
    and the samples continue in order: none is skipped, and none comes twice."""
    name, path = option_file(runs, precision='fp64', accumulate=accumulate, total_iter=4)
    assert_complete(*train_ranks(2, path)[:1])
    done = train(path, '--auto_resume', '--force_yml', 'train:total_iter=8')
    assert done.returncode == 0 and 'Resumed after iteration 4' in done.stdout, done.stdout
    if accumulate == 'auto':
        # The end of the first run was logged and began a new mean: the means agree after the next log line.
        assert_close(results(name), alone('fp64'), 1e-9, 1e-9, after=7)
    # 4 iterations of 8 samples; then one iteration of micro-batches of 2, and 3 of 1.
    assert results(name)['samples'] == 4 * 8 + (4 if accumulate == 'auto' else 2) * (2 + 3)


# -------------------------------------------------------------- failures


def act_in_step_6(*acts):
    """From now on: each rank calls its own of `acts` in iteration 6."""
    real = ImageCleanModel.step

    def step(self, batches, iteration, stage):
        if iteration == 6:
            acts[self.rank.index]()
        real(self, batches, iteration, stage)

    ImageCleanModel.step = step


def stop_rank_one(act):
    act_in_step_6(int, act)  # int() does nothing


def stop_rank_one_validating(act):
    """From now on: rank 1 acts at the beginning of each validation."""
    real = Trainer._validate

    def validate(self):
        if self.rank.index == 1:
            act()
        real(self)

    Trainer._validate = validate


def fail():
    raise DataError('a.png: is cut short')


def fail_beside_a_main_rank_that_is_killed():
    """As with NCCL, where the main rank waits for the other until it is killed."""
    act_in_step_6(partial(kill, signal.SIGKILL), fail)


def kill(sign):
    os.kill(os.getpid(), sign)


@pytest.mark.parametrize(
    ('act', 'status', 'reason'),
    [
        (fail, 1, 'stopped, because another process failed: rank 1: a.png: is cut short'),
        pytest.param(
            partial(kill, signal.SIGKILL),
            -signal.SIGKILL,
            'another process exited without giving a reason',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_failing_rank_ends_all_and_gives_the_reason(runs, act, status, reason):
    _, path = option_file(runs)
    main, other = train_ranks(2, path, prepare=partial(stop_rank_one, act))
    assert main.returncode == 1 and reason in main.stdout, main.stdout
    assert other.returncode == status
    assert ('rank 1: a.png: is cut short' in other.stdout) == (act is fail)
    assert 'Traceback' not in main.stdout + other.stdout
    assert 'The training state of iteration 5 is saved' in main.stdout


@pytest.mark.slow
@pytest.mark.parametrize(('stop', 'iteration'), [(stop_rank_one, 6), (stop_rank_one_validating, 5)])
def test_a_signal_to_one_rank_ends_all_after_the_same_step(runs, stop, iteration):
    complete, path = option_file(runs)
    assert_complete(*train_ranks(2, path))
    name, path = option_file(runs)
    ranks = train_ranks(2, path, prepare=partial(stop, partial(kill, signal.SIGUSR1)))
    assert [done.returncode for done in ranks] == [128 + signal.SIGUSR1] * 2, ranks
    assert 'Stopped by SIGUSR1.' in ranks[0].stdout
    assert f'The training state of iteration {iteration} is saved' in ranks[0].stdout
    assert train_ranks(2, path, '--auto_resume')[0].returncode == 0
    assert difference(results(name), results(complete)) is None


@pytest.mark.slow
def test_a_rank_that_fails_alone_saves_the_state(runs):
    complete, path = option_file(runs)
    assert_complete(*train_ranks(2, path))
    name, path = option_file(runs)
    main, other = train_ranks(2, path, prepare=fail_beside_a_main_rank_that_is_killed)
    assert (main.returncode, other.returncode) == (-signal.SIGKILL, 1)
    states = (ROOT / 'experiments' / name / 'training_states').iterdir()
    assert max(int(state.stem) for state in states) == 5
    assert train_ranks(2, path, '--auto_resume')[0].returncode == 0
    assert difference(results(name), results(complete)) is None


def test_a_number_of_ranks_that_cannot_share_the_batch_is_reported_once(runs, monkeypatch, capsys):
    _, path = option_file(runs)
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    for rank, times in ((0, 1), (1, 0)):
        for name, value in (('RANK', rank), ('LOCAL_RANK', rank), ('WORLD_SIZE', 3)):
            monkeypatch.setenv(name, str(value))
        assert run('basicsr.train', ['-opt', str(path), '--launcher', 'pytorch']) == 2
        said = ''.join(capsys.readouterr())
        assert said.count('allowed: 1, 2, 4 processes (the nearest: 2 or 4)') == times


@pytest.mark.parametrize(
    ('launcher', 'names'),
    [
        ('pytorch', ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')),
        ('slurm', ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID')),
    ],
)
def test_ranks_are_read_from_the_launchers_variables(monkeypatch, launcher, names):
    for name, value in zip(names, ('3', '8', '1'), strict=True):
        monkeypatch.setenv(name, value)
    assert find_rank(launcher) == Rank(index=3, world_size=8, local_index=1)
    monkeypatch.delenv(names[1])
    with pytest.raises(LaunchError, match=f'^--launcher {launcher}: {", ".join(names)} are not set; allowed: '):
        find_rank(launcher)


def test_without_the_address_of_the_first_node(monkeypatch):
    for name in ('MASTER_ADDR', 'SLURM_JOB_NODELIST'):
        monkeypatch.delenv(name, raising=False)
    for nodes in (None, 'node[1-2]'):  # with the second, scontrol is asked, and does not exist
        if nodes:
            monkeypatch.setenv('SLURM_JOB_NODELIST', nodes)
            monkeypatch.setenv('PATH', '')
        with pytest.raises(LaunchError, match=r'^MASTER_ADDR is not set, and scontrol does not name the first'):
            join(Rank(0, 2), torch.device('cpu'), 'auto', 29500)


def test_a_port_in_use_is_refused(monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
        monkeypatch.setenv('MASTER_PORT', str(port))
        with pytest.raises(LaunchError, match=rf'do not find each other at 127\.0\.0\.1:{port} .*; allowed: '):
            join(Rank(0, 2), torch.device('cpu'), 'auto', 29500)


@pytest.mark.parametrize(
    ('status', 'error', 'ends_with', 'traceback'),
    [
        (0, None, None, False),
        (1, None, 1, False),
        (130, None, 130, False),
        (None, KeyError('what happened'), 1, True),
        (None, SystemExit(143), 143, False),
    ],
)
def test_a_rank_that_fails_alone_does_not_wait_under_nccl(
    monkeypatch, capfd, status, error, ends_with, traceback
):
    ended, destroyed = [], []
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'get_backend', lambda: 'nccl')
    monkeypatch.setattr(dist, 'destroy_process_group', lambda: destroyed.append(1))
    monkeypatch.setattr(os, '_exit', ended.append)
    try:
        if error:
            raise error
        leave(status)
    except (KeyError, SystemExit):
        leave(status)
    assert (ended, destroyed) == (([], [1]) if ends_with is None else ([ends_with], []))
    assert ('what happened' in capfd.readouterr().err) == traceback


# -------------------------------------------------------------- launchers


@pytest.mark.parametrize(
    ('script', 'arguments'), [('train_dist.sh', []), ('train_dist.sh', ['x', 'y.yml']), ('train_slurm.sh', [])]
)
def test_launch_scripts_show_their_usage(script, arguments):
    done = subprocess.run([ROOT / 'scripts' / script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'usage:' in done.stderr


@pytest.mark.slow
def test_torchrun(runs):
    name, path = option_file(runs, total_iter=2)
    done = run_program([str(ROOT / 'scripts' / 'train_dist.sh'), '2', str(path)])
    assert_complete(done)
    assert results(name)['iteration'] == 2


@pytest.mark.slow
def test_slurm_and_a_job_that_it_starts_again(runs, slurm, monkeypatch):
    name, path = option_file(runs, total_iter=2)
    monkeypatch.setenv('MASTER_PORT', free_port())
    for key, value in {'NTASKS': '2', 'JOB_NODELIST': 'node', 'SUBMIT_DIR': str(ROOT)}.items():
        monkeypatch.setenv(f'SLURM_{key}', value)
    script = [str(ROOT / 'scripts' / 'train_slurm.sh'), str(path)]
    assert_complete(run_program(script))
    assert results(name)['iteration'] == 2
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    done = run_program(script)
    assert done.returncode == 0 and 'Nothing to do' in done.stdout, done.stdout
