"""Sounds by class: WAV and FLAC files in a folder for each class, of one length and rate."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from nas.config.folders import existing_folder, files_below, part_folders, subfolders
from nas.config.schema import Count, Name, Positive, checked
from nas.data.splits import Arrays, Part, generator
from nas.errors import UserError, needed

HINT = "a folder with one subfolder of sounds per class"
ENDINGS = (".wav", ".flac")
NOISE, SILENCE, UNKNOWN = "_background_noise_", "silence", "unknown"
LARGEST = 2**15  # sounds are kept in 16 bits
FAINT = 2  # of 32768: what a silent file may reach
Lists = dict[Part, str]
_LISTS: Lists = {"val": "validation_list.txt", "test": "testing_list.txt"}
Silent = Literal["refuse", "skip", "keep"]
Samples = NDArray[np.int16]


@dataclass(frozen=True)
class Sound:
    """One file, and what is known of it before it is read.

    Args:
        start: seconds that are passed over.
    """

    path: Path
    label: str
    part: Part
    start: float = 0.0


@checked("data")
@dataclass(frozen=True)
class SoundFolder:
    """Source over ``root/<class>/*.wav`` or ``root/{train,val,test}/<class>/*.wav``, also FLAC.

    A sound that is longer is cut at its end, a shorter one is followed by zeros; several channels
    are averaged. Files named in ``root/validation_list.txt`` and ``root/testing_list.txt``, a path
    below `root` a line, are the val and the test part, as in Speech Commands (Warden 2018). Folders
    whose names begin with ``_`` are no classes.

    Args:
        root: the folder.
        rate: samples a second.
        seconds: of a sample.
        resample: whether files of another rate are resampled; else they are refused.
        silent: "refuse" files without sound, "skip" or "keep" them.
        words: classes to keep, all others are the class "unknown", of which as many sounds are
            drawn in each part as a word has in the mean; None: all.
        silence: whether pieces of the files in ``_background_noise_`` are a class "silence", as
            many as a class has in the mean. Without lists they do not overlap, so they may be less.
        speaker: regular expression whose first group, in the name of a file, is who speaks: nobody
            is in two of the parts that are split off.

    Raises:
        UserError: when called, a folder that cannot be used.
    """

    root: str | None
    rate: Count = 16000
    seconds: Positive = 1.0
    resample: bool = False
    silent: Silent = "refuse"
    words: Sequence[Name] | None = None
    silence: bool = False
    speaker: Name | None = None

    def __call__(self) -> Arrays:
        root = existing_folder(self.root, HINT)
        sounds = list(self._sounds(root))
        sounds += self._noise(root, sounds) if self.silence else []
        classes = [*dict.fromkeys(sound.label for sound in sounds)]
        if len(classes) < 2:
            raise UserError(f"data.root: {root} holds sounds of {len(classes)} class(es), {HINT}.")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read = list(pool.map(self._read, sounds))
        kept = [i for i, x in enumerate(read) if x is not None]
        x = np.stack([cast(Samples, read[i]) for i in kept])[:, None]
        sounds = [sounds[i] for i in kept]
        given: dict[Part, torch.Tensor] = {}
        for part in ("train", "val", "test"):
            own = [i for i, sound in enumerate(sounds) if sound.part == part]
            if own or part == "train":
                given[part] = torch.tensor(own, dtype=torch.int64)
        labels = torch.tensor([classes.index(sound.label) for sound in sounds])
        groups = self._groups(sounds)
        return Arrays(
            torch.from_numpy(x), labels, tuple(classes), given, largest=LARGEST, groups=groups
        )

    def _sounds(self, root: Path) -> Iterator[Sound]:
        """Every file that is taken, sorted by class and name."""
        folders = cast(dict[Part, Path], part_folders(root))
        listed = {path: part for part, name in _LISTS.items() for path in _listed(root / name)}
        names = [name for name in subfolders(folders["train"]) if not name.startswith("_")]
        if len(names) < 2:
            raise UserError(f"data.root: {root} holds {len(names)} class folder(s): give {HINT}.")
        words = names if self.words is None else list(self.words)
        if missing := sorted(set(words) - set(names)):
            raise UserError(
                f"data.words: {root} has no folder {missing[0]!r}; it has {', '.join(names)}."
            )
        for folder in folders.values():
            if strange := {n for n in subfolders(folder) if n[0] != "_"} - set(names):
                raise UserError(f"{folder} has a class {min(strange)!r} that train does not have.")
        found = {
            name: [
                Sound(path, name, listed.get(path.relative_to(root).as_posix(), part))
                for part, folder in folders.items()
                for path in files_below(folder / name, ENDINGS)
            ]
            for name in names
        }
        if empty := [name for name in words if not found[name]]:
            raise UserError(
                f"data.root: the class folder {empty[0]!r} in {root} holds no file ending in "
                f"{' or '.join(ENDINGS)}."
            )
        for name in words:
            yield from found[name]
        rest = [sound for name in names if name not in words for sound in found[name]]
        known = [sound for name in words for sound in found[name]]
        for part in ("train", "val", "test"):
            own = [sound for sound in rest if sound.part == part]
            count = round(sum(sound.part == part for sound in known) / len(words))
            order = torch.randperm(len(own), generator=generator("unknown", part)).tolist()
            for i in sorted(order[:count]):
                yield Sound(own[i].path, UNKNOWN, own[i].part)

    def _noise(self, root: Path, sounds: Sequence[Sound]) -> Iterator[Sound]:
        """Pieces of the long files of noise: of each file its own stretch for each part."""
        files = files_below(root / NOISE, ENDINGS)
        if not files:
            raise UserError(f"data.silence=true needs noise: {root / NOISE} holds no sound.")
        soundfile = needed("soundfile", "sound", "data=sound_folder")
        parts = [*dict.fromkeys(sound.part for sound in sounds)]
        ends = {"train": (0.0, 1.0)}
        if len(parts) > 1:
            ends = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}
        classes = len({sound.label for sound in sounds})
        for part in parts:
            count = round(sum(sound.part == part for sound in sounds) / classes)
            for k, path in enumerate(files):
                info = soundfile.info(str(path))
                first, last = (share * info.duration for share in ends[part])
                pieces = len(range(k, count, len(files)))
                if len(parts) == 1:
                    pieces = min(pieces, int((last - first) / self.seconds))
                for start in np.linspace(first, max(first, last - self.seconds), pieces):
                    yield Sound(path, SILENCE, part, float(start))

    def _read(self, sound: Sound) -> Samples | None:
        """The samples of one file ``(L,)``; None where it is left out."""
        path, length = sound.path, round(self.seconds * self.rate)
        x, rate = read_sound(path, "data=sound_folder", sound.start, self.seconds)
        if rate != self.rate and not self.resample:
            raise UserError(
                f"data.rate={self.rate}, but {path} has {rate} samples a second: pass "
                f"data.resample=true, or data.rate={rate}."
            )
        if rate != self.rate:
            from scipy.signal import resample_poly

            x = resample_poly(x, self.rate, rate)
        if not np.isfinite(x).all():
            raise UserError(
                f"data.root: {path} holds values that are no finite numbers: remove it."
            )
        whole = np.clip(np.rint(x[:length] * LARGEST), -LARGEST, LARGEST - 1).astype(np.int16)
        if self.silent != "keep" and np.abs(whole.astype(int)).max(initial=0) <= FAINT:
            if self.silent == "refuse":
                raise UserError(
                    f"data.root: {path} is silent: remove it, or pass data.silent=skip or keep."
                )
            return None
        return np.pad(whole, (0, length - len(whole)))

    def _groups(self, sounds: Sequence[Sound]) -> torch.Tensor | None:
        if self.speaker is None:
            return None
        try:
            pattern = re.compile(self.speaker)
        except re.error as error:
            raise UserError(f"data.speaker={self.speaker!r} is no expression: {error}.") from None
        names: dict[Any, set[Part]] = {}
        keys: list[Any] = []
        for k, sound in enumerate(sounds):
            found = pattern.search(sound.path.name)
            if found is None and sound.label != SILENCE:
                raise UserError(
                    f"data.speaker={self.speaker!r} is not found in {sound.path.name!r}: it must "
                    "be in the name of each file."
                )
            key = k if found is None else found[1 if pattern.groups else 0]
            names.setdefault(key, set()).add(sound.part)
            keys.append(key)
        if both := [name for name, parts in names.items() if len(parts) > 1]:
            raise UserError(
                f"data.speaker: {both[0]!r} is in {' and in '.join(sorted(names[both[0]]))}."
            )
        numbers = {name: i for i, name in enumerate(names)}
        return torch.tensor([numbers[key] for key in keys])


def read_sound(
    path: Path, needs: str, start: float = 0.0, seconds: float | None = None
) -> tuple[NDArray[np.float32], int]:
    """Samples ``(L,)``, the mean over channels, and how many of them are a second.

    Args:
        needs: what needs the package that reads, for the message where it is missing.
        start: seconds that are passed over.
        seconds: at most; None: all.

    Raises:
        UserError: it cannot be read.
    """
    soundfile = needed("soundfile", "sound", needs)
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            file.seek(min(int(start * rate), file.frames))
            count = -1 if seconds is None else int(np.ceil(seconds * rate))
            x = file.read(count, dtype="float32", always_2d=True)
    except Exception as error:  # soundfile raises several kinds
        reason = " ".join(str(error).split())
        raise UserError(f"data.root: {path} cannot be read ({reason}): remove it.") from None
    return cast(NDArray[np.float32], x.mean(1)), rate


def _listed(file: Path) -> list[str]:
    """The lines of a list; none where there is none."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]
