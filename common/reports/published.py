"""What is published of SFace, as data with its source: the rows, their data sets, and the results that are known.

A figure without a source is not here: a table cell without one stays empty.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common import recipes
from common.config import RunConfig

INSIGHTFACE = "https://github.com/deepinsight/insightface/tree/master/recognition/_datasets_"
FACE_TRANSFORMER = "https://github.com/zhongyy/Face-Transformer"


class TrainingSet(NamedTuple):
    """A public training set; `where` says who distributes it, `counted` where the two counts come from."""

    title: str
    classes: int
    images: int
    counted: str
    where: str


class Row(NamedTuple):
    """A published recipe and how it was run: `devices` of `images_a_device` each make the global batch."""

    recipe: Callable[[], RunConfig]
    training_set: TrainingSet
    implementation: str
    devices: int
    images_a_device: int


class EvaluationSet(NamedTuple):
    """A set of image pairs; `where` says who distributes NAME.bin."""

    title: str
    pairs: int
    where: str


class Result(NamedTuple):
    """A published figure in percent. `backbone` is None where the source does not say which network it is of."""

    set: str
    figure: str
    percent: float
    backbone: str | None
    source: str


_CASIA = TrainingSet(
    "CASIA-WebFace",
    10_572,
    490_623,
    # The record's index has a key an image and a key an identity.
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
}
YTF = "ytf"
MEGAFACE = "megaface"
PROTOCOLS = {"ijbb": "IJB-B", "ijbc": "IJB-C", MEGAFACE: "MegaFace"}  # no sets of pairs: they have rules of their own

ACCURACY = "accuracy"


def protocol_of(stem: str) -> str | None:
    """The protocol whose figures a run keeps in evaluation/STEM.json; None: those of a set of pairs.

    MegaFace means a million distractors, their first list; with others it has the name of its file.
    """
    if stem.startswith("megaface-"):
        return MEGAFACE if stem == "megaface-1000000-1" else stem
    return stem if stem in PROTOCOLS else None


def pair_set_files(folder: Path) -> list[Path]:
    """The SET.json files of a run's `evaluation` folder that are of sets of pairs, by name."""
    return [path for path in sorted(folder.glob("*.json")) if protocol_of(path.stem) is None]


def tar_at(far: float) -> str:
    """Name of the true accept rate at a false accept rate, as in TAR@FAR=1e-4."""
    mantissa, _, exponent = f"{far:e}".partition("e")
    return f"TAR@FAR={float(mantissa):g}e{int(exponent)}"


_LISTING = "the wizwand.com listing of arXiv:2205.12010; training set and network are not stated there"
_OPENCV = (
    'the released 128-d MobileFaceNet, OpenCV 4.5.4 tutorial "DNN-based Face Detection And Recognition"; '
    "training set not stated, and the recipe here is 512-d"
)
RESULTS: tuple[Result, ...] = (
    Result("lfw", ACCURACY, 99.82, None, _LISTING),
    Result(YTF, ACCURACY, 96.08, None, _LISTING),
    Result(MEGAFACE, tar_at(1e-6), 98.61, None, _LISTING),
    Result("ijbc", tar_at(1e-4), 87.27, None, _LISTING),
    Result("lfw", ACCURACY, 99.60, "mobilefacenet", _OPENCV),
    Result("calfw", ACCURACY, 93.95, "mobilefacenet", _OPENCV),
    Result("cplfw", ACCURACY, 91.05, "mobilefacenet", _OPENCV),
    Result("agedb_30", ACCURACY, 94.90, "mobilefacenet", _OPENCV),
    Result("cfp_fp", ACCURACY, 94.80, "mobilefacenet", _OPENCV),
)


def published_result(recipe: str, set_name: str, figure: str) -> Result | None:
    """The published figure that a run of `recipe` can be held against, one of its own network before one of any.

    None for a recipe that is not a published row, and where nothing is known. No source says which row a figure is of.
    """
    if recipe not in ROWS:
        return None
    backbone = ROWS[recipe].recipe().model.backbone
    fitting = [r for r in RESULTS if (r.set, r.figure) == (set_name, figure) and r.backbone in (None, backbone)]
    return max(fitting, key=lambda result: result.backbone is not None, default=None)
