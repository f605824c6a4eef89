"""Sounds of a folder: what is read, in which part it is, what is refused; frames of sound."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import nas
from nas.arch import Arch
from nas.cli import run
from nas.cost.analytic import MACs, Params
from nas.cost.expected import expected
from nas.data import sound_folder
from nas.decision import apply
from nas.discretization import discretize
from nas.errors import UserError
from nas.ops.logmel import LogMel, fourier, mel_bands
from nas.spaces.staged import StagedSpace

RATE = 1000
STAGES = [{"ops": ["conv_k3", "sep_k3"], "channels": 4}]


def tone(hertz: float, seconds: float = 0.25, rate: int = RATE) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path: Path, x: Any, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, x, rate)


def folder(root: Path, classes: Any = ("a", "b", "c"), files: int = 8) -> Path:
    """A class is a tone; two files of each of the speakers."""
    for k, name in enumerate(classes):
        for i in range(files):
            write(root / name / f"s{i // 2}_nohash_{i}.wav", tone(50 * (k + 1) + i))
    return root


def read(root: Path, **options: Any) -> Any:
    return sound_folder(str(root), **{"rate": RATE, "seconds": 0.25, "batch_size": 2, **options})


def test_a_sound_is_cut_or_followed_by_zeros_and_its_channels_averaged(tmp_path: Path) -> None:
    long = tone(40, 0.4)
    write(tmp_path / "a/long.wav", long)
    write(tmp_path / "a/short.FLAC", long[:100])
    write(tmp_path / "b/two.wav", np.stack([long, 0 * long], 1))
    write(tmp_path / "b/.hidden.wav", long)
    write(tmp_path / "_noise/a.wav", long)
    arrays = read(tmp_path).source()
    assert arrays.classes == ("a", "b")
    assert arrays.samples.shape == (3, 1, 250)
    x = arrays.samples[:, 0].numpy() / 32768
    np.testing.assert_allclose(x[0], long[:250], atol=1e-4)
    np.testing.assert_allclose(x[1], [*long[:100], *np.zeros(150)], atol=1e-4)
    np.testing.assert_allclose(x[2], long[:250] / 2, atol=1e-4)


def test_another_rate_is_resampled_when_asked(tmp_path: Path) -> None:
    folder(tmp_path)
    write(tmp_path / "a/s0_nohash_0.wav", tone(50, rate=4 * RATE), 4 * RATE)
    x = read(tmp_path, resample=True).source().samples[0, 0].numpy() / 32768
    np.testing.assert_allclose(x[10:-10], tone(50)[10:-10], atol=0.01)


def test_lists_and_folders_are_parts_and_speakers_stay_together(tmp_path: Path) -> None:
    listed = folder(tmp_path / "listed")
    for name, line in {"validation": "s1_nohash_2", "testing": "s3_nohash_7"}.items():
        lines = [f"{label}/{line}.wav\n" for label in "abc"]
        (listed / f"{name}_list.txt").write_text("".join(lines))
    data = read(listed)
    assert {part: len(own) for part, own in data.parts.items()} == {
        "train": 18,
        "val": 3,
        "test": 3,
    }
    divided = tmp_path / "divided"
    folder(divided / "train")
    folder(divided / "test", files=2)
    assert len(read(divided).parts["test"]) == 6
    data = read(folder(tmp_path / "spoken"), speaker="^(.*)_nohash")
    speakers = [set(data.arrays.groups[own].tolist()) for own in data.parts.values()]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 4


@pytest.mark.parametrize("lists", [True, False])
def test_words_are_kept_others_are_unknown_and_noise_is_silence(
    tmp_path: Path, lists: bool
) -> None:
    folder(tmp_path, "abcd", files=10)
    write(tmp_path / "_background_noise_/hum.wav", tone(40, 2.5) + np.linspace(0, 0.1, 2500))
    if lists:
        for name, i in {"validation": 2, "testing": 8}.items():
            lines = (f"{label}/s{i // 2}_nohash_{i}.wav\n" for label in "abcd")
            (tmp_path / f"{name}_list.txt").write_text("".join(lines))
    arrays = read(tmp_path, words=["b", "a"], silence=True).source()
    assert arrays.classes == ("b", "a", "unknown", "silence")
    counts = {part: torch.bincount(arrays.targets[i]).tolist() for part, i in arrays.given.items()}
    if lists:
        assert counts == {"train": [8] * 4, "val": [1] * 4, "test": [1] * 4}
        # The noise rises: what validates and tests is behind all that trains.
        noisy = {part: i[arrays.targets[i] == 3] for part, i in arrays.given.items()}
        levels = {part: arrays.samples[i].float().mean((1, 2)) for part, i in noisy.items()}
        assert levels["train"].max() < levels["val"].min() < levels["test"].min()
    else:
        assert counts == {"train": [10] * 4}
    noise = arrays.samples[arrays.targets == 3, 0, 0].tolist()
    assert len(set(noise)) == len(noise)


BAD: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "rate": ("a/x.wav", (tone(9, rate=500), 500), {}, "has 500 samples a second: pass"),
    "silent": ("a/x.wav", (0 * tone(9), RATE), {}, "x.wav is silent"),
    "NaN": ("a/x.wav", (tone(9) * np.nan, RATE, "FLOAT"), {}, "no finite numbers"),
    "no sound": ("a/x.wav", None, {}, "x.wav cannot be read"),
    "word": ("a/x.wav", (tone(9), RATE), {"words": ["z"]}, "has no folder 'z'; it has a, b, c"),
    "noise": ("a/x.wav", (tone(9), RATE), {"silence": True}, "holds no sound"),
    "speaker": ("a/x.wav", (tone(9), RATE), {"speaker": "^(s.)_"}, "is not found in 'x.wav'"),
    "expression": ("a/s1_.wav", (tone(9), RATE), {"speaker": "("}, "is no expression"),
    "one speaker": ("a/s1_.wav", (tone(9), RATE), {"speaker": "^s"}, "1 group(s)"),
    "empty class": ("d/x.txt", None, {}, "class folder 'd'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_sounds_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, options, said = BAD[case]
    folder(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"no sound")
    if content:
        soundfile.write(tmp_path / name, *content)
    with pytest.raises(UserError) as refused:
        read(tmp_path, **options).setup()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_silent_files_are_skipped_or_kept(tmp_path: Path) -> None:
    write(folder(tmp_path) / "a/x.wav", 0 * tone(9))
    assert len(read(tmp_path, silent="skip").source().samples) == 24
    assert len(read(tmp_path, silent="keep").source().samples) == 25


# Frames


def test_log_mel_is_that_of_a_fourier_transform() -> None:
    module = LogMel(16000, 480, 320, 40, image=False).eval()
    x = torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(0))
    window = np.hanning(481)[:-1]
    frames = np.stack([x[0, 0, 320 * i : 320 * i + 480].numpy() * window for i in range(49)])
    power = np.abs(np.fft.rfft(frames, 512) * 2 / window.sum()) ** 2
    frequencies, bands = mel_bands(16000, 480, 40, 20, 4000)
    used = (frequencies * 512 / 16000).round().long().numpy()
    wanted = np.log(power[:, used] @ bands.numpy().T + 1e-6).T
    found = module(x)[0].detach().numpy() * np.sqrt(1 + module.norm.eps)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    transformed = LogMel(16000, 480, 320, 40, 10).eval()(x)
    assert transformed.shape == (1, 1, 49, 10)  # as in MLPerf Tiny
    from scipy.fft import dct

    cosines = dct(wanted, axis=0, norm="ortho")[:10].T
    np.testing.assert_allclose(transformed[0, 0].detach() * np.sqrt(1 + 1e-5), cosines, atol=1e-3)


@pytest.mark.parametrize("form", ["image", "sequence"])
def test_a_searched_front_costs_what_each_network_does_and_is_extracted(form: Any) -> None:
    front = {"rate": RATE, "window": [20, 40], "hop": 16, "high": 500, "form": form}
    front |= {"mels": [5, 8]} if form == "image" else {"mels": 5}
    torch.manual_seed(0)
    space = StagedSpace((1, 250), 3, STAGES, front=front).eval()
    costs = [expected(space, cost, (1, 250)) for cost in (MACs(), Params())]
    x = torch.randn(2, 1, 250)
    seen = set()
    for option in space.features.front.options:
        arch = Arch(space.name, {"features.front": option, "features.body.blocks.s0b0": "sep_k3"})
        apply(space, arch)
        network = discretize(space, arch).eval()
        torch.testing.assert_close(network(x), space(x), rtol=0, atol=0)
        own = [expected(network, cost, (1, 250)).of({}) for cost in (MACs(), Params())]
        assert [cost.of(arch.choices) for cost in costs] == own
        kernel = network.features.front.frames
        assert own[1] > kernel.weight.numel()
        seen.add(tuple(own))
    assert len(seen) == len(space.features.front.options)


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ({"window": 9000}, "must fit into the 250 samples"),
        ({"high": 600}, "at most half of rate=1000"),
        ({"mels": [4, 8], "form": "sequence"}, "cannot be searched"),
        ({"mels": 4, "coefficients": 8}, "must be at most mels=4"),
        ({"mel": 4}, "unknown key 'mel' (did you mean 'mels'?)"),
    ],
)
def test_a_front_that_cannot_be_is_refused(front: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        StagedSpace((1, 250), 3, STAGES, front={"rate": RATE, "high": 500, "window": 20, **front})
    assert said in str(refused.value)
    with pytest.raises(UserError, match="makes frames of sound"):
        StagedSpace((1, 8, 8), 3, STAGES, front={})


def test_sounds_are_searched_and_exported_as_samples(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("sounds"), files=24)
    front = f"space.front={{rate: {RATE}, window: [20, 40], hop: 20, mels: 10, high: 400}}"
    words = [
        "data=sound_folder", "data.root=sounds", f"data.rate={RATE}", "data.seconds=0.25", front,
        "data.batch_size=8", "space.width=0.25", "threads=1", "onnx=false",
        "search=fairnas", "search.epochs=1",
        "search.ranking.trials=3", "search.ranking.evaluate.calibration=16", "finetune.epochs=2",
        "front=1", "trainer.enable_progress_bar=false", "name=a",
    ]  # fmt: skip
    assert run(["search", *words]) == 0
    found = nas.load("runs/a").features.front.frames.weight
    window = found.shape[-1]
    frequencies, _ = mel_bands(RATE, window, 10, 20, 400)
    assert torch.equal(found, fourier(window, frequencies / RATE).float())  # not trained
    assert run(["export", "runs/a", "format=onnx", "latency=false"]) == 0
    exported = json.loads(Path("runs/a/export/export.json").read_text())["formats"]["onnx"]
    assert exported["max_abs_diff"] < 1e-3
    assert "samples over 32768" in Path("runs/a/export/card.md").read_text()
