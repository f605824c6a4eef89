"""`nas export`: one network in several formats, each kept only if it computes what it should."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from nas.artifacts import RunDir
from nas.artifacts.files import claimed, display_path, own_prefix, write_atomic, write_json
from nas.artifacts.reading import read_json
from nas.config.options import ExportOptions
from nas.data.contract import SearchData
from nas.diagnostics import captured, reason, record
from nas.errors import UserError
from nas.export.check import Batch, Parity, card, compare, complaint, latencies, markdown
from nas.export.cortex_m import CPUS, DEFAULT
from nas.export.formats import BOARDED, Format, Model, Source, check_inputs, chosen
from nas.export.int8 import fine_tune
from nas.export.loading import state_bytes
from nas.inputs import run, samples_in, some
from nas.integer.boards import BOARDS, check_boards, described, on_board
from nas.integer.compiled import CompiledModel
from nas.quantization.network import FEWEST, dequantized, quantized_layers
from nas.tasks.classification import task_of

_ASKED = ("out", "weights", "config_dir", "trust")  # where from and to, not what is made
_EXAMPLE = 16  # samples that the exporters trace with
_ON_BOARD = 100  # samples that are run on a board, or by what simulates one


@dataclass(frozen=True)
class Subject:
    """A network and where it comes from.

    Args:
        network: plain, in eval mode.
        data: what it is compared and calibrated on, normalised as for its training.
        result: of its run, as in result.json; without a run only what is known.
        trained: False where the weights are as they were drawn.
        command: what the user typed.
    """

    network: nn.Module
    data: SearchData
    result: Mapping[str, Any]
    trained: bool
    command: str


class Export:
    """Writes, checks and keeps files of one network.

    Raises:
        UserError: an unknown format or a missing extra; a file that is there already; data that
            the network does not fit; afterwards, files that were not kept.
    """

    def __init__(self, subject: Subject, options: ExportOptions, out: Path) -> None:
        # Rounding is no operator of runtimes in floating point: they get weights that are rounded.
        self.rounded = subject.network if quantized_layers(subject.network) else None
        if self.rounded is not None and options.qat:
            raise UserError("qat=true is for networks in floating point; this one rounds already")
        subject = replace(subject, network=dequantized(subject.network))
        self.subject, self.options, self.out = subject, options, out
        self.formats = chosen(options.format, subject.network)
        self._check_boards()
        self._check_there()
        subject.data.setup()
        self.task = task_of(subject.data)
        self.eager: Model = partial(run, subject.network)
        self.batches: list[Batch] = list(subject.data.test_dataloader())
        check_inputs(self.formats, self.batches[0][0])
        self._check_classes()
        int8 = any(form.int8 for form in self.formats.values())
        self.calibration = self._calibration() if int8 else torch.empty(0)
        RunDir(out).create()
        self.rows: dict[str, dict[str, Any]] = {}  # format -> what the card says of its files
        self.models: dict[str, Model] = {}
        self.refused: list[str] = []  # why files were not kept
        self.qat: dict[str, Any] | None = None
        self.eager_latency: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Any]:
        """Export; what is in export.json."""
        plain = self._source(self.subject.network)
        with claimed(self.out / ".lock", str(self.out), wait=True):
            self._check_there()  # once more: perhaps it had to wait for another export
            with TemporaryDirectory(dir=self.out, prefix=own_prefix("export")) as folder:
                scratch = Path(folder)
                formats = self._writable(plain, scratch / "try")
                int8 = self._for_int8(plain, formats)
                for name, form in formats.items():
                    self._write(name, form, int8 if form.int8 else plain, scratch / name)
                if self.options.latency and self.models:
                    self._time()
                content = self._finish(scratch)
        print(f"card: {display_path(self.out / 'card.md')}")
        if self.refused:
            kept = f"; written: {', '.join(self.rows)}" if self.rows else ""
            raise UserError("; ".join(self.refused) + kept)
        return content

    def _check_there(self) -> None:
        names = [file for form in self.formats.values() for file in form.files]
        there = [name for name in names if (self.out / name).exists()]
        if there and not self.options.overwrite:
            raise UserError(
                f"{display_path(self.out / there[0])} is there already: pass overwrite=true to "
                "replace it, or another folder with out=FOLDER"
            )

    def _check_boards(self) -> None:
        boards, formats = self.options.board, set(self.formats)
        if boards and not set(BOARDED) & formats:
            raise UserError(f"board={boards[0]} is for format={' or '.join(BOARDED)}: add one")
        if "c" in formats:
            check_boards(boards)
        if "pte_cortex_m" in formats:
            if unknown := [name for name in boards if name not in CPUS]:
                raise UserError(f"board={unknown[0]!r} is not one of {', '.join(CPUS)}")
            if len(boards) > 1:
                raise UserError(
                    f"board={','.join(boards)}: format=pte_cortex_m is for one processor; "
                    "export it for each with an out= of its own"
                )

    def _check_classes(self) -> None:
        with torch.no_grad():
            outputs = self.eager(some(self.batches[0][0], slice(1))).shape[-1]
        data = self.subject.data
        if outputs != data.num_outputs:
            raise UserError(
                f"the network has {outputs} outputs and the data {data.name!r} have "
                f"{data.num_outputs} ({', '.join(data.classes[:10])}): pass the data it was "
                "trained on"
            )

    def _source(self, network: nn.Module) -> Source:
        data, result = self.subject.data, self.subject.result
        about = f"Network of space {result['space']!r} for {data.name!r}, exported by nas."
        example = some(self.batches[0][0], slice(_EXAMPLE))
        if samples_in(example) < 2:
            example = some(example, torch.tensor([0, 0]))
        cpu = next(iter(self.options.board), DEFAULT)
        own = self.calibration, self.rounded, cpu
        return Source(network, example, about, result["input"], *own)

    def _calibration(self) -> Tensor:
        wanted = self.options.calibration
        found = [x for x, _ in self.subject.data.calibration_loader(wanted)]
        images = torch.cat(found)[:wanted] if found else torch.empty(0)
        if len(images) < FEWEST:
            raise UserError(
                f"calibration={wanted}: int8 learns its ranges from {len(images)} training images "
                f"here, and needs at least {FEWEST}: raise calibration, or data.limit"
            )
        return images

    def _writable(self, plain: Source, folder: Path) -> dict[str, Format]:
        """The formats to write: nothing is trained for an int8 format that cannot be written."""
        if not self.options.qat:
            return self.formats
        some = self.batches[:1]
        return {
            name: form
            for name, form in self.formats.items()
            if not form.int8 or self._tried(name, form, plain, folder / name, some)
        }

    def _tried(
        self, name: str, form: Format, source: Source, folder: Path, batches: Sequence[Batch]
    ) -> tuple[Model, Parity] | None:
        """Write, open, and compare with the network itself; a failure is noted."""
        log = self.out / f"{name}_error.txt"
        log.unlink(missing_ok=True)  # of an earlier export
        folder.mkdir(parents=True)
        try:
            with captured() as said:
                form.write(source, folder)
                model = form.open(folder / form.files[0])
                return model, compare(self.eager, model, batches, self.task)
        except UserError as error:
            self.refused.append(str(error))
        except Exception as error:
            where = record(error, said.getvalue(), log)
            self.refused.append(
                f"{form.runtime} cannot take this network as {name} ({reason(error)}){where}"
            )
        return None

    def _for_int8(self, plain: Source, formats: Mapping[str, Format]) -> Source:
        options = self.options
        if not options.qat or not any(form.int8 for form in formats.values()):
            return plain
        data = self.subject.data
        epochs, lr = options.qat_epochs, options.qat_lr
        loader = data.weight_loader()
        trained = fine_tune(plain.network, self.task, loader, epochs, lr, data.seed)
        after = compare(plain.network, trained, self.batches, self.task)
        self.qat = {
            "epochs": options.qat_epochs,
            "lr": options.qat_lr,
            "float_score_before": after.eager_score,
            "float_score_after": after.score,
        }
        return replace(plain, network=trained)

    def _write(self, name: str, form: Format, source: Source, folder: Path) -> None:
        """Write and compare with the network itself, also where training for int8 changed it."""
        batches = self._few() if form.simulated else self.batches
        tried = self._tried(name, form, source, folder, batches)
        if tried is None:
            return
        model, found = tried
        drop = self.options.max_drop if self.subject.trained else None
        if said := complaint(name, found, form.tolerance, drop):
            self.refused.append(said)
            return
        boards = self._on_boards(model, folder)
        if boards is None:
            return
        sizes = {file: (folder / file).stat().st_size for file in form.files}
        if not form.simulated:
            self.models[name] = model
        self.rows[name] = {
            "runtime": form.runtime,
            "files": sizes,
            "tolerance": form.tolerance,
            **asdict(found),
            **({"qat": self.qat} if form.int8 else {}),
            **({"boards": boards} if boards else {}),
        }
        listed = ", ".join(
            f"{display_path(self.out / file)} ({n:,} bytes)" for file, n in sizes.items()
        )
        print(f"{name:10} {listed}\n{'':10} {found}")

    def _few(self) -> list[Batch]:
        """The first samples of the test part."""
        found, left = list[Batch](), _ON_BOARD
        for x, y in self.batches:
            found += [(some(x, slice(left)), y[:left])] if left else []
            left = max(0, left - len(y))
        return found

    def _on_boards(self, model: Model, folder: Path) -> dict[str, Any] | None:
        """Board -> what the network takes there; None where one computes something else."""
        rows: dict[str, Any] = {}
        if not isinstance(model, CompiledModel):
            return rows
        inputs = torch.cat([x for x, _ in self.batches if isinstance(x, Tensor)])[:_ON_BOARD]
        levels = model.start.quantize(inputs)
        for name in self.options.board:
            try:
                found = on_board(BOARDS[name], folder, levels, model.run(levels))
            except UserError as error:
                self.refused.append(f"board={name}: {error}")
                return None
            print(f"{'':10} {described(name, found)}")
            if found.equal < found.samples:
                self.refused.append(
                    f"on {name} {found.samples - found.equal} of {found.samples} samples have "
                    "other outputs than on this machine, so the C file was not kept"
                )
                return None
            rows[name] = asdict(found)
        return rows

    def _time(self) -> None:
        models = {n: m for n, m in self.models.items() if n != "state_dict"}  # which is eager
        found = latencies(self.eager, models, some(self.batches[0][0], slice(1)))
        self.eager_latency = found.pop("eager")
        for name, latency in found.items():
            self.rows[name]["latency"] = latency

    def _earlier(self, network: str) -> dict[str, Any]:
        """Rows of formats of this very network that lie in the folder already."""
        try:
            content = read_json(self.out / "export.json")
            rows = dict(content["formats"]) if content["network"] == network else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        rows = {n: r for n, r in rows.items() if "metric" in r}  # an earlier version wrote others
        return {n: r for n, r in rows.items() if all((self.out / f).exists() for f in r["files"])}

    def _finish(self, scratch: Path) -> dict[str, Any]:
        """Write the cards, and move everything to its place: a full disk leaves no half of it."""
        network = hashlib.sha256(state_bytes(self.subject.network)).hexdigest()
        content = {
            "schema": 1,
            "network": network,
            "command": self.subject.command,
            "options": {k: v for k, v in asdict(self.options).items() if k not in _ASKED},
            "samples": sum(len(y) for _, y in self.batches),
            "eager_latency": self.eager_latency,
            "formats": {**self._earlier(network), **self.rows},
            "refused": self.refused,
        }
        described = card(self.subject.result, self.subject.trained, content)
        write_json(scratch / "card.json", described)
        write_atomic(scratch / "card.md", markdown(described))
        write_json(scratch / "export.json", content)
        kept = [scratch / name / file for name, row in self.rows.items() for file in row["files"]]
        # What tells of the files comes last.
        for path in (*kept, *(scratch / n for n in ("card.json", "card.md", "export.json"))):
            os.replace(path, self.out / path.name)
        return content
