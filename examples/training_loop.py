"""A training loop of one's own with SFace, in PyTorch.

python -m data synthetic --out datasets/synthetic --classes 20 --size 32
python -m examples.training_loop datasets/synthetic 32 100
"""

import sys
from pathlib import Path

import torch

from common.datasets.loader import Loader
from common.datasets.training_sets import open_dataset
from pytorch_impl.backbones import create_backbone
from pytorch_impl.losses import SFaceHead


def train(root: Path, image_size: int, steps: int) -> list[float]:
    """The mean cosine to the own prototype at each step."""
    dataset = open_dataset(root)
    loader = Loader(dataset, batch_size=32, seed=0, image_size=image_size)
    backbone = create_backbone("iresnet_small", embedding_size=64, image_size=image_size)
    head = SFaceHead(embedding_size=64, num_classes=dataset.num_classes)
    optimiser = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.01, momentum=0.9, weight_decay=5e-4)
    cosines = []
    for batch in loader.batches(0, steps):
        images = (torch.from_numpy(batch.images).float() - 127.5) / 128
        result = head(backbone(images), torch.from_numpy(batch.labels))
        optimiser.zero_grad()
        result.loss.backward()
        optimiser.step()
        cosines.append(result.target_cosine.item())
    return cosines


if __name__ == "__main__":
    for step, cosine in enumerate(train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), start=1):
        print(f"step {step}: mean cosine to the own prototype {cosine:.3f}")
