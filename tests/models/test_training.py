"""Whole runs, in this process: what is kept, what is refused, what a broken step does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import yaml
from kill_and_resume import ROOT, difference, results

from basicsr import train as entry
from basicsr.losses.pixel_loss import L1Loss
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
    'setting', ['train:optim_g:type=Muon', 'network_g:dim=16', 'network_g:num_blocks=[1,1,1,2]']
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
