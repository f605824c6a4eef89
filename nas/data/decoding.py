"""Many image files at once, on several threads."""

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from nas.data.pixels import Picture, read_picture
from nas.errors import UserError

_CHUNK = 64  # files per task: with one file each, starting tasks costs as much as small JPEGs

T = TypeVar("T")


@dataclass
class Decoded:
    """What decoding fills in.

    Args:
        pixels: ``(N, C, size, size)``; not set where an image is deep or could not be read.
        deep: position -> the picture, for those of more than 8 bits a channel.
        failures: position -> why it could not be read.
        backgrounds: position -> what a picture with transparent parts was put on.
    """

    pixels: NDArray[np.uint8]
    deep: dict[int, Picture] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    backgrounds: dict[int, str] = field(default_factory=dict)


def decode(paths: Sequence[str], size: int, channels: int) -> Decoded:
    """Read every file, on several threads."""
    _check_memory(len(paths), size, channels, np.uint8)
    decoded = Decoded(np.empty((len(paths), channels, size, size), np.uint8))
    chunks = [range(len(paths))[at : at + _CHUNK] for at in range(0, len(paths), _CHUNK)]

    def fill(chunk: range) -> None:
        for i in chunk:
            _read(paths[i], i, decoded)

    # torch's number of threads is what keeps parallel runs from crowding each other out.
    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        with warnings.catch_warnings():
            # A small file may hold an image that fills the memory: Pillow warns, and goes on.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for _ in _with_bar(pool.map(fill, chunks), len(chunks)):
                pass
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the images still queued
    # In the order of the files, not in that of the threads: messages name the first ones.
    decoded.failures = dict(sorted(decoded.failures.items()))
    decoded.deep = dict(sorted(decoded.deep.items()))
    return decoded


def _read(path: str, i: int, decoded: Decoded) -> None:
    images, channels, size, _ = decoded.pixels.shape
    try:
        picture = read_picture(path, size, channels)
    except Exception as error:  # a decoder may raise anything on a broken file
        decoded.failures[i] = str(error).splitlines()[0] if str(error) else type(error).__name__
        return
    if picture.background:
        decoded.backgrounds[i] = picture.background
    if not picture.deep:
        decoded.pixels[i] = picture.pixels
        return
    if not decoded.deep:
        _check_memory(images, size, channels, np.float32)
    decoded.deep[i] = picture


def _with_bar(steps: Iterable[T], total: int) -> Iterable[T]:
    console = Console(stderr=True)
    shown = console.is_terminal
    return track(steps, "reading images", total, console=console, transient=True, disable=not shown)


def _check_memory(images: int, size: int, channels: int, kind: type[np.generic]) -> None:
    """UserError if so many pixels do not fit into this machine's memory."""
    # Left to itself, the system would kill the process minutes later without a word.
    needed = images * channels * size**2 * np.dtype(kind).itemsize
    if hasattr(os, "sysconf"):
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > present:
            raise UserError(
                f"{images} images of data.size={size} take {needed / 1e9:.1f} GB of "
                f"memory and this machine has {present / 1e9:.1f} GB: lower data.size."
            )
