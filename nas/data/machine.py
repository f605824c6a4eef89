"""Sounds of a machine as in DCASE 2020's task 2 (ToyADMOS, MIMII), normal and anomalous."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from nas.config.folders import existing_folder
from nas.config.schema import Count, checked
from nas.data.sound import read_sound
from nas.data.splits import Arrays, Part
from nas.errors import UserError

HINT = "a folder of one machine of DCASE 2020 task 2, such as ToyCar, with train and test in it"
NORMAL, ANOMALY = "normal", "anomaly"
Frames = NDArray[np.float32]


@checked("data")
@dataclass(frozen=True)
class MachineSounds:
    """Source over ``root/train/normal_*.wav`` and ``root/test/{normal,anomaly}_*.wav``.

    A sample is `frames` log-mel frames that follow each other, ``(1, frames * mels)``, as MLPerf
    Tiny's autoencoder takes them (Banbury et al. 2021). Every second file of each kind in test is
    the val part, the others are the test part. The label is that of the file, and so is the group.

    Args:
        root: the folder.
        rate: samples a second; files of another rate are refused.
        mels: bands from 0 Hz to half the rate.
        window, hop: samples of a frame, and from one to the next.
        frames: of a sample.
        step: frames from the start of a sample to that of the next.

    Raises:
        UserError: when called, a folder that cannot be used.
    """

    root: str | None
    rate: Count = 16000
    mels: Count = 128
    window: Count = 1024
    hop: Count = 512
    frames: Count = 5
    step: Count = 5

    def __call__(self) -> Arrays:
        root = existing_folder(self.root, HINT)
        files: dict[Part, list[Path]] = {"train": _named(root / "train", NORMAL)}
        kinds = [_named(root / "test", kind) for kind in (NORMAL, ANOMALY)]
        files["val"] = [path for own in kinds for path in own[1::2]]
        files["test"] = [path for own in kinds for path in own[::2]]
        bands = mel_bands(self.rate, self.window, self.mels)
        samples, labels, sizes, given, count = [], [], [], {}, 0
        for part, paths in files.items():
            first = count
            for path in paths:
                found = self._samples(path, bands)
                samples.append(found)
                sizes.append(len(found))
                labels += [int(path.name.startswith(ANOMALY))] * len(found)
                count += len(found)
            given[part] = torch.arange(first, count)
        x = torch.from_numpy(np.concatenate(samples))[:, None]
        groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        names = (NORMAL, ANOMALY)
        return Arrays(x, torch.tensor(labels), names, given, largest=1, groups=groups)

    def _samples(self, path: Path, bands: Frames) -> Frames:
        """Of one file ``(N, frames * mels)``, in decibels."""
        x, rate = read_sound(path, "data=machine_sounds")
        if rate != self.rate:
            raise UserError(f"data.rate={self.rate}, but {path} has {rate} samples a second.")
        if len(x) < self.window + (self.frames - 1) * self.hop:
            raise UserError(f"data.root: {path} is too short for a sample of {self.frames} frames.")
        pieces = sliding_window_view(x, self.window)[:: self.hop] * np.hanning(self.window)
        power = np.abs(np.fft.rfft(pieces)) ** 2 @ bands
        decibels = 10 * np.log10(power + 1e-10)
        runs = sliding_window_view(decibels, self.frames, axis=0)[:: self.step]
        return cast(Frames, runs.swapaxes(1, 2).reshape(len(runs), -1).astype(np.float32))


def mel_bands(rate: int, window: int, count: int) -> Frames:
    """Triangles of equal width on the mel scale ``1127 ln(1 + f / 700)``, a column each."""
    mel = 1127 * np.log1p(np.fft.rfftfreq(window, 1 / rate) / 700)[:, None]
    ends = np.linspace(0, mel[-1, 0], count + 2)
    left, centre, right = ends[:-2], ends[1:-1], ends[2:]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return cast(Frames, np.clip(np.minimum(rising, falling), 0, None).astype(np.float32))


def _named(folder: Path, kind: str) -> list[Path]:
    """The sounds of a kind, sorted."""
    found = sorted(folder.glob(f"{kind}_*.wav"))
    least = 1 if folder.name == "train" else 2
    if len(found) < least:
        raise UserError(
            f"data.root: {folder} holds {len(found)} file(s) {kind}_*.wav and at least {least} are "
            f"needed: give {HINT}."
        )
    return found
