"""A whole training run: from an option file to the last checkpoint, from wherever the run stands."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from basicsr.data.loader import build_dataset, training_loader, validation_sets
from basicsr.data.sampler import TrainingBatches, TrainingOrder, stages_of
from basicsr.evaluation.evaluate import Evaluation, Restore, build_metrics, evaluate, files_of
from basicsr.models.image_clean_model import NonFiniteError
from basicsr.training.preflight import check_memory
from basicsr.training.run_directory import RunDirectory, read_state
from basicsr.utils.checkpoint import read_checkpoint
from basicsr.utils.dist import Process
from basicsr.utils.errors import CheckpointError, TrainingError
from basicsr.utils.files import resolve
from basicsr.utils.logger import get_logger
from basicsr.utils.memory import is_out_of_memory
from basicsr.utils.registry import MODEL_REGISTRY


class Training:
    """One process's part of a run. `run` trains up to `train.total_iter`, or raises TrainingError.

    Raises PreflightError if the largest stage cannot be trained here, TrainingError if the processes do not find the
    same state, and what `build_restorer` raises.
    """

    def __init__(
        self, options: Any, device: torch.device, process: Process, directory: RunDirectory, auto_resume: bool
    ) -> None:
        self.options, self.device, self.process, self.directory = options, device, process, directory
        self.logger = get_logger()
        self.loader_options = options.datasets['train']
        self.stages = stages_of(self.loader_options)
        self.train_set = build_dataset(self.loader_options)
        self.validation_sets = validation_sets(options)
        self.metrics = build_metrics(options.val.metrics)
        self.model = MODEL_REGISTRY.get(options.model_type)(options, device, process)
        self.best: dict[str, Any] | None = None
        self.iteration = 0  # the last one that is done
        self.unvalidated = False  # whether its validation was due, and failed
        self.samples: int | None = None  # seen until then, by all processes; None: to be computed
        self._resume(auto_resume)
        if self.validation_sets:
            self.model.restorer()  # what cannot be made is known before any iteration is lost
        order = TrainingOrder(
            len(self.train_set),
            options.manual_seed,
            self.loader_options.use_shuffle,
            self.loader_options.dataset_enlarge_ratio,
        )
        self.batches = TrainingBatches(
            order,
            self.stages,
            self.iteration + 1,
            options.train.total_iter,
            process.rank,
            process.world_size,
            self.model.accumulate,
            self.samples,
        )
        if self.iteration < options.train.total_iter:
            check_memory(self.model, self.stages, self.batches, self.train_set)
        self.tensorboard = self._open_tensorboard()

    # -------------------------------------------------------------- the state of the run

    def _resume(self, auto_resume: bool) -> None:
        state = self.directory.newest_state() if auto_resume else None
        asked = self.options.path.resume_state
        if state is None and asked:
            state = read_state(resolve(asked))
            self.directory.refuse_newer_states(state['iteration'])
        if self.process.is_main:
            self.directory.rewind_history(state['iteration'] if state else -1)
        found = self.process.gather(state['iteration'] if state else 0)
        if len(set(found)) > 1:
            where = ', '.join(f'{iteration} on rank {rank}' for rank, iteration in enumerate(found))
            raise TrainingError(
                f'{self.directory.states}: the newest state is found after iteration {where}; allowed: the same for '
                'all, as on a disk that all nodes share'
            )
        if state is None:
            self.logger.info('Starting from iteration 1.')
            return
        self.model.load_state(state['model'])
        best = state['best']
        # Of another metric the value says nothing, and of another run the weights are not here.
        if best and best['metric'] == next(iter(self.metrics), None):
            self.best = best if self.directory.weights_file('best').exists() else None
        self.iteration = state['iteration']
        self.samples = state.get('samples')
        self.unvalidated = state.get('unvalidated', False)
        self._report_changes(json.loads(state['options']))
        self.logger.info('Resumed after iteration %d.', self.iteration)

    def _report_changes(self, before: dict[str, Any]) -> None:
        now = self._plain_options()
        for key in sorted({*before, *now} - {'path'}):
            if before.get(key) != now.get(key):
                self.logger.warning('The options under %r differ from those the run was saved with.', key)

    def _plain_options(self) -> dict[str, Any]:
        return json.loads(self.options.model_dump_json())

    def _save(self) -> None:
        self.model.raise_if_bad()
        if not self.process.is_main:
            return
        if self.tensorboard:
            self.tensorboard.flush()
        self.model.save_weights(self.directory.weights_file(self.iteration), self.iteration)
        self.directory.save_state(
            self.iteration,
            {
                'iteration': self.iteration,
                'samples': self.batches.samples_before(self.iteration + 1),
                'model': self.model.state(),
                'best': self.best,
                'unvalidated': self.unvalidated,
                'options': self.options.model_dump_json(),
            },
        )
        self.directory.prune(self.iteration, self.options.logger.keep_last)

    # -------------------------------------------------------------- the loop

    def run(self) -> None:
        total = self.options.train.total_iter
        self._report_batches()
        if self.unvalidated and self.validation_sets:
            self._validate_or_save()
            self._save()
        if self.iteration >= total:
            if self.process.is_main and not self._latest_is_whole():  # a kill may have come before it
                self.model.save_weights(self.directory.weights_file('latest'), self.iteration)
            self.logger.info('Nothing to do: all %d iterations are done.', total)
            return
        loader = iter(
            training_loader(self.train_set, self.batches, self.loader_options.num_worker_per_gpu, self.device)
        )
        progress = tqdm(
            total=total,
            initial=self.iteration,
            unit='it',
            dynamic_ncols=True,
            disable=None if self.process.is_main else True,
        )
        if self.iteration == 0:
            self._measure_input()
        self.data_time, began, since = 0.0, time.perf_counter(), self.iteration
        try:
            with progress:
                for iteration in range(self.iteration + 1, total + 1):
                    self.model.step(self._micro_batches(loader), iteration, self.stages.at(iteration))
                    self.iteration = iteration
                    progress.update()
                    if self._due(self.options.logger.print_freq):
                        self.model.raise_if_bad()  # waits for the device, which is part of the steps' time
                        steps, now = iteration - since, time.perf_counter()
                        self._log(progress, (now - began) / steps, self.data_time / steps)
                        self.data_time, began, since = 0.0, time.perf_counter(), iteration
                    before = time.perf_counter()
                    if self.validation_sets and self._due(self.options.val.val_freq):
                        self._validate_or_save()
                    if self._due(self.options.logger.save_checkpoint_freq):
                        self._save()
                    began += time.perf_counter() - before
        except NonFiniteError as error:
            raise TrainingError(self._explain(error)) from None
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise TrainingError(
                    f'iteration {self.iteration + 1}: {self.device} is out of memory, though there was enough at the '
                    'beginning; where others have left it, --auto_resume goes on from the newest state'
                ) from error
            if 'DataLoader worker' in str(error):
                raise TrainingError(
                    f'iteration {self.iteration + 1}: a process that loads data has died, perhaps for want of memory; '
                    'a smaller num_worker_per_gpu takes less, and --auto_resume goes on from the newest state'
                ) from error
            raise
        finally:
            if self.tensorboard:
                self.tensorboard.close()
        if self.process.is_main:
            self.model.save_weights(self.directory.weights_file('latest'), self.iteration)
            self.logger.info('Done. The weights are in %s', self.directory.weights_file('latest'))

    def _latest_is_whole(self) -> bool:
        with contextlib.suppress(CheckpointError):
            return read_checkpoint(self.directory.weights_file('latest')).get('iter') == self.iteration
        return False

    def _micro_batches(self, loader: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Those of one step, taking the time that is spent on waiting for them."""
        for _ in range(self.model.accumulate):
            began = time.perf_counter()
            batch = next(loader)
            self.data_time += time.perf_counter() - began
            yield batch

    def _due(self, frequency: int) -> bool:
        return self.iteration % frequency == 0 or self.iteration == self.options.train.total_iter

    def _report_batches(self) -> None:
        processes = self.process.world_size
        total = processes * self.model.accumulate
        for number, (patch, batch) in enumerate(zip(self.stages.patches, self.stages.batches, strict=True), 1):
            self.logger.info(
                'Stage %d: patches of %d, a global batch of %d (%d at a time, %d accumulated, on %d %s).',
                number,
                patch,
                batch * total,
                batch,
                self.model.accumulate,
                processes,
                'process' if processes == 1 else 'processes',
            )
        written_for = max(self.options.num_gpu, 1)
        if written_for != total:
            self.logger.warning(
                'The batch sizes were written for num_gpu %d: the global batch is %s of what was meant%s.',
                self.options.num_gpu,
                f'{total}/{written_for}',
                '' if written_for % processes else '; train.accumulate auto keeps it',
            )

    def _explain(self, error: NonFiniteError) -> str:
        keys = self.batches.batch(error.iteration)
        files = ', '.join(dict.fromkeys(files_of(self.train_set, key.index) for key in keys))
        states = sorted(self.directory.states.glob('*.state'))
        left = (
            f'the states in {self.directory.states} are from before it'
            if states
            else 'no state had been saved yet'
        )
        return (
            f'{error} (stage {self.stages.at(error.iteration) + 1}), on patches of: {files}. '
            f'No update since has reached the weights; {left}.'
        )

    # -------------------------------------------------------------- what is told

    def _open_tensorboard(self) -> Any:
        if not (self.process.is_main and self.options.logger.use_tb_logger):
            return None
        from torch.utils.tensorboard import SummaryWriter

        # What was logged after the state that we resume from will be logged again.
        purge = self.iteration + 1 if self.iteration else 0
        return SummaryWriter(str(self.directory.tensorboard), purge_step=purge)

    def _record(self, kind: str, values: dict[str, float], times: dict[str, float] | None = None) -> None:
        if not self.process.is_main:
            return
        self.directory.record({'iter': self.iteration, 'kind': kind, **values, **(times or {})})
        if self.tensorboard:
            for name, value in {**values, **(times or {})}.items():
                self.tensorboard.add_scalar(f'{kind}/{name}', value, self.iteration)

    def _log(self, progress: tqdm, step_time: float, data_time: float) -> None:
        values = self.model.read_log()  # waits for the device
        values['lr'] = self.model.learning_rate(self.iteration)
        stage = self.stages.at(self.iteration) + 1
        progress.set_postfix(loss=f'{values["loss"]:.4f}', lr=f'{values["lr"]:.2e}', stage=stage)
        self.logger.info(
            'iter %d, stage %d, loss %.6f, grad norm %.4f, lr %.4e, %.3f s/step, %.1f %% of it waiting for data',
            self.iteration,
            stage,
            values['loss'],
            values['grad_norm'],
            values['lr'],
            step_time,
            100 * data_time / step_time,
        )
        self._record('train', {**values, 'stage': stage}, {'step_time': step_time, 'data_time': data_time})

    def _measure_input(self) -> None:
        """What doing nothing would reach."""
        for name in self.validation_sets:
            result = self._evaluate(
                lambda lq: lq, name, torch.device('cpu'), f'measuring {name}', 'not restored, '
            )
            self._record(f'input_{name}', result.means)

    def _validate_or_save(self) -> None:
        """What was trained is not lost with a validation that fails; a resumed run begins with that."""
        try:
            self._validate()
        except Exception:
            self.unvalidated = True
            try:
                self._save()
            except OSError as error:
                self.logger.error('What was trained cannot be saved either: %s', error)
            raise
        self.unvalidated = False

    def _validate(self) -> None:
        self.model.raise_if_bad()
        restorer = self.model.restorer()
        results: dict[str, Evaluation] = {}
        for name in self.validation_sets:
            folder = (
                self.directory.visualization / name / str(self.iteration) if self.options.val.save_img else None
            )
            results[name] = self._evaluate(
                restorer.restore, name, self.device, f'validating on {name}', folder=folder
            )
        for position, (name, result) in enumerate(results.items()):  # of all sets, or of none if one fails
            self._record(f'val_{name}', result.means)
            if self.tensorboard and result.sample:
                self.tensorboard.add_image(
                    f'val_{name}/input_restored_truth', _side_by_side(result), self.iteration, dataformats='HWC'
                )
            if position == 0:
                self._keep_if_best(result)

    def _evaluate(
        self,
        restore: Restore,
        name: str,
        device: torch.device,
        title: str,
        what: str = '',
        folder: Path | None = None,
    ) -> Evaluation:
        """Logs the figures of a validation set, also those measured before an exception. Raises DataError if any image
        was left out: means of other images do not compare."""
        dataset, result = self.validation_sets[name], Evaluation()
        try:
            evaluate(
                restore,
                dataset,
                self.metrics,
                device=device,
                rounded=self.options.val.use_image,
                folder=folder,
                process=self.process,
                title=title,
                result=result,
            )
        finally:
            done = len(result.images)
            part = '' if done == len(dataset) else f' ({done} of {len(dataset)} images)'
            self.logger.info('iter %d, %s%s: %s%s', self.iteration, what, name, _listed(result.means), part)
        result.raise_if_failed()
        return result

    def _keep_if_best(self, result: Evaluation) -> None:
        name = next(iter(self.metrics), None)
        if name not in result.means:
            return
        value = result.means[name]
        if self.metrics[name].is_better(value, self.best['value'] if self.best else None):
            self.best = {'metric': name, 'value': value, 'iteration': self.iteration}
            if self.process.is_main:
                self.model.save_weights(self.directory.weights_file('best'), self.iteration)
            self.logger.info('This is the best %s so far.', name)


def _listed(means: dict[str, float]) -> str:
    return ', '.join(f'{metric} {value:.4f}' for metric, value in means.items()) or 'no metrics'


def _side_by_side(result: Evaluation, height: int = 360) -> np.ndarray:
    assert result.sample is not None
    images = [result.sample[kind] for kind in ('lq', 'restored', 'gt') if kind in result.sample]
    return np.concatenate([image[:height] for image in images], axis=1)
