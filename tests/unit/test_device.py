"""Device files: what ships can be read, and what is wrong with one is said."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

from nas.cost.device import Device, load
from nas.errors import UserError

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "device").glob("*.yaml"))
GOOD = {
    "name": "toy",
    "native_dtype": "int8",
    "peak_ops_per_s": {"int8": 1e9, "float32": 2e8},
    "bandwidth_bytes_per_s": 1e8,
    "on_chip_bytes": 1024,
    "energy_pj_per_mac": {"int8": 1.0},
    "energy_pj_per_on_chip_byte": 2,
    "energy_pj_per_main_byte": 3.5,
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_ships_can_be_read(path):
    device = load(path)
    assert device.peak(device.native_dtype) > device.bandwidth_bytes_per_s / 100
    assert "_target_: nas.cost.device.Device" in path.read_text()
    if device.energy_pj_per_mac:
        assert device.energy_pj_per_mac.keys() == device.peak_ops_per_s.keys()
        assert len(device.byte_energies()) == 2


def test_the_listing_finds_them():
    assert {"cortex_m7", "gap9", "cortex_a72", "this_machine"} <= {p.stem for p in SHIPPED}


def test_what_is_written_is_read_again(tmp_path):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(GOOD))
    assert load(tmp_path / "toy.yaml") == Device(**GOOD)


def test_missing_figures_are_named_with_the_device():
    device = Device(**{k: v for k, v in GOOD.items() if not k.startswith("energy")})
    for figure, says in (
        (lambda: device.peak("float16"), r"'toy' has no peak_ops_per_s for 'float16', only for"),
        (lambda: device.mac_energy("int8"), r"'toy' has no energy_pj_per_mac, .*`energy_pj_per_m"),
        (device.byte_energies, r"'toy' has no energy_pj_per_on_chip_byte.*add `energy_pj_per_on"),
    ):
        with pytest.raises(UserError, match=says):
            figure()
    with pytest.raises(UserError, match="has no peak_ops_per_s for 'float16'"):
        Device(**GOOD | {"native_dtype": "float16"})


def test_this_machine_can_be_measured(tmp_path, monkeypatch):
    out = tmp_path / "measured.yaml"
    script = Path(__file__).parents[2] / "scripts" / "measure_device.py"
    main = runpy.run_path(str(script))["main"]
    monkeypatch.setitem(main.__globals__, "SIDE", 64)
    monkeypatch.setitem(main.__globals__, "COPY_BYTES", 2**16)
    words = f"--name mine --seconds 0.01 --on-chip-bytes 4096 --dtypes float32 --out {out}"
    monkeypatch.setattr(sys, "argv", ["measure_device.py", *words.split()])
    main()
    device = load(out)
    assert (device.name, device.on_chip_bytes) == ("mine", 4096)
    assert 1e6 < device.peak("float32") < 1e15
    with pytest.raises(UserError, match="'mine' has no energy_pj_per_mac"):
        device.mac_energy("float32")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("native_dtype", "int1"),
        ("native_dtype", None),
        ("peak_ops_per_s", {"int8": float("nan")}),
        ("peak_ops_per_s", {"int8": 0}),
        ("peak_ops_per_s", {"int8": "1e9"}),
        ("peak_ops_per_s", {"int8": 1e9, "int99": 1e9}),
        ("peak_ops_per_s", 1e9),
        ("peak_ops_per_s", {}),
        ("bandwidth_bytes_per_s", -1.0),
        ("bandwidth_bytes_per_s", float("inf")),
        ("bandwidth_bytes_per_s", True),
        ("on_chip_bytes", 0),
        ("on_chip_bytes", None),
        ("energy_pj_per_mac", {"int8": -1}),
        ("energy_pj_per_main_byte", float("nan")),
        ("energy_pj_per_on_chip_byte", "much"),
    ],
)
def test_a_wrong_figure_is_named_with_its_file(tmp_path, key, value):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(GOOD | {key: value}))
    with pytest.raises(UserError, match=rf"toy\.yaml: .*{key}"):
        load(tmp_path / "toy.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- 1", "must hold the figures"),
        ("a: [", "cannot read"),
        (yaml.safe_dump(GOOD | {"colour": "red"}), r"unknown keys \['colour'\]; a device has"),
        (yaml.safe_dump({"name": "toy"}), r"lacks \['bandwidth_bytes_per_s', 'native_dtype'"),
        # What YAML 1.1 does not read as a number.
        (
            yaml.safe_dump(GOOD).replace("100000000.0", "1e8"),
            "='1e8' must be .* needs point and sign",
        ),
    ],
)
def test_a_file_that_is_no_device(tmp_path, text, says):
    (tmp_path / "toy.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load(tmp_path / "toy.yaml")
    with pytest.raises(UserError, match="cannot read the device file"):
        load(tmp_path / "none.yaml")
