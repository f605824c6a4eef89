"""Image files of every kind keep what they show: one picture is the same in all of them.

A kind is a way to write grey levels ``(H, W)`` in 0..1 into a file. A new one is a line in KINDS.
"""

import importlib.util
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from nas.data import image_folder
from nas.data.folder import read_image
from nas.errors import UserError

SIZE = 8
SCRIPT = Path(__file__).parents[2] / "scripts" / "classify.py"


def test_pixels_keep_their_values_proportions_and_orientation(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (10, 20, 30)  # the middle, which a centre crop keeps
    Image.fromarray(wide).save(tmp_path / "wide.png")
    deep = np.full((8, 8), 40_000, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    turned = np.zeros((8, 8, 3), np.uint8)
    turned[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(turned).save(tmp_path / "turned.png", exif=exif)

    assert read_image(str(tmp_path / "wide.png"), 8, 3)[:, 4, 4].tolist() == [10, 20, 30]
    assert (read_image(str(tmp_path / "wide.png"), 8, 3).min(axis=(1, 2)) == [10, 20, 30]).all()
    assert (read_image(str(tmp_path / "deep.png"), 8, 1) == np.float32(40_000 / 257)).all()
    assert (read_image(str(tmp_path / "turned.png"), 8, 3)[0, :4] == 0).all()


def bytes_of(levels):
    return (255 * levels).round().astype(np.uint8)


def grey(levels):
    return Image.fromarray(bytes_of(levels))


def deep(scale, dtype):
    return lambda levels, path: Image.fromarray((scale * levels).round().astype(dtype)).save(path)


def floats(levels, path):
    Image.fromarray(levels.astype(np.float32)).save(path)


def converted(*modes):
    def write(levels, path):
        image = grey(levels)
        for mode in modes:
            image = image.convert(mode)
        image.save(path)

    return write


def one_bit(levels, path):
    Image.fromarray(levels > 0.5).save(path)


def big_endian(levels, path):
    """A TIFF of 16 bits whose bytes stand in the other order."""
    values = (65535 * levels).round().astype(">u2")
    Image.frombytes("I;16B", values.shape[::-1], values.tobytes()).save(path)


def white_is_zero(levels, path):
    """A TIFF that stores 16 bits with 0 for white: PhotometricInterpretation 0."""
    deep(65535, np.uint16)(1 - levels, path)
    patch(path, 262, 0)


def twelve_bits(levels, path):
    """A TIFF of 12 bits a sample, packed."""
    values = (4095 * levels).round().astype(int).flatten()
    pairs = zip(values[::2], values[1::2], strict=True)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    height, width = levels.shape
    entries = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(packed))]
    place = 8 + len(packed)
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    head = struct.pack("<2sHI", b"II", 42, place) + packed
    path.write_bytes(head + struct.pack("<H", len(entries)) + table + bytes(4))


def patch(path, tag, value):
    """Give a little-endian TIFF's short field another value."""
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<HHI", tag, 3, 1), struct.unpack_from("<I", content, 4)[0])
    struct.pack_into("<H", content, place + 8, value)
    path.write_bytes(content)


def unsigned(levels, path):
    """A TIFF of unsigned 32-bit integers up to the largest, which Pillow reads as negative."""
    values = (levels.astype(np.float64) * (2**32 - 1)).round().astype(np.uint32)
    Image.fromarray(values.view(np.int32)).save(path)
    patch(path, 339, 1)


def rgb16_png(levels, path):
    """A colour PNG of 16 bits a channel, which Pillow cannot write."""
    values = np.repeat((65535 * levels).round().astype(">u2")[..., None], 3, 2)
    height, width = levels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(name, content):
        checked = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checked)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)


def pgm16(levels, path):
    values = (65535 * levels).round().astype(">u2")
    path.write_bytes(b"P5 %d %d 65535\n" % values.shape[::-1] + values.tobytes())


def palette(levels, path):
    """Eight bits through a table that is sorted the other way."""
    image = Image.fromarray(255 - bytes_of(levels), "L")
    image = image.copy()
    made = Image.frombytes("P", image.size, image.tobytes())
    made.putpalette([255 - i // 3 for i in range(768)])
    made.save(path)


def in_alpha(colour):
    """A picture of one colour that is drawn by the alpha channel alone."""

    def write(levels, path):
        shown = bytes_of(1 - levels if colour < 128 else levels)
        flat = Image.new("L", shown.shape[::-1], colour)
        Image.merge("LA", [flat, Image.fromarray(shown)]).save(path)

    return write


def transparent_palette(levels, path):
    """A palette of one colour in all degrees of transparency."""
    made = Image.frombytes("P", levels.shape[::-1], bytes_of(levels).tobytes())
    made.putpalette([0] * 768)
    made.save(path, transparency=bytes(255 - i for i in range(256)))


def unused_alpha(value):
    def write(levels, path):
        image = grey(levels).convert("RGBA")
        image.putalpha(value)
        image.save(path, lossless=True)

    return write


def first_of_two(levels, path):
    grey(levels).save(path, save_all=True, append_images=[grey(1 - levels)])


def lab(levels, path):
    rgb, profile = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    ImageCms.profileToProfile(grey(levels).convert("RGB"), rgb, profile, outputMode="LAB").save(
        path
    )


def turned(levels, path):
    """Stored upside down, with a note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray((65535 * levels[::-1, ::-1]).round().astype(np.uint16)).save(path, exif=exif)


# name -> (how to write it, ending, largest difference in 0..255 that is rounding)
KINDS = {
    "grey": (converted(), "png", 0),
    "colour": (converted("RGB"), "png", 0),
    "CMYK": (converted("RGB", "CMYK"), "tif", 1),
    "YCbCr": (converted("RGB", "YCbCr"), "tif", 1),
    "LAB": (lab, "tif", 4),
    "JPEG": (lambda levels, path: grey(levels).save(path, quality=100), "jpg", 3),
    "palette": (palette, "png", 0),
    "GIF": (palette, "gif", 0),
    "animated GIF": (first_of_two, "gif", 0),
    "pages": (first_of_two, "tif", 0),
    "16-bit PNG": (deep(65535, np.uint16), "png", 1),
    "16-bit TIFF": (deep(65535, np.uint16), "tif", 1),
    "16-bit big-endian": (big_endian, "tif", 1),
    "16-bit 0 is white": (white_is_zero, "tif", 1),
    "12-bit TIFF": (twelve_bits, "tif", 1),
    "16-bit colour PNG": (rgb16_png, "png", 1),
    "16-bit PGM": (pgm16, "pgm", 1),
    "16-bit turned": (turned, "png", 1),
    "float": (floats, "tif", 1),
    "32-bit of 16": (deep(65535, np.int32), "tif", 1),
    "32-bit of 8": (deep(255, np.int32), "tif", 1),
    "32-bit unsigned": (unsigned, "tif", 1),
    "float of 8": (lambda levels, path: floats(255 * levels, path), "tif", 1),
    "float of 16": (lambda levels, path: floats(65535 * levels, path), "tif", 1),
    "black in alpha": (in_alpha(0), "png", 1),
    "white in alpha": (in_alpha(255), "png", 1),
    "black in alpha, TIFF": (in_alpha(0), "tif", 1),
    "palette in alpha": (transparent_palette, "png", 1),
    "alpha 0 everywhere": (unused_alpha(0), "png", 0),
    "alpha 255 everywhere": (unused_alpha(255), "webp", 0),
    "premultiplied": (unused_alpha(255), "tif", 0),
}

ranged = st.floats(0, 1, width=32)
drawn = arrays(np.float32, (SIZE, SIZE), elements=ranged)


def whole(levels):
    """With a black and a white pixel, so that the range of the file is known."""
    levels = levels.copy()
    levels[0, 0], levels[0, 1] = 0, 1
    return levels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@given(levels=drawn)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_one_picture_is_the_same_in_every_kind_of_file(tmp_path, kind, channels, levels):
    write, ending, tolerance = KINDS[kind]
    path, levels = tmp_path / f"image.{ending}", bytes_of(whole(levels)) / np.float32(255)
    if ending == "jpg":
        levels = np.full_like(levels, levels.mean())  # its blocks blur what is drawn at random
    write(levels, path)

    found = read_image(str(path), SIZE, channels)

    assert found.shape == (channels, SIZE, SIZE)
    difference = np.abs(found.astype(np.float32) - 255 * levels).max()
    assert difference <= tolerance + 1e-3, (found, 255 * levels)


@pytest.mark.parametrize("kind", KINDS)
def test_two_plainly_different_classes_are_told_apart(tmp_path, kind):
    """By a linear classifier, on pictures that training has not seen."""
    write, ending, _ = KINDS[kind]
    draw = np.random.default_rng(0)
    for label in ("left", "right"):
        (tmp_path / label).mkdir()
        for i in range(20):
            levels = draw.uniform(0, 0.3, (SIZE, SIZE)).astype(np.float32)
            levels[1:, : SIZE // 2] += 0.7 * (label == "left")
            levels[1:, SIZE // 2 :] += 0.7 * (label == "right")
            write(whole(levels), tmp_path / label / f"{i}.{ending}")
    data = image_folder(str(tmp_path), SIZE, channels=1, batch_size=4)

    assert accuracy(data) == 1


def accuracy(data):
    def whole_part(loader):
        batches = list(loader)
        return torch.cat([x for x, _ in batches]).flatten(1), torch.cat([y for _, y in batches])

    x, y = whole_part(data._ordered_loader(data.parts["train"], 64))
    constant = torch.ones(len(x), 1)
    weights = torch.linalg.lstsq(torch.cat([x, constant], 1), 2.0 * y - 1, driver="gelsd").solution
    x, y = whole_part(data.test_dataloader())
    return float(((torch.cat([x, torch.ones(len(x), 1)], 1) @ weights > 0) == y).float().mean())


@pytest.mark.parametrize(
    "write",
    [deep(65535, np.uint16), deep(65535, np.int32), floats],
    ids=["16 bits", "32 bits", "floating point"],
)
def test_what_lies_within_one_of_256_levels_is_told_apart(tmp_path, write):
    draw = np.random.default_rng(0)
    for label, level in (("a", 30_000), ("b", 30_060)):
        (tmp_path / label).mkdir()
        for i in range(20):
            levels = (level + draw.integers(0, 20, (SIZE, SIZE))) / 65535
            write(levels, tmp_path / label / f"{i}.tif")
    data = image_folder(str(tmp_path), SIZE, channels=1, batch_size=4)

    assert data.arrays.samples.dtype == torch.float32
    assert accuracy(data) == 1


def test_files_of_8_bits_stay_bytes(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(4):
            grey(np.full((SIZE, SIZE), i / 4)).save(tmp_path / label / f"{i}.png")
    assert image_folder(str(tmp_path), SIZE, batch_size=2).arrays.samples.dtype == torch.uint8


def test_one_bit(tmp_path):
    levels = np.arange(64).reshape(8, 8) / 63
    one_bit(levels, tmp_path / "a.png")
    assert (read_image(str(tmp_path / "a.png"), 8, 1)[0] == 255 * (levels > 0.5)).all()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 255, 0), (90, 90, 90)])
@given(shown=arrays(np.bool_, (SIZE, SIZE)))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_drawing_in_the_alpha_channel_stands_out(tmp_path, colour, shown):
    shown = shown.copy()
    shown[0, 0], shown[0, 1] = True, False
    image = Image.new("RGBA", shown.shape[::-1], colour)
    image.putalpha(Image.fromarray(np.uint8(255) * shown))
    image.save(tmp_path / "a.png")
    found = read_image(str(tmp_path / "a.png"), SIZE, 1)[0].astype(int)

    assert np.unique(found[shown]).size == np.unique(found[~shown]).size == 1
    assert abs(found[shown][0] - found[~shown][0]) > 127


# What black and white are


def folder_of(root, **files):
    for name, write in files.items():
        label, _, number = name.partition("_")
        (root / label).mkdir(exist_ok=True)
        write(root / label / f"{number}.tif")
    return str(root)


def flat(value, dtype):
    return lambda path: Image.fromarray(np.full((SIZE, SIZE), value, dtype)).save(path)


def many(value, dtype, other, other_dtype):
    files = {f"a_{i}": flat(value, dtype) for i in range(3)}
    return files | {f"b_{i}": flat(other, other_dtype) for i in range(3)}


@given(
    dark=st.floats(0, 1), bright=st.floats(0, 1), top=st.sampled_from([1.0, 255, 4095, 65535, 1e6])
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_one_scale_for_all_images_of_a_folder(tmp_path_factory, dark, bright, top):
    root = tmp_path_factory.mktemp("folder")
    data = image_folder(
        folder_of(root, **many(dark * top, np.float32, bright * top, np.float32)), SIZE, 1
    )
    first, second = (float(data.arrays.samples[i].mean()) for i in (0, -1))

    highest = np.float32(top) * np.float32(max(dark, bright))
    white = next(w for w in (1, 255, 65535, 2**24 - 1) if highest <= w)
    assert (first, second) == pytest.approx((255 * dark * top / white, 255 * bright * top / white))
    assert data.value_range == (None if white == 1 else (0, white))


def test_the_range_that_is_given_counts_and_is_said_once(tmp_path, caplog):
    files = many(-1024, np.int32, 3071, np.int32)
    data = image_folder(folder_of(tmp_path, **files), SIZE, 1, value_range=[-1024, 3071])
    with caplog.at_level(logging.WARNING):
        assert data.arrays.samples.unique().tolist() == [0, 255]
    assert data.value_range == (-1024, 3071)
    assert [record.getMessage() for record in caplog.records] == [
        "6 of 6 images have more than 8 bits a channel: -1024 is black and 3071 is white "
        "(data.value_range)"
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (many(-0.5, np.float32, 0.5, np.float32), r"a.0\.tif holds negative values.*value_range="),
        (many(-5, np.int32, 5, np.int32), r"a.0\.tif holds negative values \(down to -5\)"),
        (many(900, np.int32, 7, np.uint8), r"a.0\.tif holds values up to 900 beside"),
        (many(900, np.int32, 0.5, np.float32), r"a.0\.tif holds values up to 900 beside"),
        (many(900, np.uint16, 2.5, np.float32), r"b.0\.tif holds values up to 2.5 beside"),
        (many(0.5, np.float32, 1e12, np.float32), r"b.0\.tif holds values up to 1e\+12, so"),
    ],
    ids=["negative", "negative integers", "mixed", "integers and floats", "16 bits", "too large"],
)
def test_what_cannot_be_known_is_refused_by_name(tmp_path, files, words):
    with pytest.raises(UserError, match=words) as caught:
        image_folder(folder_of(tmp_path, **files), SIZE, 1).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_files_with_values_that_are_no_numbers_are_named(tmp_path, value):
    files = many(0.5, np.float32, 0.25, np.float32)
    root = folder_of(tmp_path, **files, a_bad=flat(value, np.float32))
    with pytest.raises(UserError, match=r"a.bad\.tif \(it holds values that are no finite"):
        image_folder(root, SIZE, 1, unreadable="refuse").setup()
    assert len(image_folder(root, SIZE, 1).arrays.targets) == 6


@pytest.mark.parametrize("value", ["abc", [1], [1, 1], [0, "x"], [0, np.inf], [0, True], 5])
def test_a_range_that_is_none_is_refused(value):
    with pytest.raises(UserError, match=r"data\.value_range=.*such as \[0,4095\]"):
        image_folder("x", value_range=value)


# The example script reads the same


@pytest.fixture(scope="module")
def classify():
    spec = importlib.util.spec_from_file_location("classify", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_example_script_prepares_images_as_the_training_does(
    tmp_path, classify, kind, channels
):
    write, ending, _ = KINDS[kind]
    draw = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / "ab"[i % 2] / f"{i}.{ending}"
        path.parent.mkdir(exist_ok=True)
        write(whole(draw.uniform(0, 1, (14, 10)).astype(np.float32)), path)
    data = image_folder(str(tmp_path), SIZE, channels, batch_size=2)
    given = {"shape": data.input_shape, "mean": data.mean, "std": data.std}
    if data.value_range:
        given["value_range"] = list(data.value_range)

    expected = torch.cat([x for x, _ in data._ordered_loader(torch.arange(6), 6)])

    paths = [tmp_path / name for name in ("a/0", "a/2", "a/4", "b/1", "b/3", "b/5")]
    found = np.stack([classify.prepared(path.with_suffix(f".{ending}"), given) for path in paths])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("value", [40_000, -3])
def test_the_example_script_names_what_it_cannot_know(tmp_path, classify, value):
    flat(value, np.int32)(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="unknown which of them are black"):
        classify.prepared(tmp_path / "a.tif", {"shape": (1, 8, 8), "mean": [0.5], "std": [1.0]})
