"""python -m parity_tests.worker BACKEND IN OUT: one backend answers one case, or every case of a folder.

IN and OUT are .npz files without pickles, or folders of them: OUT/NAME.npz answers IN/NAME.npz. BACKEND is pytorch,
mxnet, jittor, or the name of a module with functions of `parity_tests.backends.pytorch`, for another implementation.
docs/parity.md describes the kinds of cases and their arrays. Losses need NumPy only: a user's environment has no more.
"""

import dataclasses
import importlib
import inspect
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import config as configuration
from common.backend import BACKENDS, Backend
from parity_tests.comparison import ERROR, NOT_PROVIDED, SFACE_PARAMETERS, Arrays, as_arrays, read_arrays
from parity_tests.truth.sface import NORM_FLOOR

STATE = "state."


class NotProvided(AttributeError):
    """The backend lacks a function or an option; the message names it."""


class NotOffered(NotProvided):
    """The backend says that it lacks a device or a precision; the message is its reason."""


def answer(adapter: Any, case: Arrays) -> Arrays:
    """The outputs for one case.

    Raises:
        ValueError: there is no such kind of case; besides, whatever the backend raises.
    """
    kind = str(case["kind"])
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if "device" in case and hasattr(adapter, "use"):
        why_not = adapter.use(str(case["device"]), str(case["precision"]), kind)
        if why_not is not None:
            raise NotOffered(str(why_not))
    return KINDS[kind](adapter, case)


def _sface(adapter: Any, case: Arrays) -> Arrays:
    x, w, dtype = _vectors(case)
    options: dict[str, Any] = {"form": str(case["form"]), "block_size": int(case.get("block_size", 1024))}
    if "reduction" in case:
        options |= {"reduction": str(case["reduction"]), "sample_weight": case["sample_weight"].astype(dtype)}
    taken = _options_taken(_function(adapter, "sface"), options)
    return _call(adapter, "sface", x, w, case["labels"], **taken, **_sface_parameters(case))


def _sface_weights(adapter: Any, case: Arrays) -> Arrays:
    """r of the angles of a case: r_intra (N,), and r_inter (N, C), 0 at the targets."""
    x, w, dtype = _vectors(case)
    unit_x, unit_w = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), NORM_FLOOR) for v in (x, w))
    theta = np.arccos(np.clip(unit_x @ unit_w.T, -1, 1)).astype(dtype)
    own = np.arange(len(x)), case["labels"]
    weights = _call(adapter, "sface_weights", theta, **_sface_parameters(case))
    inter_weight = weights["inter_weight"].copy()
    inter_weight[own] = 0
    return {"intra_weight": weights["intra_weight"][own], "inter_weight": inter_weight}


def _margin(adapter: Any, case: Arrays) -> Arrays:
    config = configuration.HeadConfig(
        name=str(case["head"]),  # type: ignore[arg-type]  # the backend checks it
        scale=float(case["scale"]),
        margin=float(case["margin"]) if "margin" in case else None,
    )
    x, w, _ = _vectors(case)
    return _call(adapter, "margin_head", config, x, w, case["labels"], step=int(case["step"]))


def _backbone(adapter: Any, case: Arrays) -> Arrays:
    dtype = np.dtype(str(case["dtype"]))
    state = {name: array.astype(dtype) for name, array in _state(case).items()}
    images, grad_output = case["images"].astype(dtype), case["grad_output"].astype(dtype)
    taps = [str(tap) for tap in case["taps"]]
    return _call(adapter, "backbone", str(case["backbone"]), state, images, grad_output, taps=taps)


def _train(adapter: Any, case: Arrays) -> Arrays:
    """Train from the initial weights, `state.*`, or the checkpoint folder `resume`; `save` one at the end."""
    from common.weights.checkpoint import load_checkpoint, save_checkpoint

    config = configuration.from_json(json.loads(str(case["config"])))
    if "device" in case:
        config = dataclasses.replace(config, device=str(case["device"]), precision=str(case["precision"]))  # type: ignore[arg-type]
    trainer = _function(adapter, "create_trainer")(config, int(case["num_classes"]))
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
    from common.datasets.loader import Loader
    from common.datasets.training_sets import open_dataset
    from common.evaluation.verification import verify

    batch_size, seed, image_size = (int(case[name]) for name in ("batch_size", "seed", "image_size"))
    loader = Loader(open_dataset(Path(str(case["root"]))), batch_size, seed=seed, image_size=image_size)
    batches = list(loader.batches(0, int(case["steps"])))
    result = verify(case["embeddings"], case["issame"])
    return {
        "images": np.stack([batch.images for batch in batches]),
        "labels": np.stack([batch.labels for batch in batches]),
        "figures": np.array([result.accuracy, result.std, result.threshold, result.auc, *result.tar.values()]),
    }


def _describe(adapter: Any, case: Arrays) -> Arrays:
    facts = dict(getattr(adapter, "describe", dict)())
    if "device" in case and not hasattr(adapter, "use"):
        facts["use"] = "not provided: it chooses device and precision itself"
    return {"json": np.array(json.dumps(facts, allow_nan=False))}


KINDS: dict[str, Callable[[Any, Arrays], Arrays]] = {
    "sface": _sface,
    "sface_weights": _sface_weights,
    "margin": _margin,
    "backbone": _backbone,
    "train": _train,
    "data": _data,
    "describe": _describe,
}


def _function(adapter: Any, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] | None = getattr(adapter, name, None)
    if function is None:
        raise NotProvided(name)
    return function


def _call(adapter: Any, name: str, *arguments: Any, **options: Any) -> Arrays:
    """What a function of the adapter gives, as arrays of numbers.

    Raises:
        NotProvided: there is no such function, or it gives None, as `margin_head` may for a head that it does not have.
        TypeError: it gives something else.
    """
    found = _function(adapter, name)(*arguments, **options)
    if found is None:
        raise NotProvided(f"{name} of this")
    if not isinstance(found, Mapping):
        raise TypeError(f"{name}: expected a dict of NumPy arrays, got {type(found).__name__}")
    arrays = as_arrays(found)
    for output, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}: expected a NumPy array of real numbers as {output}, got one of {array.dtype}")
    return arrays


def _options_taken(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that mean nothing to a function with one form, which is then the plain one.

    Raises:
        NotProvided: the function does not take an option that changes what it computes.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return options
    names = {parameter.name for parameter in parameters}
    needless = {"form", "block_size"} if options["form"] == "plain" else {"block_size"}
    lacking = [name for name in options if name not in names | needless]
    if lacking:
        raise NotProvided(", ".join(lacking))
    return {name: value for name, value in options.items() if name in names}


def _sface_parameters(case: Arrays) -> dict[str, float]:
    return {name: float(case[name]) for name in SFACE_PARAMETERS}


def _vectors(case: Arrays) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Embeddings and prototypes in the dtype of the case, and the dtype."""
    dtype = np.dtype(str(case["dtype"]))
    return case["embeddings"].astype(dtype), case["class_weight"].astype(dtype), dtype


def _state(case: Arrays) -> Arrays:
    return {name.removeprefix(STATE): array for name, array in case.items() if name.startswith(STATE)}


def load_adapter(backend: str) -> Any:
    """The adapter of a backend: a module."""
    if backend not in BACKENDS:
        return importlib.import_module(backend)
    Backend(backend).module("runtime")  # prepares the framework, which the adapter imports
    return importlib.import_module(f"{__package__}.backends.{backend}")


def answer_or_reason(adapter: Any, case: Arrays, *, may_lack: bool) -> Arrays:
    """The outputs for one case, or why there are none: `error`, or `not_provided` if the backend may lack functions."""
    try:
        return answer(adapter, case)
    except Exception as error:
        if isinstance(error, NotOffered) or (isinstance(error, NotProvided) and may_lack):
            return {NOT_PROVIDED: np.array(str(error))}
        traceback.print_exc()
        lines = [f"{type(error).__name__}: {error}", *traceback.format_exception(error)]
        return {ERROR: np.array("\n".join(line.rstrip() for line in lines))}


def main(arguments: list[str]) -> int:
    """Answer all cases; status 1 if one of them has an error."""
    if len(arguments) != 3:
        print("usage: python -m parity_tests.worker BACKEND IN OUT (.npz files, or folders of them)", file=sys.stderr)
        return 2
    backend, source, target = arguments[0], Path(arguments[1]), Path(arguments[2])
    adapter = load_adapter(backend)
    pairs = [(source, target)]
    if source.is_dir():
        target.mkdir(exist_ok=True)
        pairs = [(path, target / path.name) for path in sorted(source.glob("*.npz"))]
    status = 0
    for path_in, path_out in pairs:
        found = answer_or_reason(adapter, read_arrays(path_in), may_lack=backend not in BACKENDS)
        status = 1 if ERROR in found else status
        with tempfile.NamedTemporaryFile(dir=path_out.parent, suffix=".tmp", delete=False) as temporary:
            np.savez(temporary, **found)
        Path(temporary.name).replace(path_out)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
