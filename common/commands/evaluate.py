"""`evaluate`: verification figures of a network or of embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from common.backend import Backend
from common.config import OnWrongSize
from common.datasets.pair_sets import find_pair_sets
from common.evaluation.embedding import Embed
from common.evaluation.evaluate import PROTOCOL, PROTOCOL_AS_GIVEN, Evaluation, evaluate, evaluate_embeddings
from common.evaluation.onnx_model import AS_IT_IS, OnnxInput
from common.evaluation.results import figure_table, save_evaluation, threshold_table
from common.evaluation.source import Source, open_source
from common.io.text import did_you_mean, text_table
from common.recipes import PUBLISHED_SETS


@dataclass(frozen=True)
class Options:
    """Evaluate a network or embeddings on verification sets."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), a checkpoint folder, MODEL.onnx, or EMBEDDINGS.npz."""
    sets: tuple[str, ...] | None = None
    """Names of the sets. Default: those of the run, or the seven published ones; for an .npz, the name of the file."""
    root: Path | None = None
    """Folder of the sets (NAME.bin). Default: that of the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int = 64
    """Images at a time."""
    on_wrong_size: OnWrongSize | None = None
    """What to do with an image whose size is not that of the network's input. Default: as in the run, or fail."""
    out: Path | None = None
    """Also write the figures to this folder: NAME.json and NAME.npz for each set."""
    onnx: tyro.conf.OmitArgPrefixes[OnnxInput] = AS_IT_IS


def run(backend: Backend, arguments: list[str]) -> int:
    """Evaluate with options from the command line; status 1 if a set is missing."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} evaluate", args=arguments)
    return 0 if evaluate_source(backend, options) else 1


def evaluate_source(backend: Backend, options: Options) -> bool:
    """Evaluate a source and print the figures; whether every set was there."""
    source = open_source(options.source, backend, options.device, options.onnx)
    root = options.root or source.root
    protocol = PROTOCOL
    if source.embed is not None:
        evaluations = _evaluate_network(source, source.embed, root, options)
    else:
        evaluations = _evaluate_arrays(source.arrays, options)
        if "mirrored" not in source.arrays:
            protocol = PROTOCOL_AS_GIVEN
    print(f"{source.lines}\n\n{text_table(*figure_table(evaluations.items()))}\n")
    if done := [(name, one) for name, one in evaluations.items() if one is not None]:
        print(text_table(*threshold_table(done)) + "\n")
    print(f"protocol: {protocol}")
    print("accuracy and TAR: mean ± population std over the folds; AUC and EER: over all pairs")
    print("threshold: one person below the squared distance, or above the cosine; OpenCV's match adds no mirror image")
    for name, evaluation in evaluations.items():
        if evaluation is None:
            there = [] if root is None or name in PUBLISHED_SETS else [path.stem for path in root.glob("*.bin")]
            print(f"{name}: missing, expected {root}/{name}.bin{did_you_mean(name, there)}")
        elif options.out is not None:
            save_evaluation(options.out, evaluation, source.step, protocol=protocol)
    return None not in evaluations.values()


def _evaluate_network(
    source: Source, embed: Embed, root: Path | None, options: Options
) -> dict[str, Evaluation | None]:
    """Evaluations by name of the set; None for a set that is missing."""
    if root is None:
        raise ValueError("--root: expected the folder of the evaluation sets, as nothing else says where they are")
    names = (source.sets or PUBLISHED_SETS) if options.sets is None else options.sets
    evaluations: dict[str, Evaluation | None] = dict.fromkeys(names)
    for name, pair_set in find_pair_sets(root, names)[0].items():
        evaluations[name] = evaluate(
            embed,
            pair_set,
            image_size=source.image_size,
            batch_size=options.batch_size,
            on_wrong_size=options.on_wrong_size or source.on_wrong_size,
        )
    return evaluations


def _evaluate_arrays(arrays: Mapping[str, np.ndarray], options: Options) -> dict[str, Evaluation | None]:
    """As `_evaluate_network`; `issame` comes from the arrays, or from the set whose images were embedded."""
    path = options.source
    names = (path.stem,) if options.sets is None else options.sets
    if len(names) != 1:
        raise ValueError(f"--sets: expected the one set that {path} was made from, got {len(names)} names")
    if "embeddings" not in arrays:
        raise ValueError(f"{path}: expected an array embeddings (2P, D), found {', '.join(arrays) or 'nothing'}")
    embeddings, name = arrays["embeddings"], names[0]
    if "issame" in arrays:
        issame = _checked_issame(path, arrays["issame"])
    elif options.root is None:
        raise ValueError(f"{path}: expected an array issame in it, or --root with the folder of {name}.bin")
    else:
        pair_sets, missing = find_pair_sets(options.root, names)
        if missing:
            return {name: None}
        issame = pair_sets[name].issame
    if embeddings.ndim != 2 or len(embeddings) != 2 * len(issame):
        raise ValueError(
            f"{path}: expected embeddings (2P, D) of the P = {len(issame)} pairs of {name}, got {embeddings.shape}"
        )
    try:
        return {name: evaluate_embeddings(name, embeddings, arrays.get("mirrored"), issame)}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked_issame(path: Path, issame: np.ndarray) -> np.ndarray:
    if issame.ndim != 1 or issame.dtype.kind not in "biu" or not np.isin(issame, (0, 1)).all():
        raise ValueError(f"{path}: expected issame (P,) of true and false, got {issame.dtype} {issame.shape}")
    return issame.astype(bool)
