"""THE training loop, the same for every backend: loader -> Trainer -> schedule, log, evaluate, checkpoint, resume.

A run can be stopped at any moment, by Ctrl-C or kill -9, and goes on when the same command is started again. What it
computes then is, to the bit on a CPU, what an unbroken run computes.
"""

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import tqdm

from common import config as configuration
from common.backend import Trainer
from common.config import RunConfig
from common.datasets.loader import Loader
from common.datasets.pair_sets import find_pair_sets
from common.datasets.training_sets import Dataset
from common.evaluation.evaluate import Evaluation, evaluate
from common.evaluation.results import evaluation_record, save_evaluation
from common.io.files import read_json, write_json
from common.ranks import Stopped
from common.training.angles import AngleProbe
from common.training.run_log import RunLog, environment
from common.training.schedule import scheduled_rate, total_steps
from common.weights import checkpoint


class NonFiniteLoss(ArithmeticError):
    """The loss became infinite or NaN. The message names the step and the last good checkpoint."""


@dataclasses.dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # spent in training steps, over all starts; evaluations and checkpoints left out
    skipped: int = 0  # images that did not decode and were replaced
    best_step: int | None = None
    best_accuracy: float | None = None


def fit(trainer: Trainer, dataset: Dataset, config: RunConfig, folder: Path) -> Progress:
    """Train to the end of the schedule, from the latest checkpoint in `folder` if there is one.

    Args:
        trainer: freshly made from `config`.
        dataset: the training set.
        config: checked; the same as at the first start (`FREE_ON_RESUME` fields may differ).
        folder: the run folder; made when missing.

    Raises:
        Stopped: Ctrl-C or SIGTERM; a checkpoint was saved. A second Ctrl-C raises KeyboardInterrupt at once.
        NonFiniteLoss: nothing was saved after the bad step.
        ValueError: the folder holds a run of another configuration, or data or a checkpoint is bad; a run that meets
            bad data saves a checkpoint first.
        OSError: something cannot be written; checkpoints stay as they were.
    """
    refuse_another_run(folder, config)
    run = _Run(trainer, dataset, config, folder)
    if run.writes:
        write_json(folder / "config.json", configuration.to_json(config))
        write_json(folder / "environment.json", environment(trainer.describe()))
    trainer.ranks.total(0)  # nobody looks for checkpoints before all are here
    run.resume()
    with _stop_signals() as stop_asked:
        run.train(stop_asked)
    return run.progress


class _Run:
    def __init__(self, trainer: Trainer, dataset: Dataset, config: RunConfig, folder: Path) -> None:
        data, optimiser = config.data, config.optimiser
        self.trainer, self.config, self.folder = trainer, config, folder
        self.ranks, self.writes = trainer.ranks, trainer.ranks.rank == 0
        self.progress = Progress()
        self.saved_step = 0
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
        self.angles = AngleProbe(dataset, data, config.angle_images, config.seed) if config.angle_images else None

    def resume(self) -> None:
        path = checkpoint.latest_checkpoint(self.folder)
        if path is None:
            return
        saved = checkpoint.load_checkpoint(path)
        try:
            self.progress = Progress(**saved.state["progress"])
        except (KeyError, TypeError):
            raise checkpoint.DamagedCheckpoint(f"{path / checkpoint.STATE}: expected progress of a run") from None
        self.trainer.load_state(saved.arrays, self.progress.step)
        self.saved_step = self.progress.step

    def train(self, stop_asked: threading.Event) -> None:
        progress, config = self.progress, self.config
        log = RunLog(self.folder, progress.step) if self.writes else None
        for missing in self.missing_sets if self.writes else ():
            tqdm.tqdm.write(f"evaluation set {missing}: not found at {config.data.root / (missing + '.bin')}")
        optimiser = config.optimiser
        bar = tqdm.tqdm(
            total=self.total * optimiser.batch_size,
            initial=progress.step * optimiser.batch_size,
            unit="images",
            desc=config.name,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=not self.writes,
        )
        batches = self.loader.batches(progress.step, self.total)
        logged_step, logged_seconds = progress.step, progress.seconds
        skipped_before, skipped_here = progress.skipped, 0
        lap = time.monotonic()
        try:
            while progress.step < self.total:
                with self._saving_first():
                    batch = next(batches)
                rate = scheduled_rate(progress.step, optimiser, self.loader.steps_per_epoch)
                self.trainer.train_step(batch.images, batch.labels, rate)
                progress.step += 1
                skipped_here += batch.skipped
                bar.update(optimiser.batch_size)

                is_last = progress.step == self.total
                log_now = is_last or progress.step % config.log_every == 0
                evaluate_now = is_last or progress.step % config.evaluate_every == 0
                save_now = is_last or progress.step % config.save_every == 0
                stop = False
                if self.ranks.count == 1 or log_now or evaluate_now or save_now:  # to agree, ranks wait for each other
                    stop = self.ranks.total(stop_asked.is_set()) > 0
                    save_now |= stop
                    progress.skipped = skipped_before + self.ranks.total(skipped_here)
                metrics = self._finite_metrics() if log_now or evaluate_now or save_now else {}

                progress.seconds += time.monotonic() - lap
                if log_now:
                    images = (progress.step - logged_step) * optimiser.batch_size
                    speed = images / (progress.seconds - logged_seconds)
                    logged_step, logged_seconds = progress.step, progress.seconds
                    record = {
                        "kind": "train",
                        "step": progress.step,
                        "epoch": progress.step / self.loader.steps_per_epoch,
                        "lr": rate,
                        **metrics,
                        "skipped": progress.skipped,
                        "images_per_second": speed,
                        "seconds": progress.seconds,
                    }
                    if log is not None:
                        log.write(record)
                    bar.set_postfix({name: f"{metrics[name]:.3f}" for name in ("loss", "accuracy")}, refresh=False)
                if evaluate_now:
                    with self._saving_first():
                        save_now |= self._evaluate(log)
                if save_now:
                    self._save_if_new()
                if stop and not is_last:
                    raise Stopped(f"stopped after step {progress.step} of {self.total}; start it again to go on")
                if evaluate_now or save_now:
                    bar.unpause()  # images/s and the time left are those of training
                lap = time.monotonic()
        finally:
            batches.close()
            bar.close()
            if log is not None:
                log.close()

    @contextmanager
    def _saving_first(self) -> Iterator[None]:
        """Bad data stops the run, but loses no step; of several ranks one alone cannot save."""
        try:
            yield
        except (ValueError, OSError):
            if self.ranks.count == 1:
                self._finite_metrics()
                self._save_if_new()
            raise

    def _finite_metrics(self) -> dict[str, float]:
        """Metrics of the last step; called before whatever writes, so that nothing is kept of a run gone bad."""
        bad_step = self.trainer.first_bad_step()
        if bad_step is not None:
            good = checkpoint.latest_checkpoint(self.folder)
            raise NonFiniteLoss(
                f"the loss of step {bad_step} is not finite; "
                + (f"the last good checkpoint is {good}" if good else "no checkpoint had been saved")
                + "; try a lower learning rate, a warm-up (--optimiser.warmup-steps) or --optimiser.clip-norm"
            )
        return self.trainer.metrics()

    def _evaluate(self, log: RunLog | None) -> bool:
        """Evaluate on all sets that are there, on rank 0; whether their mean accuracy is the best so far."""
        state = self.trainer.state() if self.angles is not None else {}
        is_best = log is not None and self._evaluate_here(log, state)
        return self.ranks.total(is_best) > 0

    def _evaluate_here(self, log: RunLog, state: dict[str, np.ndarray]) -> bool:
        if self.angles is not None:
            log.write(self.angles.record(self.trainer.embed, state["head.class_weight"], self.progress.step))
        evaluations = evaluate_sets(self.trainer, self.pair_sets, self.config)
        for evaluation in evaluations:
            save_evaluation(self.folder / "evaluation", evaluation, self.progress.step)
            log.write(evaluation_record(evaluation, self.progress.step))
            tqdm.tqdm.write(
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
        if self.writes:
            state = {"progress": dataclasses.asdict(self.progress), "config": configuration.to_json(self.config)}
            checkpoint.save_checkpoint(folder, step, arrays, state)
            checkpoint.prune(folder, self.config.keep, self.progress.best_step)


def evaluate_sets(trainer: Trainer, pair_sets: dict[str, Any], config: RunConfig) -> list[Evaluation]:
    """Evaluate on each opened set, by the protocol of `common.evaluation.verification`."""
    return [
        evaluate(
            trainer.embed,
            pair_set,
            image_size=config.data.image_size,
            on_wrong_size=config.data.on_wrong_size,
        )
        for pair_set in pair_sets.values()
    ]


def refuse_another_run(folder: Path, config: RunConfig) -> None:
    """Raise a ValueError if the run folder holds a run whose results another configuration made; says what differs."""
    path = folder / "config.json"
    if path.exists():
        before = read_json(path, "the settings of a run")
        changed = configuration.differences(before, configuration.to_json(config))
        if changed:
            raise ValueError(
                f"{folder} holds a run of another configuration ({'; '.join(changed)}); "
                "choose another folder with --out, or delete this one"
            )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second Ctrl-C does what it always does."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only it may handle signals
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.tqdm.write("stopping after this step; Ctrl-C again to stop at once, without a checkpoint")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
