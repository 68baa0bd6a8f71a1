"""Whole runs, in this process: what is kept, what is refused, what a broken step does."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
import yaml
from kill_and_resume import ROOT, difference, results

from basicsr import train as entry
from basicsr.losses.pixel_loss import L1Loss
from basicsr.models.image_clean_model import ImageCleanModel
from basicsr.training import trainer
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


def run_folder(name):
    return ROOT / 'experiments' / name


def state(name, iteration):
    return torch.load(run_folder(name) / 'training_states' / f'{iteration}.state', weights_only=True)


def change(option_file, /, **sections):
    content = yaml.safe_load(option_file.read_text())
    for section, values in sections.items():
        content[section] = {**content.get(section, {}), **values} if isinstance(values, dict) else values
    option_file.write_text(yaml.safe_dump(content))


def poison(monkeypatch, bad_call, spoil):
    """Makes the loss of one step what `spoil` makes of it."""
    calls, real = [], L1Loss.forward

    def forward(self, restored, gt):
        calls.append(1)
        loss = real(self, restored, gt)
        return spoil(loss) if len(calls) == bad_call else loss

    monkeypatch.setattr(L1Loss, 'forward', forward)


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
def test_a_step_that_is_not_finite_stops_the_run_at_the_next_log(runs, monkeypatch, said, spoil):
    name, path = runs.option_file()
    change(path, logger={'print_freq': 100, 'save_checkpoint_freq': 3}, val={'val_freq': 11})
    poison(monkeypatch, 9, spoil)  # the first is the preflight's
    assert entry.main(['-opt', str(path)]) == 1
    text = said()
    assert 'iteration 8 (stage 1)' in text
    batch = {
        f'{runs.folder}/input/{index}.png' for index in range(6) if f'{runs.folder}/input/{index}.png' in text
    }
    assert 1 <= len(batch) <= 4
    assert sorted(file.name for file in (run_folder(name) / 'training_states').iterdir()) == [
        '3.state',
        '6.state',
    ]

    # What is left is good: with the cause gone, the run ends as one that was never poisoned.
    monkeypatch.undo()
    assert entry.main(['-opt', str(path), '--auto_resume']) == 0
    whole, path = runs.option_file()
    change(path, logger={'print_freq': 100, 'save_checkpoint_freq': 3}, val={'val_freq': 11})
    assert entry.main(['-opt', str(path)]) == 0
    assert difference(results(name), results(whole)) is None


def test_a_run_folder_is_not_touched_without_being_asked(runs, said):
    name, path = runs.option_file()
    run_folder(name).mkdir(parents=True)
    (run_folder(name) / 'precious.txt').write_text('mine')
    assert entry.main(['-opt', str(path)]) == 1
    assert '--auto_resume' in said()
    assert [file.name for file in run_folder(name).iterdir()] == ['precious.txt']
    assert sorted(p.name for p in (ROOT / 'experiments').glob(f'{name}*')) == [name]


def test_mistakes_in_the_options_leave_no_folder(runs, said):
    name, path = runs.option_file()
    change(path, train={'total_iterr': 5}, datasets={'train': {'type': 'Dataset_PairedImage'}})
    assert entry.main(['-opt', str(path)]) == 2
    assert not run_folder(name).exists()
    assert 'total_iterr' in said() and 'dataroot_lq' in said()


def test_two_processes_do_not_train_in_one_folder(runs, said):
    name, path = runs.option_file()
    run_folder(name).mkdir(parents=True)
    hold = (
        'import fcntl, sys; f = open(sys.argv[1], "w"); fcntl.lockf(f, 2); print("held", flush=True); input()'
    )
    arguments = [sys.executable, '-c', hold, str(run_folder(name) / '.lock')]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'held\n'
        assert entry.main(['-opt', str(path), '--auto_resume']) == 1
        holder.kill()
    assert 'another process' in said()


def test_checkpoints_kept_and_logged_values(runs):
    name, path = runs.option_file()
    assert entry.main(['-opt', str(path)]) == 0
    files = results(name)['files']
    assert files == ['net_g_18.pth', 'net_g_20.pth', 'net_g_best.pth', 'net_g_latest.pth']
    history = results(name)['history']
    assert [entry['iter'] for entry in history if entry['kind'] == 'train'] == [3, 6, 9, 12, 15, 18, 20]
    assert [entry['iter'] for entry in history if entry['kind'] == 'val_val'] == [5, 10, 15, 20]
    validated = {entry['iter']: entry['psnr'] for entry in history if entry['kind'] == 'val_val'}
    best = torch.load(run_folder(name) / 'models' / 'net_g_best.pth', weights_only=True)
    assert best['iter'] == max(validated, key=validated.get)
    assert best['network_g']['dim'] == 8

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder(name) / 'tb_logger')).Reload()
    tags = events.Tags()
    assert {'train/loss', 'train/lr', 'train/grad_norm', 'train/data_time', 'val_val/psnr'} <= set(
        tags['scalars']
    )
    assert tags['images'] == ['val_val/input_restored_truth']
    losses = {event.step: event.value for event in events.Scalars('train/loss')}
    logged = {entry['iter']: entry['loss'] for entry in history if entry['kind'] == 'train'}
    assert losses == pytest.approx(logged)


def test_a_damaged_newest_state_falls_back_and_says_so(runs, said):
    whole, path = runs.option_file()
    assert entry.main(['-opt', str(path)]) == 0

    name, path = runs.option_file()
    assert entry.main(['-opt', str(path)]) == 0
    newest = run_folder(name) / 'training_states' / '20.state'
    content = bytearray(newest.read_bytes())
    weight = state(name, 20)['model']['net']['output.weight']
    content[content.index(bytes(weight.untyped_storage())) + 5] ^= 1  # one bit of it
    newest.write_bytes(content)
    assert entry.main(['-opt', str(path), '--auto_resume']) == 0
    assert f'{newest} is damaged' in said() and 'Resumed after iteration 18' in said()
    assert difference(results(name), results(whole)) is None


def test_every_state_damaged_is_not_a_fresh_start(runs, said):
    name, path = runs.option_file()
    (run_folder(name) / 'training_states').mkdir(parents=True)
    (run_folder(name) / 'training_states' / '8.state').write_bytes(b'')
    assert entry.main(['-opt', str(path), '--auto_resume']) == 1
    assert 'every state is damaged' in said()


@pytest.mark.parametrize(
    'setting',
    [
        'train:optim_g:type=Muon',
        'train:optim_g:type=Adam',
        'network_g:dim=16',
        'network_g:num_blocks=[1,1,1,2]',
    ],
)
def test_a_state_of_another_network_or_optimiser_is_refused(runs, said, setting):
    name, path = runs.option_file(total_iter=2)
    assert entry.main(['-opt', str(path)]) == 0
    before = sorted((file, file.stat().st_mtime_ns) for file in run_folder(name).glob('*/*.*'))
    assert entry.main(['-opt', str(path), '--auto_resume', '--force_yml', setting, 'train:total_iter=4']) == 1
    assert 'is of another network or optimiser; allowed: the network_g and optim_g.type that it was' in said()
    assert [kept for kept in before if 'tb_logger' not in str(kept)] == sorted(
        (file, file.stat().st_mtime_ns)
        for file in run_folder(name).glob('*/*.*')
        if 'tb_logger' not in str(file)
    )


def test_resume_state_of_another_run(runs):
    first, path = runs.option_file()
    assert entry.main(['-opt', str(path)]) == 0
    second, path = runs.option_file()
    change(path, path={'resume_state': str(run_folder(first) / 'training_states' / '18.state')})
    assert entry.main(['-opt', str(path)]) == 0
    assert difference(results(second)['state'], results(first)['state']) is None


def test_the_options_of_the_optimiser_are_those_of_today(runs):
    name, path = runs.option_file(total_iter=2)
    assert entry.main(['-opt', str(path)]) == 0
    changed = ['train:optim_g:betas=[0.5, 0.6]', 'train:optim_g:weight_decay=0.3', 'train:total_iter=4']
    assert entry.main(['-opt', str(path), '--auto_resume', '--force_yml', *changed]) == 0
    (group,) = state(name, 4)['model']['optimizer']['param_groups']
    assert tuple(group['betas']) == (0.5, 0.6) and group['weight_decay'] == 0.3


def test_resume_state_does_not_touch_another_finished_run(runs, said):
    first, path = runs.option_file(total_iter=4)
    assert entry.main(['-opt', str(path)]) == 0
    second, path = runs.option_file(total_iter=2)
    assert entry.main(['-opt', str(path)]) == 0
    before = {file: file.read_bytes() for file in run_folder(second).rglob('*') if file.is_file()}
    asked = run_folder(first) / 'training_states' / '4.state'
    assert entry.main(['-opt', str(path), '--force_yml', f'path:resume_state={asked}']) == 1
    assert 'exists already, and is not touched; --auto_resume goes on with it, and --force_yml name' in said()
    after = {file: file.read_bytes() for file in run_folder(second).rglob('*') if file.is_file()}
    log = run_folder(second) / 'train.log'  # of this process, which is still the other run's, too
    assert {**after, log: b''} == {**before, log: b''}


def test_the_latest_weights_are_there_after_a_kill_between_them_and_the_last_state(runs):
    name, path = runs.option_file(total_iter=2)
    assert entry.main(['-opt', str(path)]) == 0
    latest = run_folder(name) / 'models' / 'net_g_latest.pth'
    whole = latest.read_bytes()
    for left in (None, b'', (run_folder(name) / 'models' / 'net_g_best.pth').read_bytes()[:99]):
        latest.unlink()
        if left is not None:
            latest.write_bytes(left)
        assert entry.main(['-opt', str(path), '--auto_resume']) == 0
        found, expected = (
            torch.load(io.BytesIO(data), weights_only=True) for data in (latest.read_bytes(), whole)
        )
        assert difference(found, expected) is None


@pytest.mark.parametrize('change_of', ['metric', 'folder'])
def test_the_best_is_of_this_metric_and_of_this_folder(runs, change_of):
    name, path = runs.option_file(total_iter=4)
    assert entry.main(['-opt', str(path)]) == 0
    if change_of == 'metric':
        change(path, val={'metrics': {'ssim': {'type': 'calculate_ssim'}}})
        assert entry.main(['-opt', str(path), '--auto_resume', '--force_yml', 'train:total_iter=6']) == 0
    else:
        change(path, path={'resume_state': str(run_folder(name) / 'training_states' / '4.state')})
        name, path = (f'{name}_on', path)
        runs.names.append(name)
        assert entry.main(['-opt', str(path), '--force_yml', f'name={name}', 'train:total_iter=6']) == 0
    best = torch.load(run_folder(name) / 'models' / 'net_g_best.pth', weights_only=True)
    assert best['iter'] == 6  # the first validation since
    assert state(name, 6)['best']['metric'] == ('ssim' if change_of == 'metric' else 'psnr')


def test_processes_that_find_different_states_do_not_train(runs, monkeypatch, said):
    name, path = runs.option_file(total_iter=2)
    assert entry.main(['-opt', str(path)]) == 0
    monkeypatch.setattr(Rank, 'gather', lambda self, value: [value, 0 if value == 2 else value])
    assert entry.main(['-opt', str(path), '--auto_resume', '--force_yml', 'train:total_iter=4']) == 1
    assert 'is found after iteration 2 on rank 0, 0 on rank 1; allowed: the same for all' in said()
    assert not (run_folder(name) / 'training_states' / '4.state').exists()


def test_half_precision_in_validation_is_refused_before_any_iteration(runs, said):
    name, path = runs.option_file()
    change(path, val={'precision': 'fp16'})
    assert entry.main(['-opt', str(path)]) == 2
    assert 'val.precision: found "fp16" on the CPU' in said()
    change(path, num_gpu=1)
    if not torch.cuda.is_available():
        assert entry.main(['-opt', str(path)]) == 1
        assert 'found fp16 on a CPU' in said() and not run_folder(name).exists()


@pytest.mark.parametrize('last', [5, 20])  # in the middle, and at the end
def test_a_validation_that_fails_loses_no_step(runs, monkeypatch, said, last):
    def two_sets(path):
        return {'val_2': yaml.safe_load(path.read_text())['datasets']['val']}

    evaluate = trainer.evaluate

    def fail(*arguments, title, **options):
        if title == 'validating on val_2':
            raise RestoreError('no memory for it')
        return evaluate(*arguments, title=title, **options)

    name, path = runs.option_file()
    change(path, logger={'save_checkpoint_freq': last}, val={'val_freq': last}, datasets=two_sets(path))
    monkeypatch.setattr(trainer, 'evaluate', fail)
    for again in ([], ['--auto_resume']):
        assert entry.main(['-opt', str(path), *again]) == 1
        assert 'no memory for it' in said() and state(name, last)['iteration'] == last

    monkeypatch.undo()
    assert entry.main(['-opt', str(path), '--auto_resume']) == 0
    whole, path = runs.option_file()
    change(path, logger={'save_checkpoint_freq': last}, val={'val_freq': last}, datasets=two_sets(path))
    assert entry.main(['-opt', str(path)]) == 0
    ours, theirs = results(name), results(whole)
    for found in (ours, theirs):
        for group in found['state']['optimizer']['param_groups']:
            del group['lr']  # of the step before; every step sets it anew
    assert difference(ours, theirs) is None


def test_a_device_that_is_full_before_the_first_step_is_a_sentence(runs, monkeypatch, said):
    def full(*_):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')

    name, path = runs.option_file()
    monkeypatch.setattr(ImageCleanModel, '__init__', full)
    assert entry.main(['-opt', str(path)]) == 1
    assert 'cpu is out of memory before the first step' in said() and 'Traceback' not in said()
    assert not run_folder(name).exists()


def test_an_image_too_small_for_a_metric_is_named(runs, said):
    _, path = runs.option_file()
    change(path, val={'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 40}}})
    assert entry.main(['-opt', str(path)]) == 1
    assert '0.png' in said() and 'crop_border' in said() and 'Traceback' not in said()


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (
            RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly'),
            'a process that loads data has died',
        ),
        (torch.cuda.OutOfMemoryError('CUDA out of memory'), 'cpu is out of memory, though there was enough'),
    ],
)
def test_what_ends_a_step_is_a_sentence(runs, monkeypatch, said, error, text):
    _, path = runs.option_file()
    real = ImageCleanModel.step

    def step(self, batches, iteration, stage):
        if iteration == 3:
            raise error
        real(self, batches, iteration, stage)

    monkeypatch.setattr(ImageCleanModel, 'step', step)
    assert entry.main(['-opt', str(path)]) == 1
    assert f'iteration 3: {text}' in said()


def test_a_history_with_broken_lines_goes_on(runs):
    name, path = runs.option_file(total_iter=4)
    assert entry.main(['-opt', str(path)]) == 0
    history = run_folder(name) / 'history.jsonl'
    lines = history.read_bytes().splitlines(keepends=True)
    history.write_bytes(b''.join([lines[0], b'\xff\xfe\n', b'{"kind": "train"}\n', b'7\n', *lines[1:]]))
    assert entry.main(['-opt', str(path), '--auto_resume', '--force_yml', 'train:total_iter=6']) == 0
    assert history.read_bytes().splitlines(keepends=True)[: len(lines)] == lines


def test_leftovers_of_saves_are_removed(runs):
    name, path = runs.option_file(total_iter=2)
    assert entry.main(['-opt', str(path)]) == 0
    left = run_folder(name) / '.0123456789abcdef.tmp'
    left.touch()
    assert entry.main(['-opt', str(path), '--auto_resume']) == 0
    assert not left.exists()


def test_resume_state_does_not_mix_with_newer_states(runs, said):
    name, path = runs.option_file()
    assert entry.main(['-opt', str(path)]) == 0
    before = {file: file.read_bytes() for file in run_folder(name).rglob('*') if file.is_file()}
    change(path, path={'resume_state': str(run_folder(name) / 'training_states' / '18.state')})
    assert entry.main(['-opt', str(path)]) == 1
    assert '20.state' in said() and '--auto_resume' in said()
    after = {file: file.read_bytes() for file in run_folder(name).rglob('*') if file.is_file()}
    assert {f: c for f, c in after.items() if f.name != 'train.log'} == {
        f: c for f, c in before.items() if f.name != 'train.log'
    }
    # With both, the run's own newest state is the one to go on with.
    assert entry.main(['-opt', str(path), '--auto_resume']) == 0
    assert 'Resumed after iteration 20' in said()


def test_debug_logs_every_step_and_saves_every_eight(runs):
    name, path = runs.option_file()
    assert (
        entry.main(['-opt', str(path), '--debug', '--force_yml', 'logger:keep_last=null', 'train:total_iter=9'])
        == 0
    )
    history = [json.loads(line) for line in (run_folder(name) / 'history.jsonl').read_text().splitlines()]
    assert [entry['iter'] for entry in history if entry['kind'] == 'train'] == list(range(1, 10))
    assert [entry['iter'] for entry in history if entry['kind'] == 'val_val'] == [8, 9]
    assert {p.name for p in (run_folder(name) / 'training_states').iterdir()} == {'8.state', '9.state'}
