"""Train a network further on faces of one's own, in PyTorch: the head alone first, then all at a small rate.

    python -m data opencv-sface
    python -m examples.fine_tuning runs/opencv-sface datasets/orl

`train --model.weights` does the same with logs, checkpoints and a report.
"""

import sys
from pathlib import Path

import torch

from common.datasets.loader import Loader
from common.datasets.training_sets import open_dataset
from common.weights.checkpoint import latest_checkpoint, load_checkpoint
from pytorch_impl.backbones import create_backbone
from pytorch_impl.checkpoint import from_canonical, named_tensors
from pytorch_impl.losses import SFaceHead


def fine_tune(run: Path, root: Path, head_steps: int = 36, steps: int = 63) -> tuple[torch.nn.Module, list[float]]:
    """The network, and the mean cosine to the own prototype at each step."""
    saved = load_checkpoint(latest_checkpoint(run))
    model, size = saved.state["config"]["model"], saved.state["config"]["data"]["image_size"]
    backbone = create_backbone(model["backbone"], model["embedding_size"], size)
    from_canonical(backbone, {name: saved.arrays[f"backbone.{name}"] for name in named_tensors(backbone)})
    dataset = open_dataset(root)
    head = SFaceHead(model["embedding_size"], dataset.num_classes)
    head_alone = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    everything = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.0001, momentum=0.9)
    cosines = []
    for step, batch in enumerate(Loader(dataset, batch_size=32, seed=0, image_size=size).batches(0, steps)):
        optimiser = head_alone if step < head_steps else everything
        backbone.train(step >= head_steps).requires_grad_(step >= head_steps)  # frozen, it embeds as in evaluation
        result = head(backbone((torch.from_numpy(batch.images) - 127.5) / 128), torch.from_numpy(batch.labels))
        optimiser.zero_grad()
        result.loss.backward()
        optimiser.step()
        cosines.append(result.target_cosine.item())
    return backbone, cosines


if __name__ == "__main__":
    for step, cosine in enumerate(fine_tune(Path(sys.argv[1]), Path(sys.argv[2]))[1], start=1):
        print(f"step {step}: mean cosine to the own prototype {cosine:.3f}")
