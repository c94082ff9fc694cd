"""The training loop of all backends: loader -> Trainer -> log, evaluation, checkpoint.

A run can be stopped at any moment, by Ctrl-C or kill -9. It goes on when the same command is started again. On a CPU it
then computes the same bits as an unbroken run.
"""

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from common import config as configuration
from common.backend import Trainer
from common.config import RunConfig
from common.datasets.loader import Batch, Loader
from common.datasets.pair_sets import find_pair_sets
from common.datasets.training_sets import Dataset
from common.evaluation.evaluate import check_images, evaluate
from common.evaluation.results import evaluation_record, save_evaluation
from common.io.files import CannotWrite, write_json
from common.io.progress import ProgressBar, say
from common.ranks import Stopped
from common.training.angles import AngleProbe
from common.training.failures import cannot_write, diverged, training, writing
from common.training.resume import Progress, find_checkpoint, set_aside
from common.training.run_folder import (
    check_data,
    check_schedule,
    compare_data_of_ranks,
    only_writer,
    refuse_another_run,
)
from common.training.run_log import NEGATIVE_LOSS, RunLog, environment
from common.training.schedule import scheduled_rate, total_steps
from common.training.start import read_start
from common.training.stopping import stop_signals
from common.weights import checkpoint


def fit(trainer: Trainer, dataset: Dataset, config: RunConfig, folder: Path) -> Progress:
    """Train to the end of the schedule, from the latest checkpoint in `folder` if there is one.

    Args:
        trainer: freshly made from `config`.
        dataset: the training set.
        config: checked; the same as at the first start (`FREE_ON_RESUME` fields may differ, the number of steps too as
            long as those that were taken are the same).
        folder: the run folder; made if it is missing.

    Raises:
        Stopped: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was saved. A second Ctrl-C raises KeyboardInterrupt at once.
        Diverged: the loss, or an array that was to be saved, is not finite; nothing was saved after the bad step.
        ValueError: the folder holds a run of another configuration, or data or a checkpoint is bad. A checkpoint is
            saved before the run stops at bad data.
        CannotWrite: a checkpoint, the log or an evaluation; checkpoints stay as they were.
        OutOfMemory: checkpoints stay as they were.
    """
    refuse_another_run(folder, config)
    run = _Run(trainer, dataset, config, folder)
    with only_writer(folder) if run.writes else nullcontext():
        # before any rank looks for checkpoints, so that all have started by then
        compare_data_of_ranks(run.data, config.data.root, run.ranks)
        run.resume()
        if run.writes:
            weights = {"weights": run.started_from} if run.started_from else {}
            write_json(folder / "config.json", configuration.to_json(config))
            write_json(folder / "environment.json", {**environment(trainer.describe()), **weights})
        with stop_signals() as stop_asked, training(folder):
            run.train(stop_asked)
    return run.progress


class _Run:
    def __init__(self, trainer: Trainer, dataset: Dataset, config: RunConfig, folder: Path) -> None:
        data, optimiser = config.data, config.optimiser
        self.trainer, self.config, self.folder = trainer, config, folder
        self.ranks, self.writes = trainer.ranks, trainer.ranks.rank == 0
        self.progress = Progress()
        self.saved_step = 0
        self.num_classes = dataset.num_classes
        self.data: dict[str, Any] = {"images": len(dataset), "fingerprint": dataset.fingerprint}
        self.started_from: dict[str, Any] | None = None  # weights in place of drawn ones
        self.loader = Loader(
            dataset,
            optimiser.batch_size,
            seed=config.seed,
            image_size=data.image_size,
            flip=data.flip,
            on_wrong_size=data.on_wrong_size,
            on_bad_image=data.on_bad_image,
            workers=data.workers,
            prefetch_mib=data.prefetch_mib,
            rank=self.ranks.rank,
            ranks=self.ranks.count,
        )
        self.total = total_steps(optimiser, self.loader.steps_per_epoch)
        scheduled_rate(0, optimiser, self.loader.steps_per_epoch)  # a bad schedule fails now
        self.pair_sets, self.missing_sets = find_pair_sets(data.root, data.evaluate_on)
        for pair_set in self.pair_sets.values() if self.writes else ():  # seconds now, or a run that fails in hours
            check_images(pair_set, image_size=data.image_size, on_wrong_size=data.on_wrong_size)
        self.angles = AngleProbe(dataset, data, config.angle_images, config.seed) if config.angle_images else None
        self.logged = Progress()  # as it was in the last line of the log
        self.skipped_before, self.skipped_here = 0, 0  # images: before this start; by this rank since then

    def resume(self) -> None:
        found = find_checkpoint(self.folder, self.config.resume_from)
        if found is None:
            self._start()
            return
        state, self.progress = found.saved.state, found.progress
        before, now = found.config.optimiser, self.config.optimiser
        check_schedule(before, now, self.progress.step, self.loader.steps_per_epoch, self.folder)
        check_data(state.get("data"), self.data, self.folder, self.config.data.root)
        self.started_from = state.get("weights")
        self.trainer.load_state(found.saved.arrays, self.progress.step)
        self.ranks.total(0)  # all have read it before anything is renamed
        if self.writes:
            for path in set_aside(found.later):
                say(f"kept aside, as the run goes on from step {self.progress.step}: {path}")
            if self.config.resume_from is not None and not found.later:
                say(f"--resume-from: not needed, the last checkpoint, step {self.progress.step}, is whole")
        self.saved_step = self.progress.step
        self.logged = dataclasses.replace(self.progress)
        self.skipped_before = self.progress.skipped

    def _start(self) -> None:
        """Before the first step: the weights that the configuration names, if it does."""
        if self.config.model.weights is not None:
            start = read_start(self.config.model.weights, self.config, self.num_classes)
            self.trainer.load_weights(start.arrays)
            self.started_from = start.record

    def train(self, stop_asked: threading.Event) -> None:
        progress = self.progress
        batches = self.loader.batches(progress.step, self.total)
        with closing(batches), self._log() as log, self._bar() as bar:
            self._announce()
            lap = time.monotonic()
            while progress.step < self.total:
                rate = self._step(batches)
                bar.update(self.config.optimiser.batch_size)
                due = self._due()
                # ranks wait for each other to agree, so several ask only where something is due
                stop = self._agree(stop_asked) if due or self.ranks.count == 1 else False
                if stop:
                    due.add("save")
                metrics = self._finite_metrics() if due else {}

                progress.seconds += time.monotonic() - lap
                if "log" in due:
                    self._write(log, bar, rate, metrics)
                if "evaluate" in due and self._evaluate(log):
                    due.add("save")
                if "save" in due:
                    self._save_if_new()
                if stop and progress.step < self.total:
                    raise Stopped(f"stopped after step {progress.step} of {self.total}; start it again to go on")
                if due - {"log"}:
                    bar.unpause()  # images/s and the time left are those of training
                lap = time.monotonic()

    def _log(self) -> AbstractContextManager[RunLog | None]:
        """The log on rank 0; None on the others."""
        return closing(RunLog(self.folder, self.progress.step)) if self.writes else nullcontext()

    def _bar(self) -> ProgressBar:
        images, taken = (steps * self.config.optimiser.batch_size for steps in (self.total, self.progress.step))
        return ProgressBar(self.config.name, "images", images, done=taken, shown=self.writes)

    def _announce(self) -> None:
        """What the user should know before the first step."""
        if not self.writes:
            return
        if self.started_from is not None and self.progress.step == 0:
            start = self.started_from
            say(f"starts from {start['path']}, step {start['step']}: its {start['taken']}")
        for missing in self.missing_sets:
            say(f"evaluation set {missing}: not found at {self.config.data.root / (missing + '.bin')}")
        if self.config.head.name == "sface":
            say(NEGATIVE_LOSS)

    def _step(self, batches: Iterator[Batch]) -> float:
        """Train one step; returns its learning rate."""
        optimiser = self.config.optimiser
        try:
            batch = next(batches)
        except (ValueError, OSError):
            if self.ranks.count == 1:  # so that no step is lost; one of several ranks cannot
                self._finite_metrics()
                self._save_if_new()
            raise
        rate = scheduled_rate(self.progress.step, optimiser, self.loader.steps_per_epoch)
        self.trainer.train_step(batch.images, batch.labels, rate)
        self.progress.step += 1
        self.skipped_here += batch.skipped
        return rate

    def _due(self) -> set[str]:
        """What follows the step that was done: "log", "evaluate" and "save"; all of them after the last step."""
        config, step = self.config, self.progress.step
        every = {"log": config.log_every, "evaluate": config.evaluate_every, "save": config.save_every}
        return {name for name, steps in every.items() if step % steps == 0 or step == self.total}

    def _agree(self, stop_asked: threading.Event) -> bool:
        """Whether any rank was asked to stop. Also adds up the skipped images of all ranks."""
        stop = self.ranks.total(stop_asked.is_set()) > 0
        self.progress.skipped = self.skipped_before + self.ranks.total(self.skipped_here)
        return stop

    def _write(self, log: RunLog | None, bar: ProgressBar, rate: float, metrics: dict[str, float]) -> None:
        """A line of the log, and the loss beside the progress bar."""
        progress = self.progress
        steps, seconds = progress.step - self.logged.step, progress.seconds - self.logged.seconds
        self.logged = dataclasses.replace(progress)
        record = {
            "kind": "train",
            "step": progress.step,
            "epoch": progress.step / self.loader.steps_per_epoch,
            "lr": rate,
            **metrics,
            "skipped": progress.skipped,
            "images_per_second": steps * self.config.optimiser.batch_size / seconds,
            "seconds": progress.seconds,
        }
        if log is not None:
            with writing(self.folder):
                log.write(record)
        bar.note(f"step {progress.step}: " + ", ".join(f"{name} {metrics[name]:.3f}" for name in ("loss", "accuracy")))

    def _finite_metrics(self) -> dict[str, float]:
        """Metrics of the last step. Called before anything is written, so that a diverged run writes nothing."""
        bad_step = self.trainer.first_bad_step()
        if bad_step is not None:
            raise diverged(f"the loss of step {bad_step} is not finite", self.folder)
        return self.trainer.metrics()

    def _evaluate(self, log: RunLog | None) -> bool:
        """Evaluate on all sets that are there, on rank 0; whether their mean accuracy is the best so far.

        If that fails, all ranks first save a checkpoint, so that no step is lost, or find that the run has diverged.
        """
        class_weight = self.trainer.prototypes() if self.angles is not None else None
        is_best, problem = False, None
        try:
            is_best = log is not None and self._evaluate_here(log, class_weight)
        except (ValueError, OSError) as error:
            problem = error
        if self.ranks.total(problem is not None):
            self._save_if_new()
        if isinstance(problem, CannotWrite):
            raise cannot_write(problem.__cause__, self.folder) from problem  # it names the checkpoint that is new
        if problem is not None:
            raise problem
        return self.ranks.total(is_best) > 0

    def _evaluate_here(self, log: RunLog, class_weight: np.ndarray | None) -> bool:
        if self.angles is not None and class_weight is not None:
            angles = self.angles.record(self.trainer.embed, class_weight, self.progress.step)
            with writing(self.folder):
                log.write(angles)
        data = self.config.data
        evaluations = [
            evaluate(self.trainer.embed, pair_set, image_size=data.image_size, on_wrong_size=data.on_wrong_size)
            for pair_set in self.pair_sets.values()
        ]
        for evaluation in evaluations:
            with writing(self.folder):
                save_evaluation(self.folder / "evaluation", evaluation, self.progress.step)
                log.write(evaluation_record(evaluation, self.progress.step))
            say(
                f"step {self.progress.step}: {evaluation.name} "
                f"{evaluation.result.accuracy:.2%} ± {evaluation.result.std:.2%}"
            )
        if not evaluations:
            return False
        accuracy = sum(evaluation.result.accuracy for evaluation in evaluations) / len(evaluations)
        if self.progress.best_accuracy is not None and accuracy <= self.progress.best_accuracy:
            return False
        self.progress.best_accuracy, self.progress.best_step = accuracy, self.progress.step
        return True

    def _save_if_new(self) -> None:
        folder, step = self.folder / "checkpoints", self.progress.step
        if step == self.saved_step:
            return
        self.saved_step = step
        arrays = self.trainer.state()
        bad = checkpoint.first_not_finite(arrays) if self.writes else None  # only rank 0 is sure to have the whole
        place = self.ranks.total(0 if bad is None else 1 + list(arrays).index(bad))
        if place:
            name = list(arrays)[place - 1]
            what = f"after step {step} {name} holds NaN or infinity, though the loss was finite"
            raise diverged(what, self.folder)
        if self.writes:
            state: dict[str, Any] = {
                "progress": dataclasses.asdict(self.progress),
                "config": configuration.to_json(self.config),
                "weights": self.started_from,
                "data": self.data,
            }
            with writing(self.folder):
                checkpoint.save_checkpoint(folder, step, arrays, state)
                checkpoint.prune(folder, self.config.keep, self.progress.best_step)
