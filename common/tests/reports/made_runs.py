"""Made-up runs, the commands that report on them, and a reader of their pages."""

import base64
import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from common.__main__ import main
from common.evaluation.evaluate import Evaluation
from common.evaluation.results import save_evaluation
from common.evaluation.verification import verify_distances
from common.reports import comparison, run_report


def evaluation(name="lfw", gap=0.8, pairs=60, seed=0):
    issame = np.arange(pairs) % 2 == 0
    distances = np.clip(np.random.default_rng(seed).normal(1.6 - gap * issame, 0.3), 0, 4)
    return Evaluation(name, verify_distances(distances, issame), 21.53)


def train_line(step, **changes):
    metrics = {"loss": -20.5 - step, "intra_loss": -22.0, "inter_loss": 1.5, "target_cosine": 0.4, "other_cosine": 0.01}
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 50,
        "lr": 0.1,
        **metrics,
        "images_per_second": 412,
        **changes,
    }


def write_log(run, records, tail=""):
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


def make_run(folder):
    folder.mkdir()
    head = {"name": "sface", "scale": 64.0, "intra_center": 0.8, "inter_center": 1.1, "margin": None}
    config = {"name": "orl", "head": head, "model": {"backbone": "iresnet_small", "embedding_size": 512}, "seed": 3}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(
        json.dumps(
            {"python": "3.11.7", "backend": {"name": "pytorch", "device": "cpu", "threads": 2, "torch": "2.13.0"}}
        )
    )
    records = [train_line(step) for step in range(10, 110, 10)]
    records.append({"kind": "evaluation", "step": 100, "set": "lfw", "accuracy": 0.95})
    write_log(folder, records)
    return folder


def add_evaluations(folder):
    save_evaluation(folder / "evaluation", evaluation("lfw"), 100)
    save_evaluation(folder / "evaluation", evaluation("agedb_30", 0.5), 100)
    save_evaluation(folder / "evaluation", evaluation("lfw", 0.2), 0, method="raw_pixels")


def command(name, capsys, *arguments):
    """Status, output and errors of python -m common NAME."""
    status = main([name, *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(name, capsys, *arguments):
    """The error of python -m common NAME."""
    status, out, error = command(name, capsys, *arguments)
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    return error


def printed_by(*arguments):
    """What python -m common prints, in a process of its own."""
    command = [sys.executable, "-m", "common", *map(str, arguments)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


class Page(html.parser.HTMLParser):
    """Tags, attributes, table rows and text of a report; fails when tags do not nest."""

    VOID = ("meta", "img")

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.rows, self.text, self.open = [], [], [], "", []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def figures(self):
        """The SVG documents."""
        return [content.decode() for content in self.images("svg+xml")]

    def images(self, kind):
        """Contents of all images of a kind; each is inside the page."""
        sources = [value for name, value in self.attributes if name == "src"]
        assert all(re.match(r"data:image/(svg\+xml|jpeg);base64,", source) for source in sources)
        return [base64.b64decode(s.partition(",")[2]) for s in sources if s.startswith(f"data:image/{kind};")]


def leave_out_figures(monkeypatch):
    """Drawing takes half a second a report; for tests of all else."""
    for module in (run_report, comparison):
        for name in [name for name in vars(module) if name.endswith("_figures")]:
            monkeypatch.setattr(module, name, lambda *_: [])
