"""python -m common.tests.fuzz FOLDER COUNT [READER ...]: give each reader COUNT damaged copies of a good file.

A reader may read a damaged file, or raise an error that names it. Anything else fails: another exception, a message
without the file, more than MEMORY or SECONDS. A pipe, a device or a folder in place of the file is refused.
SFACE_FUZZ=20000 pytest common/tests/test_fuzz.py runs more of them.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.datasets.images import decode_photo, encode_image
from common.datasets.label_noise import Change, read_labels
from common.datasets.pair_sets import open_pair_set, write_pair_set
from common.datasets.training_sets import open_dataset, samples, write_records
from common.io.files import read_json, read_regular
from common.io.npz import read_arrays
from common.protocols import ijb, megaface
from common.reports.runs import read_run
from common.tests import foreign_files
from common.weights.checkpoint import load_checkpoint, save_checkpoint
from common.weights.foreign.convert import open_file
from data.align import read_landmarks
from data.faces import read_pairs

MEMORY, SECONDS = 2**29, 20  # bytes beyond what the process takes when it begins; for one input
SPECIAL = (
    *(b"\0", b"\xff\xfe", b"\xe9", b"9" * 5000, b"-1", b"nan", b"1e999", b"../../x", b"/dev/zero", b"\r", b"\xc2\xb2"),
    *(b"[" * 100_000, b'{"a":' * 3000, b"\x1b[2J", b"99999999999", b"\n" * 50, b"2147483648", b" ", b"\t", b","),
)


class Reader(NamedTuple):
    """`write` makes good files in a folder, and returns the one to damage; `read` reads them."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]


def _image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)


def _records(folder: Path) -> Path:
    write_records(folder, ((encode_image(_image()), label // 2) for label in range(6)), 3, 16)
    return folder / "train.rec"


def _list(folder: Path) -> Path:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(encode_image(_image()))
    (folder / "imgs.txt").write_text("a.png 0\nb.png 1\n")
    return folder / "imgs.txt"


def _beside(name: str) -> Callable[[Path], Path]:
    return lambda folder: _records(folder).with_name(name)


def _pair_set(folder: Path) -> Path:
    write_pair_set(folder / "set.bin", [encode_image(_image())] * 4, [True, False])
    return folder / "set.bin"


def _ijb(damaged: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for name, text in IJB.items():
            (folder / "meta").mkdir(exist_ok=True)
            (folder / "meta" / f"ijbc_{name}").write_text(text)
        return folder / "meta" / f"ijbc_{damaged}"

    return write


def _people(folder: Path) -> Path:
    _list(folder)
    (folder / "labels.txt").write_text("Ann\nBob\n")
    return folder / "labels.txt"


def _checkpoint(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return save_checkpoint(folder, 3, {"head.class_weight": np.ones((2, 3), np.float32)}, {}) / name

    return write


def _text(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


def _foreign(write: Callable[[Path, dict], object]) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        write(folder / "weights", {"conv1.weight": np.ones((2, 3), np.float32), "bn.bias": np.zeros(2, np.float32)})
        return folder / "weights"

    return written


def _arrays(folder: Path) -> Path:
    np.savez_compressed(folder / "e.npz", embeddings=np.ones((4, 3), np.float32), issame=np.ones(2, bool))
    return folder / "e.npz"


def _all_images(path: Path) -> list[bytes]:
    pairs = open_pair_set(path)
    return [pairs.encoded(index) for index in range(2 * len(pairs))]


def _all_samples(path: Path) -> list:
    return list(samples(open_dataset(path.parent)))


def _all_weights(path: Path) -> list:
    return [array.read() for group in open_file(path).groups for array in group.values()]


def _bytes_of_image(extension: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / f"face{extension}").write_bytes(encode_image(_image(), extension))
        return folder / f"face{extension}"

    return write


LOG = "".join(json.dumps({"kind": "train", "step": step, "loss": 1.5, "lr": 0.1}) + "\n" for step in range(4))
NOISE = ",".join(Change._fields) + "\n0,0,1,3,\n4,0,2,1,17\n"
IJB = {
    "face_tid_mid.txt": "1.jpg 7 1\n2.jpg 8 2\n",
    "name_5pts_score.txt": "1.jpg 1 2 3 4 5 6 7 8 9 10 0.5\n2.jpg 1 2 3 4 5 6 7 8 9 10 0.25\n",
    "template_pair_label.txt": "7 8 0\n7 7 1\n",
    "1N_gallery_G1.csv": "TEMPLATE_ID,SUBJECT_ID,FILENAME\n7,1,img/1.jpg\n8,2,img/2.jpg\n",
}
NEVER_ENDING: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}
READERS = {
    "records": Reader(_records, _all_samples),
    "index": Reader(_beside("train.idx"), _all_samples),
    "property": Reader(_beside("property"), _all_samples),
    "list": Reader(_list, _all_samples),
    "pair set": Reader(_pair_set, _all_images),
    "pairs": Reader(_text("pairs.txt", "1\t2\nA\t1\t2\nB\t1\t2\nA\t1\tB\t1\nA\t2\tB\t2\n"), read_pairs),
    "pairs of paths": Reader(_text("pairs.csv", "first,second,same\na.png,b.png,1\na.png,c.png,0\n"), read_pairs),
    "landmarks": Reader(
        _text("lm.txt", "path x1\na.png 1 2 3 4 5 6 7 8 9 10\nb c.png 1,2,3,4,5,6,7,8,9,10\n"), read_landmarks
    ),
    "png": Reader(_bytes_of_image(".png"), lambda path: decode_photo(read_regular(path), str(path))),
    "jpeg": Reader(_bytes_of_image(".jpg"), lambda path: decode_photo(read_regular(path), str(path))),
    "json": Reader(_text("a.json", '{"a": [1, 2.5, "x", null], "b": {}}'), lambda path: read_json(path, "settings")),
    "log": Reader(_text("log.jsonl", LOG), lambda path: read_run(path.parent)),
    "state": Reader(_checkpoint("state.json"), lambda path: load_checkpoint(path.parent)),
    "weights": Reader(_checkpoint("weights.safetensors"), lambda path: load_checkpoint(path.parent)),
    "npz": Reader(_arrays, read_arrays),
    "torch": Reader(_foreign(foreign_files.write_torch), _all_weights),
    "torch legacy": Reader(_foreign(foreign_files.write_torch_legacy), _all_weights),
    "jittor": Reader(_foreign(foreign_files.write_jittor), _all_weights),
    "mxnet": Reader(_foreign(foreign_files.write_mxnet), _all_weights),
    "feature": Reader(lambda folder: _feature(folder / "a.bin"), lambda path: megaface.read_feature(path)),
    "noise": Reader(_text("noise.csv", NOISE), lambda path: read_labels(path.parent, np.zeros(6, int))),
    "template pairs": Reader(_ijb("template_pair_label.txt"), lambda path: ijb.read_pairs(path.parents[1], "ijbc")),
    "template media": Reader(_ijb("face_tid_mid.txt"), lambda path: ijb.read_faces(path.parents[1], "ijbc")),
    "template faces": Reader(_ijb("name_5pts_score.txt"), lambda path: ijb.read_faces(path.parents[1], "ijbc")),
    "gallery": Reader(
        _ijb("1N_gallery_G1.csv"), lambda path: ijb.read_template_subjects(path.parents[1], "ijbc", "G1")
    ),
    "people": Reader(_people, lambda path: open_dataset(path.parent).people),
    "noisy": Reader(_text("noisy.txt", "# faces\na_1.png\n17\t363/3/5_0.jpg\n"), megaface.read_noisy),
}


def _feature(path: Path) -> Path:
    path.write_bytes(np.array([3, 1, 4, 5], np.int32).tobytes() + np.ones(3, np.float32).tobytes())
    return path


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """A few changes: other bytes, a cut, a piece again, a piece lost, something that readers do not expect."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(data) + 1))
        length = int(random.integers(1, 9))
        kind = random.integers(6)
        if kind == 0 and data:
            data[place % len(data)] = random.integers(256)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = data[place : place + 4 * length] * int(random.integers(1, 5))
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            data[place : place + length] = SPECIAL[random.integers(len(SPECIAL))]
        else:
            data[place : place + 4] = int(random.integers(2**32)).to_bytes(4, "little")
    return bytes(data)


def outcome(reader: Reader, path: Path) -> str:
    """ "read", "refused", or what was wrong."""
    signal.alarm(SECONDS)
    try:
        reader.read(path)
    except (ValueError, OSError, KeyError) as error:
        named = path.name in str(error) or path.stem in str(error)
        return "refused" if named else f"{type(error).__name__} without the file: {str(error)[:200]}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    return "read"


def main(folder: Path, count: int, names: list[str]) -> int:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"longer than {SECONDS} s")))
    wrong = 0
    for name in names or READERS:
        place = folder / name.replace(" ", "_")
        place.mkdir(parents=True)
        path = READERS[name].write(place)
        content = path.read_bytes()
        found = {"good": outcome(READERS[name], path)}
        wrong += found["good"] != "read"
        for kind, replace in NEVER_ENDING.items():
            path.unlink()
            replace(path)
            if (result := outcome(READERS[name], path)) != "refused":
                wrong += 1
                print(f"{name}, {kind}: {result}")
        path.rmdir()
        counts: dict[str, int] = {}
        for seed in range(count):
            path.write_bytes(damaged(content, np.random.default_rng(seed)))
            result = outcome(READERS[name], path)
            if result not in ("read", "refused"):
                wrong += 1
                print(f"{name}, seed {seed}: {result}")
                result = "wrong"
            counts[result] = counts.get(result, 0) + 1
        print(name, found["good"], counts)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
