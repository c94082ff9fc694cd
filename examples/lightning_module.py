"""SFace in PyTorch Lightning (`pip install lightning`).

python -m examples.lightning_module datasets/synthetic 32 3
"""

import sys
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

from common.datasets.images import decode_image
from common.datasets.training_sets import open_dataset
from pytorch_impl.backbones import create_backbone
from pytorch_impl.losses import SFaceHead


class FaceRecognition(lightning.LightningModule):
    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.backbone = create_backbone("iresnet_small", embedding_size=64, image_size=image_size)
        self.head = SFaceHead(embedding_size=64, num_classes=num_classes)

    def training_step(self, batch, _):
        images, labels = batch
        result = self.head(self.backbone((images.float() - 127.5) / 128), labels)
        self.log_dict({"loss": result.loss, "target_cosine": result.target_cosine}, prog_bar=True)
        return result.loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


class Images(torch.utils.data.Dataset):
    def __init__(self, root: Path, image_size: int) -> None:
        self.samples, self.image_size = open_dataset(root), image_size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        sample = self.samples.sample(index)
        return torch.from_numpy(decode_image(sample.encoded, sample.name, self.image_size)), sample.label


def train(root: Path, image_size: int, epochs: int, **options) -> lightning.Trainer:
    images = Images(root, image_size)
    trainer = lightning.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, **options)
    loader = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    trainer.fit(FaceRecognition(images.samples.num_classes, image_size), loader)
    return trainer


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
