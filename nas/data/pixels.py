"""One image file as pixels: upright, scaled and centre-cropped, in the depth that the file has.

Files of 8 bits a channel give uint8. Grey files of more (16-bit PNG and TIFF, 32-bit integers,
floating point) give float32, as 8 bits would lose what lies within few of their levels.
"""

import os
import stat
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from nas.data.splits import Levels
from nas.errors import UserError

Pixels = NDArray[Any]  # uint8, or float32 of files with more depth

# What the endings stand for. Pillow goes by the content: a "photo.png" of PostScript would be given
# to Ghostscript, a program that runs what is in it.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_WHITES = (255.0, 65535.0, 2.0**24 - 1, 2.0**32 - 1)
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_CHUNK = 64  # files per task: with one file each, starting tasks costs as much as small JPEGs
_ADVICE = "pass data.value_range=[BLACK,WHITE], the values that mean black and white"


@dataclass(frozen=True)
class Picture:
    """A decoded file.

    Args:
        pixels: uint8 ``(C, size, size)``, or float32 ``(1, size, size)`` in the file's own values.
        path: where it was read from.
        levels: black and white as the file's format says; None where the format does not tell.
        least, largest: values of the whole file.
        floating: the file stores floating point numbers.
        inverted: the file stores white as the smallest value.
        background: what a picture with transparent parts was put on, "white" or "black".
    """

    pixels: Pixels
    path: str
    levels: Levels | None = None
    least: float = 0
    largest: float = 255
    floating: bool = False
    inverted: bool = False
    background: str = ""

    @property
    def deep(self) -> bool:
        """Whether it has more than 8 bits a channel."""
        return self.pixels.dtype != np.uint8

    def bright(self, value_range: Levels | None) -> Pixels:
        """Pixels with 0 for black and 255 for white; what lies outside is cut off.

        Args:
            value_range: black and white of deep pictures, instead of what the format says.
        """
        if not self.deep:
            return self.pixels
        black, white = value_range or self.levels or (0.0, 1.0)
        scaled = (self.pixels - np.float32(black)) * np.float32(255 / (white - black))
        cut: Pixels = np.clip(255 - scaled if self.inverted else scaled, 0, 255)
        return cut


def read_picture(path: str, size: int, channels: int) -> Picture:
    """Decode a file; of several frames or pages the first.

    Raises:
        ValueError: it holds values that are no finite numbers.
        OSError: it is no image, or a damaged one.
    """
    mode = "RGB" if channels == 3 else "L"
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no plain file")
    with Image.open(path, formats=_FORMATS) as file:
        file.draft(mode, (size, size))  # a large JPEG is decoded at a fraction of its size
        image = ImageOps.exif_transpose(file)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _deep(file, image, path, size)
        image, background = _opaque(image)
    image = ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR)
    array = np.asarray(image, np.uint8).reshape(size, size, channels).transpose(2, 0, 1)
    return Picture(array, path, background=background)


def _deep(file: Image.Image, image: Image.Image, path: str, size: int) -> Picture:
    tags: Any = getattr(file, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I" and file.format == "TIFF" and tags.get(_TIFF_SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow reads unsigned integers into signed ones
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no finite numbers")
    grey = Image.fromarray(values.astype(np.float32))
    fitted = ImageOps.fit(grey, (size, size), Image.Resampling.BILINEAR)
    return Picture(
        np.asarray(fitted, np.float32)[None],
        path,
        _levels(image.mode, file.format, tags),
        float(values.min()),
        float(values.max()),
        image.mode == "F",
        tags.get(_TIFF_PHOTOMETRIC) == 0,
    )


def _levels(mode: str, kind: str | None, tags: Any) -> Levels | None:
    if mode.startswith("I;16"):
        return 0.0, 2.0 ** tags.get(_TIFF_BITS, (16,))[0] - 1  # of TIFF 12 or 16
    if mode == "I" and kind in ("PNG", "PPM"):
        return 0.0, 65535.0  # 16 bits, which Pillow reads into 32
    return None


def _opaque(image: Image.Image) -> tuple[Image.Image, str]:
    """The picture without transparent parts, in a mode that converts, and the background it got.

    It is put on white. Where white leaves nothing darker than mid-grey and black gives more
    contrast, it is drawn in light colours and put on black. An alpha channel that is the same
    everywhere draws nothing and is dropped.
    """
    if image.mode == "LAB":
        return _from_lab(image), ""
    if not image.has_transparency_data:
        return image, ""
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    image = (image.convert(straight) if straight else image).convert("RGBA")
    least, largest = image.getchannel("A").getextrema()
    if least == largest:
        return image.convert("RGB"), ""
    white, black = (_over(image, colour) for colour in ("white", "black"))
    on_white, on_black = (np.asarray(picture.convert("L"), np.int16) for picture in (white, black))
    if on_white.min() > 127 and np.ptp(on_black) > np.ptp(on_white):
        return black, "black"
    return white, "white"


def _over(image: Image.Image, colour: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
    made = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    assert made is not None
    return made


def common_range(pictures: Collection[Picture], images: int) -> Levels | None:
    """Black and white of the deep pictures of one data set; None: what each one's format says.

    Floating point within 0..1 means 0 for black and 1 for white. Other 32-bit values do not tell:
    where all images are of one such kind, white is the smallest of 255, 65535, 2^24 - 1 and
    2^32 - 1 that holds every value of the data set.

    Args:
        pictures: the deep ones.
        images: how many there are in all, with those of 8 bits.

    Raises:
        UserError: negative values, or 32-bit values beside images of other kinds.
    """
    unknown = [picture for picture in pictures if picture.levels is None]
    if not unknown:
        return None
    lowest = min(unknown, key=lambda picture: picture.least)
    highest = max(unknown, key=lambda picture: picture.largest)
    if lowest.least < 0:
        raise _unknown(lowest, f"negative values (down to {lowest.least:g})")
    if highest.largest <= 1 and all(picture.floating for picture in unknown):
        return None
    if len(unknown) < images or len({picture.floating for picture in unknown}) > 1:
        raise _unknown(highest, f"values up to {highest.largest:g} beside images of other depths")
    white = next((white for white in _WHITES if highest.largest <= white), None)
    if white is None:
        raise _unknown(highest, f"values up to {highest.largest:g}")
    return 0.0, white


def _unknown(picture: Picture, what: str) -> UserError:
    return UserError(
        f"{picture.path} holds {what}, so that it cannot be known which values are black and "
        f"white: {_ADVICE}"
    )


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
            done = pool.map(fill, chunks)
            bar = Console(stderr=True)
            for _ in track(
                done, "reading images", len(chunks), console=bar, transient=True,
                disable=not bar.is_terminal,
            ):  # fmt: skip
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
