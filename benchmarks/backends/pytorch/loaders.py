"""PyTorch's DataLoader, which `python -m benchmarks loader` measures the project's loader against."""

import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.datasets.training_sets import open_dataset


def open_loader(name: str, root: Path, image_size: int, batch_size: int, workers: int) -> Callable[[], int]:
    """A function that reads an epoch, shuffled, with random flips, and returns its number of images.

    Args:
        name: "opencv": uint8 planes, as the project's loader makes them; "arcface_torch": as that code prepares a
            sample, Pillow's image and flip, then floats from -1 to 1 (Pillow and tensor operations stand in for
            torchvision's transforms, which do the same).
        root: folder of a record file.
        image_size: width and height of its images.
        batch_size: images in a batch.
        workers: processes.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
    """
    if name == "arcface_torch":
        import PIL.Image  # noqa: F401  a missing package is found here, not in a worker process
    prepare = {"opencv": _planes, "arcface_torch": _floats}[name]
    loader = DataLoader(
        _Records(root, prepare), batch_size, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    return lambda: sum(len(images) for images, _ in loader)


class _Records(Dataset):
    def __init__(self, root: Path, prepare: Callable[[np.ndarray], Tensor]) -> None:
        self._dataset = open_dataset(root)
        self._prepare = prepare

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self._dataset.sample(index)
        bgr = cv2.imdecode(np.frombuffer(sample.encoded, np.uint8), cv2.IMREAD_COLOR)
        return self._prepare(bgr), sample.label


def _planes(bgr: np.ndarray) -> Tensor:
    if random.random() < 0.5:
        bgr = cv2.flip(bgr, 1)
    return torch.from_numpy(np.stack(cv2.split(bgr)[::-1]))


def _floats(bgr: np.ndarray) -> Tensor:
    from PIL import Image

    image = Image.fromarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.float().div(255).sub_(0.5).div_(0.5)
