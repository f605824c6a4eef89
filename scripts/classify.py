"""Classify the images of a folder with a network that `nas export` has written.

    python scripts/classify.py RUN/export/network.onnx photos

Prints one line an image: its path, the class, its probability. Reads card.json beside the file for
the classes and the preparation of the input. An example to start from: it needs Pillow, NumPy and
the file's runtime (.onnx: onnxruntime; .pte: executorch; .pt2 and .py: torch), and no `nas`.
A .py file is code and a .pt2 file comes close to it: open those that you trust.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

Array = NDArray[np.float32]
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", type=Path, help=".onnx, .pte, .pt2 or .py")
    parser.add_argument("images", type=Path, help="a folder, searched with all below it")
    parser.add_argument("--card", type=Path, help="card.json, by default beside the network")
    arguments = parser.parse_args()
    try:
        card_file = arguments.card or arguments.network.with_name("card.json")
        card = json.loads(card_file.read_text(encoding="utf-8"))
        model = opened(arguments.network)
        paths = found(arguments.images)
    except (OSError, ValueError, ImportError) as error:
        print(f"classify: {error}", file=sys.stderr)
        return 2
    classes = card["input"]["classes"]
    failed = 0
    for path in paths:
        try:
            image = prepared(path, card["input"])
        except Exception as error:  # a decoder may raise anything on a broken file
            print(f"{path}\tunreadable: {error}", file=sys.stderr)
            failed += 1
            continue
        probabilities = softmax(model(image[None])[0])
        best = int(probabilities.argmax())
        print(f"{path}\t{classes[best]}\t{probabilities[best]:.3f}")
    return 1 if failed else 0


def found(folder: Path) -> list[Path]:
    """The image files below `folder`, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise OSError(f"{folder} holds no image ending in {', '.join(sorted(SUFFIXES))}")
    return paths


def prepared(path: Path, given: dict[str, list[float]]) -> Array:
    """One image ``(C, H, W)`` as the network was trained on: upright, centre-cropped, scaled."""
    channels, height, width = (int(size) for size in given["shape"])
    mode = "RGB" if channels == 3 else "L"
    with Image.open(path) as file:
        file.draft(mode, (width, height))  # a large JPEG is decoded at a fraction of its size
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = deep(file, image, given.get("value_range"))
        else:
            image = opaque(image).convert(mode)
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted, np.float32).reshape(height, width, -1).transpose(2, 0, 1)
    mean, std = (np.asarray(given[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return np.ascontiguousarray((pixels.clip(0, 255) / 255 - mean) / std, np.float32)


def deep(file: Image.Image, image: Image.Image, known: list[float] | None) -> Image.Image:
    """Grey of more than 8 bits as 0..255: by the card's range, else by what the format says."""
    tags = getattr(file, "tag_v2", {})  # of a TIFF: 258 bits, 262 which is white, 339 signed or not
    values = np.asarray(image)
    if image.mode == "I" and file.format == "TIFF" and tags.get(339, (1,))[0] == 1:
        values = values.view(np.uint32)
    if image.mode.startswith("I;16"):
        black, white = known or (0, 2 ** tags.get(258, (16,))[0] - 1)
    elif image.mode == "I" and file.format in ("PNG", "PPM"):
        black, white = known or (0, 65535)
    else:
        black, white = known or (0, 1)
    if not known and (values.min() < 0 or values.max() > white):
        raise ValueError(
            f"values up to {values.max():g}: unknown which of them are black and white"
        )
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no finite numbers")
    scaled = (values.astype(np.float32) - black) * (255 / (white - black))
    return Image.fromarray((255 - scaled if tags.get(262) == 0 else scaled).astype(np.float32))


def opaque(image: Image.Image) -> Image.Image:
    """Transparent parts put on white, or on black where white would hide a light drawing."""
    if image.mode == "LAB":
        lab, rgb = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
        return ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    if not image.has_transparency_data:
        return image
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    image = (image.convert(straight) if straight else image).convert("RGBA")
    least, largest = image.getchannel("A").getextrema()
    if least == largest:  # draws nothing
        return image.convert("RGB")
    white, black = (
        Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")
        for colour in ("white", "black")
    )
    (darkest, lightest), (low, high) = (p.convert("L").getextrema() for p in (white, black))
    return black if darkest > 127 and high - low > lightest - darkest else white


def softmax(logits: Array) -> Array:
    """Probabilities ``(classes,)``."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def opened(path: Path) -> Callable[[Array], Array]:
    """The network in its runtime: images ``(1, C, H, W)`` -> logits ``(1, classes)``."""
    if not path.is_file():
        raise OSError(f"{path} is not a file")
    if path.suffix not in OPENERS:
        raise ValueError(f"{path} must end in one of {', '.join(OPENERS)}")
    return OPENERS[path.suffix](path)


def onnx(path: Path) -> Callable[[Array], Array]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"input": x})[0]


def pte(path: Path) -> Callable[[Array], Array]:
    import torch
    from executorch.extension.pybindings import portable_lib

    program = portable_lib._load_for_executorch(str(path))
    return lambda x: program.forward((torch.from_numpy(x),))[0].numpy()


def pt2(path: Path) -> Callable[[Array], Array]:
    import torch

    return eager(torch.export.load(path).module())


def python(path: Path) -> Callable[[Array], Array]:
    spec = importlib.util.spec_from_file_location("network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return eager(module.load())


def eager(network: Callable[..., object]) -> Callable[[Array], Array]:
    import torch

    def run(x: Array) -> Array:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()  # type: ignore[attr-defined]

    return run


OPENERS: dict[str, Callable[[Path], Callable[[Array], Array]]] = {
    ".onnx": onnx,
    ".pte": pte,
    ".pt2": pt2,
    ".py": python,
}


if __name__ == "__main__":
    sys.exit(main())
