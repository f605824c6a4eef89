"""What is exported, and what a format must be able to do with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas.errors import UserError

Model = Callable[[Tensor], Tensor]  # (N, *input_shape) -> logits (N, classes), in some runtime


@dataclass(frozen=True)
class Source:
    """A network with what is needed to write it.

    Args:
        network: plain, in eval mode, on the CPU.
        example: real inputs ``(N, ...)``, N at least 2.
        about: what it is, in one line.
        input: shape, classes, mean and std, as in result.json.
        calibration: inputs ``(M, ...)`` from which int8 formats learn the ranges.
    """

    network: nn.Module
    example: Tensor
    about: str
    input: Mapping[str, Any]
    calibration: Tensor | None = None


@dataclass(frozen=True)
class Format:
    """One way to write a network, and the runtime that reads it.

    Args:
        files: names of what is written; the first one is what is opened.
        runtime: what runs it, for the card.
        write: ``(source, folder)`` writes the files.
        open: path of the first file -> the model in its runtime.
        tolerance: largest |difference| of the logits from eager; None: judged by accuracy, int8.
        needs: modules that must be installed.
        extra: the extra that brings them.
    """

    files: tuple[str, ...]
    runtime: str
    write: Callable[[Source, Path], None]
    open: Callable[[Path], Model]
    tolerance: float | None
    needs: tuple[str, ...] = ()
    extra: str = ""

    @property
    def int8(self) -> bool:
        """Whether weights and activations are 8-bit integers."""
        return self.tolerance is None

    def check_installed(self) -> None:
        """Raises UserError, naming the extra, where a package is missing."""
        for module in self.needs:
            if find_spec(module) is None:
                raise UserError(f"{self.files[0]} needs {module}: pip install 'dnas[{self.extra}]'")
