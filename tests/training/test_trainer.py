"""Runs in this process: what they store, what they refuse, how they end and resume."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import cv2
import kill_and_resume
import numpy as np
import pytest
import torch
import yaml
from kill_and_resume import ROOT, TOTAL, Runs, difference, results

from basicsr.losses.pixel_loss import L1Loss
from basicsr.models.image_clean_model import ImageCleanModel
from basicsr.training import trainer
from basicsr.utils.cli import run
from basicsr.utils.dist import Rank
from basicsr.utils.errors import RestoreError
from basicsr.utils.logger import get_logger


@pytest.fixture
def said(caplog):
    """Everything logged, as one text."""
    logger = get_logger()
    logger.addHandler(caplog.handler)
    yield lambda: caplog.text
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """`uninterrupted(change)`: results of a run that nothing interrupts, with the options that `change` edits."""
    made = Runs(tmp_path_factory.mktemp('uninterrupted'))

    @cache
    def result(edit=None):
        name, path = made.option_file()
        if edit:
            edit(path)
        assert train(path) == 0
        return results(name)

    yield result
    made.clean()


@pytest.fixture
def resume(monkeypatch, uninterrupted):
    """`resume(name, path, edit)`: without patches, the run resumes and ends like an uninterrupted one."""

    def resume(name, path, edit=None):
        monkeypatch.undo()
        assert train(path, '--auto_resume') == 0
        assert difference(results(name), uninterrupted(edit)) is None

    return resume


def train(option_file, *arguments):
    return run('basicsr.train', ['-opt', str(option_file), *arguments])


def run_folder(name):
    return ROOT / 'experiments' / name


def state(name, iteration):
    return torch.load(run_folder(name) / 'training_states' / f'{iteration}.state', weights_only=True)


def states(name):
    return {path.name for path in (run_folder(name) / 'training_states').iterdir()}


def content(name, but='train.log'):
    """Path → bytes of a run's files."""
    return {
        path: path.read_bytes()
        for path in run_folder(name).rglob('*')
        if path.is_file() and path.name != but and path.parent.name != 'tb_logger'
    }


def change(option_file, /, **sections):
    content = yaml.safe_load(option_file.read_text())
    for section, values in sections.items():
        content[section] = {**content.get(section, {}), **values} if isinstance(values, dict) else values
    option_file.write_text(yaml.safe_dump(content))


# -------------------------------------------------------------- what a run stores


def test_checkpoints_history_and_events_of_a_run(runs):
    name, path = runs.option_file()
    assert train(path) == 0
    found = results(name)
    assert found['files'] == ['net_g_10.pth', 'net_g_12.pth', 'net_g_best.pth', 'net_g_latest.pth']
    assert states(name) == {'10.state', '12.state'}
    logged = {entry['iter']: entry['loss'] for entry in found['history'] if entry['kind'] == 'train'}
    assert list(logged) == [3, 6, 9, 12]
    validated = {entry['iter']: entry['psnr'] for entry in found['history'] if entry['kind'] == 'val_val'}
    assert list(validated) == [5, 10, 12]
    assert found['best']['iter'] == max(validated, key=validated.get)
    assert found['best']['network_g']['dim'] == 8
    assert not any(key.startswith('loss_') for entry in found['history'] for key in entry)
    assert 'term_sums' not in found['state']

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder(name) / 'tb_logger')).Reload()
    tags = events.Tags()
    assert {'train/loss', 'train/lr', 'train/grad_norm', 'train/data_time', 'val_val/psnr'} <= {
        *tags['scalars']
    }
    assert tags['images'] == ['val_val/input_restored_truth']
    assert {event.step: event.value for event in events.Scalars('train/loss')} == pytest.approx(logged)


def test_debug_logs_every_step_and_saves_every_eight(runs):
    name, path = runs.option_file()
    assert train(path, '--debug', '--force_yml', 'logger:keep_last=null', 'train:total_iter=9') == 0
    history = [json.loads(line) for line in (run_folder(name) / 'history.jsonl').read_text().splitlines()]
    assert [entry['iter'] for entry in history if entry['kind'] == 'train'] == list(range(1, 10))
    assert [entry['iter'] for entry in history if entry['kind'] == 'val_val'] == [8, 9]
    assert states(name) == {'8.state', '9.state'}


USER_LOSS = """
from torch import nn
from basicsr.utils.registry import LOSS_REGISTRY

@LOSS_REGISTRY.register()
class BrightnessLoss(nn.Module):
    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred, target):
        return self.loss_weight * (pred.mean() - target.mean()).abs()
"""


def test_a_registered_loss_is_added_to_pixel_opt_and_logged_by_its_name(runs, tmp_path, monkeypatch):
    """One new file, and lines in the option file. With accumulation, mixup and a resume."""
    (tmp_path / 'brightness_loss.py').write_text(USER_LOSS)
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for stops in ([], [4, 7]):
        name, path = runs.option_file(
            accumulate=2, losses={'brightness': {'type': 'BrightnessLoss', 'loss_weight': 0.5}}
        )
        change(path, custom_imports=['brightness_loss'], logger={'save_checkpoint_freq': 1})
        content = yaml.safe_load(path.read_text())
        content['datasets']['train']['dataset_enlarge_ratio'] = 2
        path.write_text(yaml.safe_dump(content))
        for stop in stops:  # between two log lines
            assert train(path, '--auto_resume', '--force_yml', f'train:total_iter={stop}') == 0
        assert train(path, '--auto_resume') == 0
        found.append(results(name))
        lines = [entry for entry in found[-1]['history'] if entry['kind'] == 'train']
        for line in lines:
            assert line['loss'] == pytest.approx(line['loss_pixel_opt'] + line['loss_brightness'], rel=1e-6)
            assert line['loss_brightness'] > 0
    assert difference(*(result['weights'] for result in found)) is None
    # Stops add log lines; the means since the last one agree.
    assert found[0]['history'][-1] == found[1]['history'][-1]


def test_runs_and_results_may_be_in_other_folders(runs, tmp_path, monkeypatch, said):
    name, path = runs.option_file(total_iter=2)
    monkeypatch.chdir(tmp_path)
    assert train(path, '--experiments_dir', 'my runs') == 0
    weights = tmp_path / 'my runs' / name / 'models' / 'net_g_latest.pth'
    change(path, path={'pretrain_network_g': str(weights)})
    assert run('basicsr.test', ['-opt', str(path), '--results_dir', 'my results']) == 0
    assert (tmp_path / 'my results' / name / 'metrics.json').exists()
    assert not run_folder(name).exists() and not (ROOT / 'results' / name).exists()
    (tmp_path / 'a file').touch()
    for program, option in (('train', '--experiments_dir'), ('test', '--results_dir')):
        assert run(f'basicsr.{program}', ['-opt', str(path), option, 'a file']) == 1
        assert f'a file/{name} cannot be written: Not a directory; {option} FOLDER' in said()


def test_a_run_without_tensorboard_needs_it_switched_off(runs, monkeypatch, said):
    name, path = runs.option_file(total_iter=2)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    assert train(path) == 2
    assert 'logger.use_tb_logger: found true, but TensorBoard cannot be imported' in said()
    assert train(path, '--force_yml', 'logger:use_tb_logger=false') == 0
    assert (run_folder(name) / 'models' / 'net_g_latest.pth').exists()


# -------------------------------------------------------------- what a run refuses


def test_an_existing_run_is_left_unchanged(runs, said):
    name, path = runs.option_file()
    run_folder(name).mkdir(parents=True)
    (run_folder(name) / 'precious.txt').write_text('mine')
    assert train(path) == 1
    assert '--auto_resume' in said()
    assert [file.name for file in run_folder(name).iterdir()] == ['precious.txt']
    assert sorted(p.name for p in (ROOT / 'experiments').glob(f'{name}*')) == [name]


def test_mistakes_in_the_options_leave_no_folder(runs, said):
    name, path = runs.option_file()
    change(path, train={'total_iterr': 5}, datasets={'train': {'type': 'Dataset_PairedImage'}})
    assert train(path) == 2
    assert not run_folder(name).exists()
    assert 'total_iterr' in said() and 'dataroot_lq' in said()


def test_two_processes_do_not_train_in_one_folder(runs, said):
    name, path = runs.option_file()
    run_folder(name).mkdir(parents=True)
    hold = (
        'import fcntl, sys; f = open(sys.argv[1], "w"); fcntl.lockf(f, 2); print("locked", flush=True); input()'
    )
    arguments = [sys.executable, '-c', hold, str(run_folder(name) / '.lock')]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'locked\n'
        assert train(path, '--auto_resume') == 1
        holder.kill()
    assert 'another process' in said()


def test_half_precision_in_validation_is_refused_before_any_iteration(runs, said):
    name, path = runs.option_file()
    change(path, val={'precision': 'fp16'})
    assert train(path) == 2
    assert 'val.precision: found "fp16" on the CPU' in said()
    change(path, num_gpu=1)
    if not torch.cuda.is_available():
        assert train(path) == 1
        assert 'found fp16 on a CPU' in said() and not run_folder(name).exists()


@pytest.mark.parametrize(
    'setting',
    [
        'train:optim_g:type=Muon',
        'train:optim_g:type=Adam',
        'network_g:dim=16',
        'network_g:num_blocks=[1,1,1,2]',
    ],
)
def test_a_state_of_another_network_or_optimizer_is_refused(runs, said, setting):
    name, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    before = content(name)
    assert train(path, '--auto_resume', '--force_yml', setting, 'train:total_iter=4') == 1
    assert (
        'belongs to another network or optimizer; allowed: the network_g and optim_g.type that it was' in said()
    )
    assert content(name) == before


def test_ranks_that_find_different_states_do_not_train(runs, monkeypatch, said):
    name, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    monkeypatch.setattr(Rank, 'gather', lambda self, value: [value, 0 if value == 2 else value])
    assert train(path, '--auto_resume', '--force_yml', 'train:total_iter=4') == 1
    assert 'is from iteration 2 on rank 0, 0 on rank 1; allowed: the same state for all ranks' in said()
    assert states(name) == {'2.state'}


def test_resume_state_leaves_another_existing_run_unchanged(runs, said):
    first, path = runs.option_file(total_iter=4)
    assert train(path) == 0
    second, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    before = content(second)
    asked = run_folder(first) / 'training_states' / '4.state'
    assert train(path, '--force_yml', f'path:resume_state={asked}') == 1
    assert 'exists and is left unchanged; --auto_resume resumes it, and --force_yml name' in said()
    assert content(second) == before


def test_resume_state_is_refused_where_newer_states_exist(runs, said):
    name, path = runs.option_file(total_iter=4)
    assert train(path) == 0
    before = content(name)
    change(path, path={'resume_state': str(run_folder(name) / 'training_states' / '2.state')})
    assert train(path) == 1
    assert '4.state' in said() and '--auto_resume' in said()
    assert content(name) == before
    # With both, the newest state counts.
    assert train(path, '--auto_resume') == 0
    assert 'Resumed after iteration 4' in said()


# -------------------------------------------------------------- how a run resumes


@pytest.mark.parametrize('also', [(), ('models',), ('history.jsonl',)])
def test_a_run_whose_states_are_missing_is_not_overwritten(runs, said, also):
    name, path = runs.option_file()
    assert train(path) == 0
    for part in ('training_states', *also):
        (run_folder(name) / part).rename(runs.folder / part)
    before = content(name)
    assert train(path, '--auto_resume') == 1
    assert 'training_states has no training state, but the run has results (' in said()
    assert (f'a history up to iteration {TOTAL}' in said()) == ('history.jsonl' not in also)
    assert ('net_g_latest.pth)' in said()) == ('models' not in also)
    assert content(name) == before


def test_a_run_killed_before_its_first_save_starts_anew(runs, resume):
    def rare(path):
        change(path, logger={'save_checkpoint_freq': 6})

    name, path = runs.option_file()
    rare(path)
    killed = kill_and_resume.train(path, prepare=partial(_signals_in_step_6, signal.SIGKILL))
    assert killed.returncode == -signal.SIGKILL
    assert [file.name for file in (run_folder(name) / 'models').iterdir()] == ['net_g_best.pth']
    resume(name, path, rare)


@pytest.mark.skipif(not Path('/proc/self/mem').exists(), reason='needs a file that exists and cannot be read')
def test_an_unreadable_state_is_not_taken_for_a_damaged_one(runs, said):
    name, path = runs.option_file()
    assert train(path) == 0
    newest = run_folder(name) / 'training_states' / f'{TOTAL}.state'
    newest.rename(newest.with_suffix('.kept'))
    newest.symlink_to('/proc/self/mem')
    assert train(path, '--auto_resume') == 1
    assert f'{newest} cannot be read: Input/output error' in said() and 'damaged' not in said()


def test_resuming_does_not_need_the_pretrained_weights(runs, said):
    first, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    start = runs.folder / 'start.pth'
    start.write_bytes((run_folder(first) / 'models' / 'net_g_latest.pth').read_bytes())
    _, path = runs.option_file(total_iter=2)
    change(path, path={'pretrain_network_g': str(start)})
    assert train(path) == 0
    start.unlink()
    assert train(path, '--auto_resume', '--force_yml', 'train:total_iter=4') == 0
    assert 'Resumed after iteration 2' in said()
    assert train(path) == 2 and 'start.pth' in said()  # without a state they are


def test_the_options_of_every_start_are_kept(runs):
    name, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    for total in (4, 6):
        assert train(path, '--auto_resume', '--force_yml', f'train:total_iter={total}') == 0
    files = [run_folder(name) / f'{path.stem}{number}.yml' for number in ('', '_2', '_3')]
    assert [yaml.safe_load(file.read_text())['train']['total_iter'] for file in files] == [2, 4, 6]


def test_a_damaged_newest_state_falls_back_to_the_one_before(runs, resume, said):
    name, path = runs.option_file()
    assert train(path) == 0
    newest = run_folder(name) / 'training_states' / f'{TOTAL}.state'
    data = bytearray(newest.read_bytes())
    weight = state(name, TOTAL)['model']['net']['output.weight']
    data[data.index(bytes(weight.untyped_storage())) + 5] ^= 1  # one bit of it
    newest.write_bytes(data)
    resume(name, path)
    assert f'{newest} is damaged' in said() and f'Resumed after iteration {TOTAL - 2}' in said()


def test_a_run_whose_states_are_all_damaged_does_not_start_anew(runs, said):
    name, path = runs.option_file()
    (run_folder(name) / 'training_states').mkdir(parents=True)
    (run_folder(name) / 'training_states' / '8.state').write_bytes(b'')
    assert train(path, '--auto_resume') == 1
    assert 'every state is damaged' in said()


def test_resume_state_of_another_run(runs):
    first, path = runs.option_file()
    assert train(path) == 0
    second, path = runs.option_file()
    change(path, path={'resume_state': str(run_folder(first) / 'training_states' / f'{TOTAL - 2}.state')})
    assert train(path) == 0
    assert difference(results(second)['state'], results(first)['state']) is None


def test_current_options_of_the_optimizer_replace_those_of_the_state(runs, said):
    name, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    changed = ['train:optim_g:betas=[0.5, 0.6]', 'train:optim_g:weight_decay=0.3', 'train:total_iter=4']
    assert train(path, '--auto_resume', '--force_yml', *changed) == 0
    (group,) = state(name, 4)['model']['optimizer']['param_groups']
    assert tuple(group['betas']) == (0.5, 0.6) and group['weight_decay'] == 0.3
    assert "The options under 'train' differ from those the run was saved with." in said()


def test_missing_or_damaged_latest_weights_are_written_again(runs):
    """A kill may come between the last state and them."""
    name, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    latest = run_folder(name) / 'models' / 'net_g_latest.pth'
    expected = latest.read_bytes()
    for left in (None, b'', (run_folder(name) / 'models' / 'net_g_best.pth').read_bytes()[:99]):
        latest.unlink()
        if left is not None:
            latest.write_bytes(left)
        assert train(path, '--auto_resume') == 0
        both = (torch.load(io.BytesIO(data), weights_only=True) for data in (latest.read_bytes(), expected))
        assert difference(*both) is None


@pytest.mark.parametrize('change_of', ['metric', 'folder'])
def test_the_best_value_counts_for_its_metric_and_its_folder(runs, change_of):
    name, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    if change_of == 'metric':
        change(path, val={'metrics': {'ssim': {'type': 'calculate_ssim'}}})
        assert train(path, '--auto_resume', '--force_yml', 'train:total_iter=4') == 0
    else:
        change(path, path={'resume_state': str(run_folder(name) / 'training_states' / '2.state')})
        name = f'{name}_on'
        runs.names.append(name)
        assert train(path, '--force_yml', f'name={name}', 'train:total_iter=4') == 0
    best = torch.load(run_folder(name) / 'models' / 'net_g_best.pth', weights_only=True)
    assert best['iter'] == 4  # the first validation since
    assert state(name, 4)['best']['metric'] == ('ssim' if change_of == 'metric' else 'psnr')


def test_invalid_lines_of_the_history_are_dropped(runs):
    name, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    history = run_folder(name) / 'history.jsonl'
    lines = history.read_bytes().splitlines(keepends=True)
    history.write_bytes(b''.join([lines[0], b'\xff\xfe\n', b'{"kind": "train"}\n', b'7\n', *lines[1:]]))
    assert train(path, '--auto_resume', '--force_yml', 'train:total_iter=4') == 0
    assert history.read_bytes().splitlines(keepends=True)[: len(lines)] == lines


def test_leftovers_of_interrupted_saves_are_removed(runs):
    name, path = runs.option_file(total_iter=2)
    assert train(path) == 0
    left = run_folder(name) / '.0123456789abcdef.tmp'
    left.touch()
    assert train(path, '--auto_resume') == 0
    assert not left.exists()


# -------------------------------------------------------------- how a run ends


def rare_saves(path):
    change(path, logger={'print_freq': 100, 'save_checkpoint_freq': 3}, val={'val_freq': 11})


class _InfiniteSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float('inf')


@pytest.mark.parametrize(
    'spoil',
    [lambda loss: loss * float('nan'), lambda loss: loss + float('inf'), _InfiniteSlope.apply],
    ids=['loss is NaN', 'loss is infinite', 'gradient is infinite'],
)
def test_a_nonfinite_step_stops_the_run_and_leaves_good_states(runs, resume, monkeypatch, said, spoil):
    name, path = runs.option_file()
    rare_saves(path)
    calls, real = [], L1Loss.forward

    def forward(self, restored, gt):
        calls.append(1)
        loss = real(self, restored, gt)
        return spoil(loss) if len(calls) == 9 else loss  # the first call is the preflight's

    monkeypatch.setattr(L1Loss, 'forward', forward)
    assert train(path) == 1
    text = said()
    assert 'iteration 8 (stage 2)' in text
    named = [index for index in range(6) if f'{runs.folder}/input/{index}.png' in text]
    assert 1 <= len(named) <= 2
    assert states(name) == {'3.state', '6.state'}

    resume(name, path, rare_saves)


def early(path):
    data = yaml.safe_load(path.read_text())['datasets']['val']
    change(path, logger={'save_checkpoint_freq': 5}, val={'val_freq': 5}, datasets={'val_2': data})


def late(path):
    early(path)
    change(path, logger={'save_checkpoint_freq': TOTAL}, val={'val_freq': TOTAL})


@pytest.mark.parametrize(('edit', 'last'), [(early, 5), (late, TOTAL)])
def test_a_failed_validation_is_repeated_after_a_resume(runs, resume, monkeypatch, said, edit, last):
    evaluate = trainer.evaluate

    def fail(*arguments, title, **options):
        if title == 'val_2':
            raise RestoreError('no memory for it')
        return evaluate(*arguments, title=title, **options)

    name, path = runs.option_file()
    edit(path)
    monkeypatch.setattr(trainer, 'evaluate', fail)
    for again in ([], ['--auto_resume']):
        assert train(path, *again) == 1
        assert 'no memory for it' in said() and state(name, last)['iteration'] == last

    resume(name, path, edit)


def test_a_device_that_is_full_before_the_first_step(runs, monkeypatch, said):
    def full(*_):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')

    name, path = runs.option_file()
    monkeypatch.setattr(ImageCleanModel, '__init__', full)
    assert train(path) == 1
    assert 'cpu is out of memory before the first step' in said() and 'Traceback' not in said()
    assert not run_folder(name).exists()


def test_an_image_too_small_for_a_metric_is_named(runs, said):
    _, path = runs.option_file()
    change(path, val={'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 40}}})
    assert train(path) == 1
    assert '0.png' in said() and 'crop_border' in said() and 'Traceback' not in said()


def act_before_step(number, act, patch=setattr):
    real = ImageCleanModel.step

    def step(self, batches, iteration, stage):
        if iteration == number:
            act()
        real(self, batches, iteration, stage)

    patch(ImageCleanModel, 'step', step)


@pytest.fixture
def before_step(monkeypatch):
    """`before_step(iteration, act)`: a run in this process acts before that step."""
    return partial(act_before_step, patch=monkeypatch.setattr)


def fail_with(error):
    raise error


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (
            RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly'),
            'iteration 4: a process that loads data died',
        ),
        (
            torch.cuda.OutOfMemoryError('CUDA out of memory'),
            'iteration 4: cpu is out of memory, though there was enough',
        ),
        (ZeroDivisionError('a fault'), 'ZeroDivisionError: a fault'),
        (FileNotFoundError(2, 'No such file', 'a.png'), 'a.png: No such file'),
    ],
)
def test_errors_of_a_step_are_in_the_log_and_the_steps_before_are_saved(runs, resume, before_step, error, text):
    name, path = runs.option_file()
    before_step(4, partial(fail_with, error))
    assert train(path) == 1
    log = (run_folder(name) / 'train.log').read_text()
    assert text in log and 'The training state of iteration 3 is saved: --auto_resume resumes after it.' in log
    assert states(name) == {'2.state', '3.state'}
    resume(name, path)


def test_an_update_that_fails_halfway_is_not_saved(runs, monkeypatch):
    name, path = runs.option_file()
    monkeypatch.setattr(ImageCleanModel, '_average', lambda *_: fail_with(RuntimeError('halfway')))
    assert train(path) == 1
    assert states(name) == set()


def test_an_image_that_breaks_during_training_costs_no_step(runs, resume, before_step, said):
    name, path = runs.option_file()
    images = sorted((runs.folder / 'input').iterdir())
    intact = [image.read_bytes() for image in images]
    before_step(3, lambda: [image.write_bytes(b'') for image in images])
    assert train(path) == 1
    text = said()
    assert '.png: ' in text and 'is empty' in text and 'Traceback' not in text
    newest = max(int(file.removesuffix('.state')) for file in states(name))
    assert newest >= 3 and f'The training state of iteration {newest} is saved' in text

    for image, data in zip(images, intact, strict=True):
        image.write_bytes(data)
    resume(name, path)


def _to_the_group(number):
    """As a terminal or a batch system does."""
    processes = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    subprocess.run(['kill', f'-{number:d}', *map(str, processes)], check=True)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_a_run_after_the_current_step_and_saves_it(runs, resume, before_step, number):
    name, path = runs.option_file()
    before_step(7, partial(_to_the_group, number))
    assert train(path) == 128 + number
    assert states(name) == {'6.state', '7.state'}
    log = (run_folder(name) / 'train.log').read_text()
    assert f'Stopped by {number.name}.' in log and 'The training state of iteration 7 is saved' in log
    resume(name, path)


def change_sets(option_file, train, val, **network):
    """Keys of both sets, with the folders of the images by name."""
    content = yaml.safe_load(option_file.read_text())
    for phase, keys in (('train', train), ('val', val)):
        section = content['datasets'][phase]
        lq, gt = section.pop('dataroot_lq'), section.pop('dataroot_gt')
        folders = {'input': lq, 'target': gt}
        section.update({key: folders.get(value, value) if isinstance(value, str) else value
                        for key, value in keys.items()})  # fmt: skip
    content['network_g'].update(network)
    content['val']['save_img'] = True
    option_file.write_text(yaml.safe_dump(content))


def with_noise(option_file):
    common = {'type': 'Dataset_GaussianDenoising', 'dataroot_gt': 'target', 'in_ch': 1}
    train = {**common, 'sigma_type': 'random', 'sigma_range': [0, 50]}
    change_sets(option_file, train, {**common, 'sigma_test': 25}, inp_channels=1, out_channels=1)


def with_two_views(option_file):
    roots = {'dataroot_lqL': 'input', 'dataroot_lqR': 'target', 'dataroot_gt': 'target'}
    both = {'type': 'Dataset_DefocusDeblur_DualPixel_16bit', **roots}
    change_sets(option_file, both, both, inp_channels=6, dual_pixel_task=True)


@pytest.mark.parametrize('edit', [with_noise, with_two_views])
def test_runs_with_noise_and_with_two_views_resume_after_ten_steps(runs, resume, before_step, edit):
    name, path = runs.option_file()
    edit(path)
    before_step(11, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(path) == 143
    resume(name, path, edit)
    history = results(name)['history']
    before, *after = [entry['psnr'] for entry in history if entry['kind'] in ('input_val', 'val_val')]
    inputs = [cv2.imread(str(runs.folder / 'target' / f'{n}.png')) for n in range(6)]
    if edit is with_noise:
        images = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None] for image in inputs]
        noise = np.random.RandomState(0).normal(0, 25, images[0].shape)
        pairs = [(np.clip(np.rint(image + noise), 0, 255), image) for image in images]
    else:  # the left view
        pairs = [(cv2.imread(str(runs.folder / 'input' / f'{n}.png')), image) for n, image in enumerate(inputs)]
    squares = [np.mean((one.astype(float) - other) ** 2) for one, other in pairs]
    assert before == pytest.approx(np.mean([10 * np.log10(255**2 / square) for square in squares]), abs=1e-3)
    assert len(after) == 3 and all(map(np.isfinite, after))
    written = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in run_folder(name).rglob('val/12/*.png')]
    assert {(image.shape, image.dtype.name) for image in written} == {
        ((45, 56) if edit is with_noise else (45, 56, 3), 'uint8')
    }


@pytest.mark.parametrize('edit', [early, late])
def test_a_signal_during_validation_saves_before_it(runs, resume, monkeypatch, edit):
    name, path = runs.option_file()
    edit(path)
    evaluate = trainer.evaluate

    def interrupted(*arguments, title, **options):
        if title == 'val_2':
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, title=title, **options)

    monkeypatch.setattr(trainer, 'evaluate', interrupted)
    assert train(path) == 143
    monkeypatch.undo()
    # Next, a kill after the validation, before its state is saved.
    monkeypatch.setattr(trainer.Trainer, '_save', lambda self: fail_with(OSError('killed')))
    assert train(path, '--auto_resume') == 1
    resume(name, path, edit)


def test_a_signal_before_the_first_step_promises_no_resume(runs, monkeypatch, said):
    _, path = runs.option_file()
    monkeypatch.setattr(trainer.Trainer, '_report_batches', lambda self: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(trainer.Trainer, '_train', lambda self: pytest.fail('trained'))
    assert train(path) == 130
    assert 'resumes' not in said()


def _signals_in_step_6(*numbers):
    act_before_step(6, lambda: [os.kill(os.getpid(), number) for number in numbers])


def _signalled_twice_in_step_6():
    """As Slurm does with a process of torchrun, and `timeout` with its child."""
    act_before_step(6, lambda: subprocess.run(['/bin/sh', '-c', 'kill $PPID; sleep 0.1; kill $PPID']))


@pytest.mark.parametrize(
    ('prepare', 'status', 'newest'),
    [
        (partial(_signals_in_step_6, signal.SIGTERM, signal.SIGINT), -signal.SIGINT, '4.state'),
        (partial(_signals_in_step_6, signal.SIGINT, signal.SIGINT), -signal.SIGINT, '4.state'),
        # A terminal that closes sends it twice.
        (partial(_signals_in_step_6, signal.SIGHUP, signal.SIGHUP), 128 + signal.SIGHUP, '6.state'),
        (_signalled_twice_in_step_6, 128 + signal.SIGTERM, '6.state'),
    ],
)
def test_a_second_signal_ends_a_run_at_once_unless_it_is_of_the_same_event(runs, prepare, status, newest):
    name, path = runs.option_file()
    done = kill_and_resume.train(path, prepare=prepare)
    assert done.returncode == status and 'a second signal stops at once' in done.stdout
    assert max(states(name)) == newest


def _write_to(target):
    if target == 'a full disk':
        file = os.open('/dev/full', os.O_WRONLY)
    else:
        reading, file = os.pipe()
        os.close(reading)
    os.dup2(file, 1)
    os.dup2(file, 2)


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
@pytest.mark.parametrize('target', ['a full disk', 'a closed pipe'])
def test_a_run_without_its_console_trains_to_its_end(runs, uninterrupted, target):
    name, path = runs.option_file()
    assert kill_and_resume.train(path, prepare=partial(_write_to, target)).returncode == 1
    assert difference(results(name), uninterrupted()) is None
    log = (run_folder(name) / 'train.log').read_text()
    assert 'some output is lost, as the console cannot be written' in log and 'Traceback' not in log


def test_a_full_disk_ends_a_run_with_one_sentence_and_its_state(runs, resume, before_step, small_files, said):
    name, path = runs.option_file()
    full = small_files(30_000)
    before_step(5, full.__enter__)
    try:
        assert train(path) == 1
    finally:
        full.__exit__(None, None, None)
    assert f'{run_folder(name)}/models/net_g_' in said() and 'File too large' in said()
    assert 'Traceback' not in said() and max(states(name)) == '4.state'
    assert not [*run_folder(name).rglob('.*.tmp')]
    resume(name, path)
