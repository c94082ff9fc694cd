"""Level 8: batches of a generated set, and figures of given embeddings."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from parity_tests.comparison import Case, Check, as_arrays


@functools.cache
def data_cases() -> list[Case]:
    """The truth is computed in this process."""
    from data.synthetic import make_synthetic
    from parity_tests import worker

    root = Path(tempfile.mkdtemp(prefix="sface-parity-")) / "synthetic"
    make_synthetic(root, classes=5, images=6, size=32, pairs=10)
    random = np.random.default_rng(3)
    embeddings = random.standard_normal((4800, 16)).astype(np.float32)  # enough pairs to measure a FAR of 0.001
    embeddings[1::4] = embeddings[::4] + 0.8 * embeddings[1::4]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    inputs = {"kind": "data", "root": str(root), "batch_size": 8, "seed": 4, "image_size": 32, "steps": 6}
    given = as_arrays(inputs | {"embeddings": embeddings, "issame": np.arange(2400) % 2 == 0})
    truth = worker.answer(None, given)
    names = {"images": "data: batches", "labels": "data: labels", "figures": "evaluation: figures"}
    checks = [Check(row, "data", output, truth[output], 1.0) for output, row in names.items()]
    return [Case("data", "float32", given, checks)]
