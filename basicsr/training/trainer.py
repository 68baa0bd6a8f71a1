"""The training loop: from an option file, or the state of an earlier run, to the last checkpoint."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from basicsr.data.loader import build_dataset, training_loader, validation_sets
from basicsr.data.sampler import TrainingBatches, TrainingOrder, stages_of
from basicsr.data.types import PairedDataset
from basicsr.evaluation.evaluate import Evaluation, Restore, build_metrics, evaluate, files_of
from basicsr.models.image_clean_model import ImageCleanModel, NonFiniteError
from basicsr.options.sections import RunOptions
from basicsr.training.preflight import check_memory
from basicsr.training.run_directory import RunDirectory, read_state
from basicsr.training.run_log import RunLog, StepTimer
from basicsr.utils.checkpoint import read_checkpoint
from basicsr.utils.dist import Rank, is_communication
from basicsr.utils.errors import CheckpointError, TrainingError
from basicsr.utils.files import resolve
from basicsr.utils.logger import get_logger
from basicsr.utils.memory import is_out_of_memory
from basicsr.utils.registry import MODEL_REGISTRY
from basicsr.utils.signals import StopRequest, status_of

# Ranks agree on the step to stop after. On GPUs this waits for the device, so it is rare.
STEPS_BETWEEN_AGREEMENTS = 10


class Trainer:
    """A training run on one rank.

    Raises PreflightError if a step of the largest stage fails here, TrainingError if ranks find different states, and
    the errors of dataset, model and `build_restorer`.
    """

    def __init__(
        self, options: RunOptions, device: torch.device, rank: Rank, directory: RunDirectory, auto_resume: bool
    ) -> None:
        assert options.train is not None
        self.options, self.device, self.rank, self.directory = options, device, rank, directory
        self.logger = get_logger()
        self.total = options.train.total_iter
        self.loader_options = options.datasets['train']
        self.stages = stages_of(self.loader_options)
        self.train_set: PairedDataset = build_dataset(self.loader_options)
        self.validation_sets = validation_sets(options)
        self.metrics = build_metrics(options.val.metrics)
        self.model: ImageCleanModel = MODEL_REGISTRY.get(options.model_type)(options, device, rank)

        self.stop = StopRequest()
        self.iteration = 0  # the last completed one
        self.saved = 0  # the one of the newest state
        self.is_saving = False  # stays True if a save fails
        self.samples: int | None = None  # seen by all ranks so far; None: computed from the stages
        self.best: dict[str, Any] | None = None  # metric, value and iteration of the best validation
        self.unvalidated = False  # whether the validation after `iteration` is still to be done
        self._resume(auto_resume)
        if self.validation_sets:
            self.model.restorer()  # fail now, not at the first validation
        length, enlarge = len(self.train_set), self.loader_options.dataset_enlarge_ratio
        order = TrainingOrder(length, options.manual_seed, self.loader_options.use_shuffle, enlarge)
        ranks = (rank.index, rank.world_size, self.model.accumulate)
        self.batches = TrainingBatches(
            order, self.stages, self.iteration + 1, self.total, *ranks, first_sample=self.samples
        )
        if self.iteration < self.total:
            check_memory(self.model, self.stages, self.batches, self.train_set)
        self.log = RunLog(directory, rank, self.iteration, options.logger.use_tb_logger)

    # -------------------------------------------------------------- the loop

    def run(self) -> None:
        """Trains up to `train.total_iter`.

        Saves a state before an error or a signal ends it. Raises TrainingError; SystemExit after a signal.
        """
        self._report_batches()
        with (
            contextlib.closing(self.log),
            self.stop.deferring(),
            self._as_training_errors(),
            self._saving_first(),
        ):
            if self.unvalidated and self.validation_sets:
                self._validate()
                self._save()
            if self.iteration < self.total:
                self._train()
            elif self._latest_is_valid():
                self.logger.info('Nothing to do: all %d iterations are done.', self.total)
                return
        if self.rank.is_main:
            self.model.save_weights(self.directory.weights_file('latest'), self.iteration)
            self.logger.info('Done. The weights are in %s', self.directory.weights_file('latest'))

    def _train(self) -> None:
        model, options = self.model, self.options
        workers = self.loader_options.num_worker_per_gpu
        loader = iter(training_loader(self.train_set, self.batches, workers, self.device))
        if self.iteration == 0:
            self._measure_baseline()
        hidden = None if self.rank.is_main else True  # None: hide the bar where there is no terminal
        progress = tqdm(total=self.total, initial=self.iteration, unit='it', dynamic_ncols=True, disable=hidden)
        timer = StepTimer()
        with progress:
            for iteration in range(self.iteration + 1, self.total + 1):
                stage = self.stages.at(iteration)
                model.step(timer.micro_batches(loader, model.accumulate), iteration, stage)
                self.iteration = iteration
                progress.update()
                if self._is_due(options.logger.print_freq):
                    values = model.read_log()  # waits for the device, which is part of the steps' time
                    values['lr'] = model.learning_rate(iteration)
                    progress.set_postfix(
                        loss=f'{values["loss"]:.4f}', lr=f'{values["lr"]:.2e}', stage=stage + 1
                    )
                    self.log.steps(iteration, stage + 1, values, timer.read())
                with timer.paused():
                    if self.validation_sets and self._is_due(options.val.val_freq):
                        self._validate()
                    if self._is_due(options.logger.save_checkpoint_freq):
                        self._save()
                waits = self.rank.world_size > 1 and self.device.type == 'cuda'
                if not waits or iteration % STEPS_BETWEEN_AGREEMENTS == 0:
                    self._stop_if_asked()

    def _is_due(self, frequency: int) -> bool:
        return self.iteration % frequency == 0 or self.iteration == self.total

    def _stop_if_asked(self) -> None:
        """Raises SystemExit on all ranks if one of them has received a signal."""
        self.stop.number = max(self.rank.gather(self.stop.number))
        if self.stop.number:
            raise SystemExit(status_of(self.stop.number))

    # -------------------------------------------------------------- state

    def _resume(self, auto_resume: bool) -> None:
        state = self.directory.newest_state() if auto_resume else None
        asked = self.options.path.resume_state
        if state is None and asked:
            state = read_state(resolve(asked))
            self.directory.refuse_newer_states(state['iteration'])
        if state is None and auto_resume:
            self.directory.refuse_lost_states(min(self.options.logger.save_checkpoint_freq, self.total))
        if self.rank.is_main:
            if state is None:
                self.directory.rewind_history(-1)
            else:
                self.directory.rewind_history(state['iteration'], not state.get('unvalidated', False))
        found = self.rank.gather(state['iteration'] if state else 0)
        if len(set(found)) > 1:
            where = ', '.join(f'{iteration} on rank {rank}' for rank, iteration in enumerate(found))
            raise TrainingError(
                f'{self.directory.states}: the newest state is from iteration {where}; allowed: the same state for all '
                'ranks, on a disk that all nodes share'
            )
        if state is None:
            self.logger.info('Starting from iteration 1.')
            return
        self.model.load_state(state['model'])
        best = state['best']
        # Drop the best value if it is for another metric or its weights are not in this run.
        if best and best['metric'] == next(iter(self.metrics), None):
            self.best = best if self.directory.weights_file('best').exists() else None
        self.iteration = self.saved = state['iteration']
        self.samples = state.get('samples')
        self.unvalidated = state.get('unvalidated', False)
        before, now = json.loads(state['options']), self.options.model_dump(mode='json')
        for key in sorted({*before, *now} - {'path'}):
            if before.get(key) != now.get(key):
                self.logger.warning('The options under %r differ from those the run was saved with.', key)
        self.logger.info('Resumed after iteration %d.', self.iteration)

    def _save(self) -> None:
        """Saves a state on the main rank, and the weights if a checkpoint is due."""
        self.model.raise_if_bad()
        if self.rank.is_main:
            self.is_saving = True
            self.log.flush()
            if self._is_due(self.options.logger.save_checkpoint_freq):
                self.model.save_weights(self.directory.weights_file(self.iteration), self.iteration)
            self._save_state()
            self.directory.prune(self.iteration, self.options.logger.keep_last)
            self.is_saving = False
        self.saved = self.iteration

    def _save_state(self) -> None:
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

    @contextlib.contextmanager
    def _saving_first(self) -> Iterator[None]:
        """Saves the last complete step before an error or a signal ends the run, and logs where it resumes."""
        try:
            yield
        except (Exception, SystemExit) as error:
            # Steps after a non-finite one are invalid.
            can_save = not (self.model.is_updating or self.is_saving or isinstance(error, NonFiniteError))
            # The main rank may then wait in NCCL for this one, until it is killed.
            fails_alone = isinstance(error, Exception) and not (self.unvalidated or is_communication(error))
            if can_save and self.iteration > self.saved:
                try:
                    if self.rank.is_main:
                        self._save()
                    elif fails_alone:
                        self._save_state()
                except Exception as another:
                    self.logger.error(f'The training state cannot be saved either: {another}')
            if self.stop.number:
                self.logger.info('Stopped by %s.', signal.Signals(self.stop.number).name)
            if self.saved:
                self.logger.info(
                    'The training state of iteration %d is saved: --auto_resume resumes after it.', self.saved
                )
            else:
                self.logger.info('No training state is saved yet: --auto_resume starts from iteration 1.')
            raise

    def _latest_is_valid(self) -> bool:
        """False if a kill came between the last state and the final weights."""
        with contextlib.suppress(CheckpointError):
            return read_checkpoint(self.directory.weights_file('latest')).get('iter') == self.iteration
        return False

    # -------------------------------------------------------------- validation

    def _measure_baseline(self) -> None:
        """Measures the unrestored input."""
        for name, dataset in self.validation_sets.items():
            result = self._evaluate(
                name, _unrestored(dataset), torch.device('cpu'), title=f'{name}, not restored'
            )
            self.log.record(f'input_{name}', self.iteration, result.means)

    def _validate(self) -> None:
        """Validates on all sets and keeps the best weights. If this fails, the resumed run repeats it."""
        self.model.raise_if_bad()
        self.unvalidated = True
        restorer = self.model.restorer()
        folder = self.directory.visualization if self.options.val.save_img else None
        results = {
            name: self._evaluate(
                name,
                restorer.restore,
                self.device,
                title=name,
                folder=folder and folder / name / str(self.iteration),
            )
            for name in self.validation_sets
        }
        for name, result in results.items():  # record all sets, or none if one fails
            self.log.validation(self.iteration, name, result)
        self._keep_if_best(next(iter(results.values())))
        self.unvalidated = False

    def _evaluate(
        self, name: str, restore: Restore, device: torch.device, title: str, folder: Path | None = None
    ) -> Evaluation:
        """Logs the figures of a validation set, also those measured before an exception. Raises DataError if any image
        fails: means of the others do not compare. Raises SystemExit on all ranks after a signal; each rank finishes
        its current image first."""
        dataset, result = self.validation_sets[name], Evaluation()
        try:
            evaluate(
                restore,
                dataset,
                self.metrics,
                device=device,
                rounded=self.options.val.use_image,
                folder=folder,
                rank=self.rank,
                title=title,
                result=result,
                stops=lambda: self.stop.number > 0,
            )
        finally:
            figures = (
                ', '.join(f'{metric} {value:.4f}' for metric, value in result.means.items()) or 'no metrics'
            )
            done = len(result.images)
            part = '' if done == len(dataset) else f' ({done} of {len(dataset)} images)'
            self.logger.info(f'iter {self.iteration}, {title}: {figures}{part}')
        self._stop_if_asked()
        result.raise_if_failed()
        return result

    def _keep_if_best(self, result: Evaluation) -> None:
        """Compares the first metric."""
        name = next(iter(self.metrics), None)
        if name is None or name not in result.means:
            return
        value = result.means[name]
        if self.metrics[name].is_better(value, self.best['value'] if self.best else None):
            self.best = {'metric': name, 'value': value, 'iteration': self.iteration}
            if self.rank.is_main:
                self.model.save_weights(self.directory.weights_file('best'), self.iteration)
            self.logger.info('This is the best %s so far.', name)

    # -------------------------------------------------------------- messages

    def _report_batches(self) -> None:
        ranks, accumulate = self.rank.world_size, self.model.accumulate
        total, written_for = ranks * accumulate, max(self.options.num_gpu, 1)
        processes = f'{ranks} process{"" if ranks == 1 else "es"}'
        for number, (patch, batch) in enumerate(zip(self.stages.patches, self.stages.batches, strict=True), 1):
            self.logger.info(
                f'Stage {number}: patches of {patch}, a global batch of {batch * total} ({batch} at a time, '
                f'{accumulate} accumulated, on {processes}).'
            )
        if written_for != total:
            hint = '' if written_for % ranks else '; train.accumulate auto keeps it'
            self.logger.warning(
                f'The batch sizes were written for num_gpu {self.options.num_gpu}: the global batch is '
                f'{total}/{written_for} of the intended one{hint}.'
            )

    @contextlib.contextmanager
    def _as_training_errors(self) -> Iterator[None]:
        """Turns errors of a step or a validation that need no traceback into TrainingError."""
        try:
            yield
        except NonFiniteError as error:
            raise TrainingError(self._explain(error)) from None
        except RuntimeError as error:
            where = f'iteration {self.iteration + 1}'
            if is_out_of_memory(error):
                raise TrainingError(
                    f'{where}: {self.device} is out of memory, though there was enough at the start; if other '
                    'processes took it, --auto_resume resumes from the newest state once they end'
                ) from error
            if 'DataLoader worker' in str(error):
                raise TrainingError(
                    f'{where}: a process that loads data died, perhaps for lack of memory; a smaller '
                    'num_worker_per_gpu takes less, and --auto_resume resumes from the newest state'
                ) from error
            raise

    def _explain(self, error: NonFiniteError) -> str:
        keys = self.batches.batch(error.iteration)
        files = ', '.join(dict.fromkeys(files_of(self.train_set, key.index) for key in keys))
        saved = any(self.directory.states.glob('*.state'))
        states = (
            f'the states in {self.directory.states} are from before it' if saved else 'no state was saved yet'
        )
        return (
            f'{error} (stage {self.stages.at(error.iteration) + 1}), on patches of: {files}. '
            f'No update from this iteration on was applied; {states}.'
        )


def _unrestored(dataset: PairedDataset) -> Restore:
    """Returns the degraded image, or the left one of two views."""
    channels = getattr(dataset, 'channels', None)
    return lambda lq: lq[:, :channels]
