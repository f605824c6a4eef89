"""Data: sources, their split into train (weights), val (alpha) and test, and fast batches."""

from nas.data.images import Images, Part, Source
from nas.data.module import DataModule, Options
from nas.data.sources import cifar10, digits, fashion_mnist, image_folder

__all__ = [
    "DataModule",
    "Images",
    "Options",
    "Part",
    "Source",
    "cifar10",
    "digits",
    "fashion_mnist",
    "image_folder",
]
