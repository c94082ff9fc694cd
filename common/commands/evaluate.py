"""What `evaluate` and `embed` do with an opened source, for any backend."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import tyro
from tqdm import tqdm

from common.config import OnWrongSize
from common.datasets.images import BadImage, decode_image
from common.datasets.pair_sets import find_pair_sets
from common.datasets.training_sets import image_files
from common.evaluation.evaluate import PROTOCOL, PROTOCOL_AS_GIVEN, Evaluation, embedded, evaluate_embeddings
from common.evaluation.evaluate import evaluate as evaluate_pairs
from common.evaluation.results import save_evaluation
from common.evaluation.source import Source, open_source
from common.io.files import atomic_write
from common.io.text import NOTHING, fixed, percent, text_table
from common.recipes import PUBLISHED_SETS

if TYPE_CHECKING:
    from common.backend import Backend


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a network or embeddings on verification sets."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), a checkpoint folder, MODEL.onnx, or EMBEDDINGS.npz."""
    sets: tuple[str, ...] | None = None
    """Names of the sets; none: those of the run, else the seven published ones; for an .npz, the name of the file."""
    root: Path | None = None
    """Folder of the sets (NAME.bin); none: that of the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int = 64
    """Images at a time."""
    on_wrong_size: OnWrongSize | None = None
    """What to do with an image of another size than the network's input; none: what the run does, else fail."""
    out: Path | None = None
    """Also write the figures to this folder, a JSON and an .npz file a set."""


@dataclass(frozen=True)
class EmbedOptions:
    """Write the embeddings of all images in a folder and the folders in it, in the order of their names."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), a checkpoint folder, or MODEL.onnx."""
    folder: tyro.conf.Positional[Path]
    """Folder of images; aligned ones, for a network that was trained on such."""
    out: Path
    """The .npz file to write: names (N,), embeddings (N, D) float32, raw, and with --mirror mirrored (N, D)."""
    mirror: bool = False
    """Also embed the mirror images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int = 64
    """Images at a time."""
    on_wrong_size: OnWrongSize | None = None
    """What to do with an image of another size than the network's input; none: what the run does, else fail."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with an image that does not decode: stop, or name it and leave it out."""


def evaluate(backend: "Backend", arguments: list[str]) -> bool:
    """`evaluate_source` with options from the command line."""
    return evaluate_source(
        backend, tyro.cli(EvaluateOptions, prog=f"python -m {backend.package} evaluate", args=arguments)
    )


def evaluate_source(backend: "Backend", options: EvaluateOptions) -> bool:
    """Evaluate a source and print the figures; whether every set was there."""
    source = open_source(options.source, backend, options.device)
    if source.embed is None:
        evaluations, missing, protocol = _evaluate_arrays(source, options)
    else:
        evaluations, missing = _evaluate_network(source, options)
        protocol = PROTOCOL
    print(f"{source.description}\n\n{_table(evaluations)}\n\nprotocol: {protocol}")
    print("accuracy and TAR: mean ± population std over the folds; AUC and EER: over all pairs")
    for name, path in missing.items():
        print(f"{name}: missing, expected {path}")
    for evaluation in evaluations.values():
        if evaluation is not None and options.out is not None:
            save_evaluation(options.out, evaluation, source.step, protocol=protocol)
    return not missing


def embed(backend: "Backend", arguments: list[str]) -> None:
    """Embed a folder of images and write the .npz file."""
    options = tyro.cli(EmbedOptions, prog=f"python -m {backend.package} embed", args=arguments)
    if options.out.suffix.lower() != ".npz":
        raise ValueError(f"--out: expected a file NAME.npz, got {options.out}")
    if options.out.exists():
        raise FileExistsError(f"{options.out}: is there already; delete it, or choose another name")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {options.batch_size}")
    paths = image_files(options.folder)
    source = open_source(options.source, backend, options.device)
    names, embeddings, mirrored = _embed_all(source, options, paths)
    with atomic_write(options.out) as file:
        np.savez(file, names=names, embeddings=embeddings, **({} if mirrored is None else {"mirrored": mirrored}))
    print(
        f"{source.description}\n{len(names)} images, {len(paths) - len(names)} skipped, "
        f"{embeddings.shape[1]} numbers each: {options.out}"
    )


def _evaluate_network(source: Source, options: EvaluateOptions) -> tuple[dict[str, Evaluation | None], dict[str, Path]]:
    """Evaluations by name of the set, None for one that is missing; and where each missing one was looked for."""
    assert source.embed is not None
    assert source.image_size is not None
    root = options.root or source.root
    if root is None:
        raise ValueError("--root: expected the folder of the evaluation sets, as nothing else says where they are")
    names = (source.sets or PUBLISHED_SETS) if options.sets is None else options.sets
    pair_sets, missing = find_pair_sets(root, names)
    evaluations: dict[str, Evaluation | None] = dict.fromkeys(names)
    for name, pair_set in pair_sets.items():
        evaluations[name] = evaluate_pairs(
            source.embed,
            pair_set,
            image_size=source.image_size,
            batch_size=options.batch_size,
            on_wrong_size=options.on_wrong_size or source.on_wrong_size,
        )
    return evaluations, {name: root / f"{name}.bin" for name in missing}


def _evaluate_arrays(
    source: Source, options: EvaluateOptions
) -> tuple[dict[str, Evaluation | None], dict[str, Path], str]:
    """As `_evaluate_network`, and the protocol; `issame` is in the file, or in the set that it was made from."""
    names = (options.source.stem,) if options.sets is None else options.sets
    if len(names) != 1:
        raise ValueError(f"--sets: expected the one set that {options.source} was made from, got {len(names)} names")
    if "embeddings" not in source.arrays:
        found = ", ".join(source.arrays) or "nothing"
        raise ValueError(f"{options.source}: expected an array embeddings (2P, D), found {found}")
    embeddings, mirrored = source.arrays["embeddings"], source.arrays.get("mirrored")
    protocol = PROTOCOL_AS_GIVEN if mirrored is None else PROTOCOL
    name = names[0]
    if "issame" in source.arrays:
        issame = _checked_issame(options.source, source.arrays["issame"])
    elif options.root is None:
        raise ValueError(f"{options.source}: expected an array issame in it, or --root with the folder of {name}.bin")
    else:
        pair_sets, missing = find_pair_sets(options.root, names)
        if missing:
            return {name: None}, {name: options.root / f"{name}.bin"}, protocol
        issame = pair_sets[name].issame
    if embeddings.ndim != 2 or len(embeddings) != 2 * len(issame):
        raise ValueError(
            f"{options.source}: expected embeddings (2P, D) of the P = {len(issame)} pairs of {name}, "
            f"got {embeddings.shape}"
        )
    try:
        return {name: evaluate_embeddings(name, embeddings, mirrored, issame)}, {}, protocol
    except ValueError as error:
        raise ValueError(f"{options.source}: {error}") from None


def _checked_issame(path: Path, issame: np.ndarray) -> np.ndarray:
    if issame.ndim != 1 or issame.dtype.kind not in "biu" or not np.isin(issame, (0, 1)).all():
        raise ValueError(f"{path}: expected issame (P,) of true and false, got {issame.dtype} {issame.shape}")
    return issame.astype(bool)


def _table(evaluations: dict[str, Evaluation | None]) -> str:
    fars = sorted({far for one in evaluations.values() if one for far in one.result.tar}, reverse=True)
    head = ["set", "pairs", "folds", "accuracy ± std", *(f"TAR@FAR={far:g}" for far in fars), "AUC", "EER", "xnorm"]
    rows = []
    for name, one in evaluations.items():
        if one is None:
            rows.append([name, "missing", *[NOTHING] * (len(head) - 2)])
            continue
        result = one.result
        rows.append(
            [
                name,
                f"{len(result.issame):,}",
                str(len(result.fold_accuracies)),
                _with_std(result.accuracy, result.std),
                *(_with_std(result.tar[far], result.tar_std[far]) for far in fars),
                fixed(result.auc, 4),
                percent(result.eer),
                f"{one.xnorm:.4g}",
            ]
        )
    return text_table(head, rows)


def _with_std(rate: float, std: float) -> str:
    return f"{100 * rate:.2f} ± {100 * std:.2f} %" if math.isfinite(rate) else NOTHING


def _embed_all(
    source: Source, options: EmbedOptions, paths: Sequence[Path]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Names (N,), embeddings (N, D) and, if asked for, those of the mirror images, of all images that decode."""
    if source.embed is None or source.image_size is None:
        raise ValueError(f"{options.source}: expected a network, got embeddings")
    names: list[str] = []
    plain: list[np.ndarray] = []
    mirrored: list[np.ndarray] = []
    on_wrong_size = options.on_wrong_size or source.on_wrong_size
    with tqdm(total=len(paths), desc="embed", unit="images", disable=None) as bar:
        for batch in _decoded(options.folder, paths, options.batch_size, source.image_size, on_wrong_size):
            bar.update(len(batch))
            good: dict[str, np.ndarray] = {}
            for name, image in batch:
                if not isinstance(image, BadImage):
                    good[name] = image
                elif options.on_bad_image == "skip":
                    tqdm.write(f"skipped: {image}")
                else:
                    raise image
            if good:
                images = np.stack(list(good.values()))
                names += good
                plain.append(embedded(source.embed, images, list(good)))
                if options.mirror:
                    mirrored.append(embedded(source.embed, np.ascontiguousarray(images[..., ::-1]), list(good)))
    if not names:
        raise ValueError(f"{options.folder}: none of its {len(paths)} images decodes")
    return np.array(names), np.concatenate(plain), np.concatenate(mirrored) if mirrored else None


def _decoded(
    folder: Path, paths: Sequence[Path], batch_size: int, size: int, on_wrong_size: OnWrongSize
) -> Iterator[list[tuple[str, np.ndarray | BadImage]]]:
    """Batches of names with images, (3, size, size) uint8, or with what is wrong; one batch is decoded ahead."""

    def read(path: Path) -> np.ndarray | BadImage:
        try:
            return decode_image((folder / path).read_bytes(), str(folder / path), size, on_wrong_size)
        except BadImage as problem:
            return problem

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "decode") as pool:
        ahead: list[tuple[str, Future[np.ndarray | BadImage]]] = []
        try:
            for start in range(0, len(paths) + batch_size, batch_size):
                current = ahead
                ahead = [(path.as_posix(), pool.submit(read, path)) for path in paths[start : start + batch_size]]
                if current:
                    yield [(name, future.result()) for name, future in current]
        finally:
            for _, future in ahead:
                future.cancel()
