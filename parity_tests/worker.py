"""python -m parity_tests.worker BACKEND IN OUT: one backend answers one case, or every case of a folder.

IN and OUT are .npz files without pickles, or folders of them: OUT/NAME.npz answers IN/NAME.npz. BACKEND is pytorch,
mxnet, jittor, or the dotted name of a module with the functions of `parity_tests.backends.pytorch`, for another
implementation. docs/parity.md describes the kinds of cases and their arrays.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import config as configuration
from common.backend import Backend
from common.datasets.loader import Loader
from common.datasets.training_sets import open_dataset
from common.evaluation.verification import verify
from common.weights.checkpoint import load_checkpoint, save_checkpoint
from parity_tests.comparison import SFACE_PARAMETERS, Arrays, read_arrays
from parity_tests.truth.sface import NORM_FLOOR

STATE = "state."


def answer(adapter: Any, case: Arrays) -> Arrays:
    """The outputs for one case.

    Raises:
        ValueError: there is no such kind of case; besides, whatever the backend raises.
    """
    kind = str(case["kind"])
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](adapter, case)


def _sface(adapter: Any, case: Arrays) -> Arrays:
    dtype = np.dtype(str(case["dtype"]))
    parameters = {name: float(case[name]) for name in SFACE_PARAMETERS}
    x, w = case["embeddings"].astype(dtype), case["class_weight"].astype(dtype)
    form = str(case["form"])
    options: dict[str, Any] = {"form": form, "block_size": int(case.get("block_size", 1024)), **parameters}
    if "reduction" in case:
        options |= {"reduction": str(case["reduction"]), "sample_weight": case["sample_weight"].astype(dtype)}
    out: Arrays = adapter.sface(x, w, case["labels"], **options)
    if form == "plain":
        unit_x, unit_w = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), NORM_FLOOR) for v in (x, w))
        theta = np.arccos(np.clip(unit_x @ unit_w.T, -1, 1)).astype(dtype)
        rows, labels = np.arange(len(x)), case["labels"]
        weights = adapter.sface_weights(theta, **parameters)
        weights["inter_weight"][rows, labels] = 0
        out |= {"intra_weight": weights["intra_weight"][rows, labels], "inter_weight": weights["inter_weight"]}
    return out


def _margin(adapter: Any, case: Arrays) -> Arrays:
    dtype = np.dtype(str(case["dtype"]))
    config = configuration.HeadConfig(
        name=str(case["head"]),  # type: ignore[arg-type]  # the backend checks it
        scale=float(case["scale"]),
        margin=float(case["margin"]) if "margin" in case else None,
    )
    x, w = case["embeddings"].astype(dtype), case["class_weight"].astype(dtype)
    out: Arrays = adapter.margin_head(config, x, w, case["labels"], step=int(case["step"]))
    return out


def _backbone(adapter: Any, case: Arrays) -> Arrays:
    dtype = np.dtype(str(case["dtype"]))
    state = {name: array.astype(dtype) for name, array in _state(case).items()}
    images, grad_output = case["images"].astype(dtype), case["grad_output"].astype(dtype)
    taps = [str(tap) for tap in case["taps"]]
    out: Arrays = adapter.backbone(str(case["backbone"]), state, images, grad_output, taps=taps)
    return out


def _train(adapter: Any, case: Arrays) -> Arrays:
    """Train from the initial weights, `state.*`, or the checkpoint folder `resume`; `save` one at the end."""
    config = configuration.from_json(json.loads(str(case["config"])))
    trainer = adapter.create_trainer(config, int(case["num_classes"]))
    start = 0
    if "resume" in case:
        saved = load_checkpoint(Path(str(case["resume"])))
        start = saved.step
        trainer.load_state(saved.arrays, start)
    elif state := _state(case):
        trainer.load_state(state, start)
    losses = []
    for images, labels, rate in zip(case["images"], case["labels"], case["learning_rates"], strict=True):
        trainer.train_step(images, labels, float(rate))
        losses.append(trainer.metrics()["loss"])
    state = trainer.state()
    if "save" in case:
        save_checkpoint(Path(str(case["save"])), start + len(losses), state, {})
    out = {f"{STATE}{name}": array for name, array in state.items()}
    out["losses"] = np.asarray(losses, np.float64)
    return out


def _data(_adapter: Any, case: Arrays) -> Arrays:
    """Batches of a data set, and verification figures, in a process with the framework loaded."""
    batch_size, seed, image_size = (int(case[name]) for name in ("batch_size", "seed", "image_size"))
    loader = Loader(open_dataset(Path(str(case["root"]))), batch_size, seed=seed, image_size=image_size)
    batches = list(loader.batches(0, int(case["steps"])))
    result = verify(case["embeddings"], case["issame"])
    return {
        "images": np.stack([batch.images for batch in batches]),
        "labels": np.stack([batch.labels for batch in batches]),
        "figures": np.array([result.accuracy, result.std, result.threshold, result.auc, *result.tar.values()]),
    }


def _describe(adapter: Any, _case: Arrays) -> Arrays:
    return {"json": np.array(json.dumps(adapter.describe()))}


KINDS: dict[str, Callable[[Any, Arrays], Arrays]] = {
    "sface": _sface,
    "margin": _margin,
    "backbone": _backbone,
    "train": _train,
    "data": _data,
    "describe": _describe,
}


def _state(case: Arrays) -> Arrays:
    return {name.removeprefix(STATE): array for name, array in case.items() if name.startswith(STATE)}


def load_adapter(backend: str) -> Any:
    """The adapter of a backend: a module."""
    if "." in backend:
        return importlib.import_module(backend)
    Backend(backend).module("runtime")  # prepares the framework, which the adapter imports
    return importlib.import_module(f"parity_tests.backends.{backend}")


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: python -m parity_tests.worker BACKEND IN OUT (.npz files, or folders of them)", file=sys.stderr)
        return 2
    backend, source, target = arguments[0], Path(arguments[1]), Path(arguments[2])
    adapter = load_adapter(backend)
    pairs = [(source, target)]
    if source.is_dir():
        target.mkdir(exist_ok=True)
        pairs = [(path, target / path.name) for path in sorted(source.glob("*.npz"))]
    for path_in, path_out in pairs:
        with tempfile.NamedTemporaryFile(dir=path_out.parent, suffix=".tmp", delete=False) as temporary:
            np.savez(temporary, **answer(adapter, read_arrays(path_in)))
        Path(temporary.name).replace(path_out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
