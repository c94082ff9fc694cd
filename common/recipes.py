"""Recipes, one function each: the training runs of the published code, and two small ones on public faces.

`python -m BACKEND train NAME` runs one; NAME is the function's name with dashes. The README files of the published code
(zhongyy/SFace for MXNet and PyTorch, liubingyuu/jittorface for Jittor) give each run scale 64, slope 80, momentum 0.9,
weight decay 5e-4, learning rate 0.1 and 512-d embeddings.
"""

from collections.abc import Callable
from pathlib import Path

from common.backend import PREFIX
from common.config import DataConfig, HeadConfig, ModelConfig, OptimiserConfig, RunConfig

RELEASED = Path("runs/opencv-sface")  # python -m data opencv-sface
PUBLISHED_SETS = ("lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "sllfw", "talfw")


def casia_r50() -> RunConfig:
    """CASIA-WebFace with r50: a row of the MXNet README (2 devices of 128)."""
    return RunConfig(
        name="casia-r50",
        data=_published_data("casia"),
        model=ModelConfig(backbone="iresnet50"),
        head=HeadConfig(intra_center=0.87, inter_center=1.20),
        optimiser=OptimiserConfig(
            batch_size=2 * 128, milestones=(100_000, 140_000, 160_000), milestone_unit="steps", epochs=100
        ),
    )


def casia_ir50() -> RunConfig:
    """CASIA-WebFace with IR-50: a row of the PyTorch and Jittor READMEs."""
    return RunConfig(
        name="casia-ir50",
        data=_published_data("casia"),
        model=ModelConfig(backbone="ir50"),
        head=HeadConfig(intra_center=0.87, inter_center=1.20),
        optimiser=OptimiserConfig(batch_size=256, milestones=(50, 70, 80), epochs=125),
    )


def casia_mobilefacenet() -> RunConfig:
    """CASIA-WebFace with MobileFaceNet: a row of the Jittor README."""
    return RunConfig(
        name="casia-mobilefacenet",
        data=_published_data("casia"),
        model=ModelConfig(backbone="mobilefacenet"),
        head=HeadConfig(intra_center=0.87, inter_center=1.20),
        optimiser=OptimiserConfig(batch_size=256, milestones=(50, 70, 80), epochs=125),
    )


def vggface2_r50() -> RunConfig:
    """VGGFace2 with r50: a row of the MXNet README (4 devices of 128)."""
    return RunConfig(
        name="vggface2-r50",
        data=_published_data("vggface2"),
        model=ModelConfig(backbone="iresnet50"),
        head=HeadConfig(intra_center=0.88, inter_center=1.25),
        optimiser=OptimiserConfig(
            batch_size=4 * 128, milestones=(100_000, 160_000, 220_000), milestone_unit="steps", epochs=30
        ),
    )


def ms1mv2_r100() -> RunConfig:
    """MS1MV2 with r100: a row of the MXNet README (4 devices of 128)."""
    return RunConfig(
        name="ms1mv2-r100",
        data=_published_data("ms1mv2"),
        model=ModelConfig(backbone="iresnet100"),
        head=HeadConfig(intra_center=0.90, inter_center=1.20),
        optimiser=OptimiserConfig(
            batch_size=4 * 128, milestones=(100_000, 160_000, 220_000), milestone_unit="steps", epochs=30
        ),
    )


def orl_demo() -> RunConfig:
    """`make demo`: 30 people of the ORL faces, evaluated on the 10 others (python -m data orl)."""
    return RunConfig(
        name="orl-demo",
        data=DataConfig(root=Path("datasets/orl"), evaluate_on=("orl",), raw_pixels=True, baseline=RELEASED),
        model=ModelConfig(backbone="mobilefacenet", embedding_size=128),
        optimiser=OptimiserConfig(batch_size=32, epochs=20, milestones=(14, 18)),
        log_every=3,
        evaluate_every=45,
        save_every=45,
    )


def lfw_small() -> RunConfig:
    """336 people of LFW at 56x56 pixels, evaluated on folds 0 and 1 of View 2, 1,200 pairs (python -m data lfw)."""
    return RunConfig(
        name="lfw-small",
        data=DataConfig(
            root=Path("datasets/lfw-small"),
            evaluate_on=("lfw_view2_folds01",),
            raw_pixels=True,
            image_size=56,
            on_wrong_size="resize",
        ),
        model=ModelConfig(backbone="iresnet_small", dropout=0.2),
        head=HeadConfig(intra_center=0.80, inter_center=1.10),  # more pull and less push, as there are few people
        optimiser=OptimiserConfig(batch_size=64, epochs=16, milestones=(11, 14)),
        evaluate_every=500,
        save_every=250,
        angle_images=1024,
    )


def orl_finetune() -> RunConfig:
    """The released SFace (python -m data opencv-sface), trained further on the people of `orl-demo`.

    The head learns alone for 4 epochs at falling rates; the whole network then moves at a ten thousandth, as rates of
    0.001 and more made it worse.
    """
    return RunConfig(
        name="orl-finetune",
        data=DataConfig(root=Path("datasets/orl"), evaluate_on=("orl",), raw_pixels=True, baseline=RELEASED),
        model=ModelConfig("mobilenet_v1", embedding_size=128, weights=RELEASED, freeze_backbone_steps=36),
        optimiser=OptimiserConfig(batch_size=32, epochs=7, learning_rate=0.1, milestones=(2, 3, 4)),
        log_every=3,
        evaluate_every=63,
        save_every=18,
    )


def lfw_finetune() -> RunConfig:
    """The released SFace (python -m data opencv-sface), trained further on the people of `lfw-small`, at 112x112."""
    return RunConfig(
        name="lfw-finetune",
        data=DataConfig(root=Path("datasets/lfw-small"), evaluate_on=("lfw_view2_folds01",), baseline=RELEASED),
        model=ModelConfig("mobilenet_v1", embedding_size=128, weights=RELEASED, freeze_backbone_steps=232),
        head=HeadConfig(intra_center=0.80, inter_center=1.10),
        optimiser=OptimiserConfig(batch_size=64, epochs=7, learning_rate=0.1, milestones=(2, 3, 4)),
        evaluate_every=100,
        save_every=100,
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "casia-r50": casia_r50,
    "casia-ir50": casia_ir50,
    "casia-mobilefacenet": casia_mobilefacenet,
    "vggface2-r50": vggface2_r50,
    "ms1mv2-r100": ms1mv2_r100,
    "orl-demo": orl_demo,
    "lfw-small": lfw_small,
    "orl-finetune": orl_finetune,
    "lfw-finetune": lfw_finetune,
}


_MADE_BY = {"orl-demo": "orl", "orl-finetune": "orl", "lfw-small": "lfw", "lfw-finetune": "lfw"}


def how_to_get_data(config: RunConfig) -> str:
    """How to make the training set of a recipe, or to find out who distributes it; empty for a recipe of one's own."""
    if config.name in _MADE_BY:
        return f"python -m {PREFIX}data {_MADE_BY[config.name]} --out {config.data.root} makes it"
    if config.name in RECIPES:
        return f"`reproduce {config.name} --check` says who distributes it, and docs/reproduce.md how to make it"
    return ""


def _published_data(folder: str) -> DataConfig:
    return DataConfig(root=Path("datasets") / folder, evaluate_on=PUBLISHED_SETS, workers=8)
