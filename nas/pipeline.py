"""The stages of a run: search -> discretize -> fine-tune -> test -> export, each resumable."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import is_main, write_atomic, write_json
from nas.config.calls import called
from nas.cost.dry_run import inputs_of
from nas.diagnostics import Attempts
from nas.discretization import discretize
from nas.epochs import by_epochs
from nas.errors import InterruptedRunError, UserError
from nas.export import load_supernet, onnx, state_bytes
from nas.export.loading import check_checkpoint
from nas.inputs import moved, some, zeros
from nas.latency.command import write_picture
from nas.latency.job import NAME as LATENCY
from nas.latency.job import measured_fields
from nas.problem import SearchProblem, check_logits
from nas.progress import Part, current, shown
from nas.ranks import all_ranks, broadcast, broadcast_module, each_rank_alone
from nas.recalibrate import recalibrate
from nas.report.summary import summarize, write_drawing
from nas.result import (
    SCHEMA,
    board_of,
    cost_fields,
    input_fields,
    log_final,
    log_graph,
    loggers_of,
    read_json,
    versions,
)
from nas.search.base import Search, agreed, build_search
from nas.search.callbacks import LastCheckpoint, ShowEpochs, Stopwatch
from nas.search.telemetry import TrainingTelemetry
from nas.supernet.speed import prepare, prepare_network
from nas.tasks.classification import task_of
from nas.teacher import LARGEST, largest_of, teacher_of
from nas.train import Training, interruptible, silence_unused, strategy_of


@dataclass(frozen=True)
class TrainingStage:
    """How the stages of a run train, a `nas.search.base.Stage`.

    Args:
        problem: of the run.
        run: its folder.
        loggers: of what is trained.
    """

    problem: SearchProblem
    run: RunDir
    loggers: Sequence[Logger] = ()

    def trainer(self, epochs: int, callbacks: list[pl.Callback]) -> pl.Trainer:
        """A trainer as the run is configured."""
        given = getattr(self.problem.trainer, "keywords", {})
        return self.problem.trainer(
            **strategy_of(given.get("strategy", "auto"), given.get("devices", 1)),
            max_epochs=epochs,
            callbacks=[ShowEpochs(), *callbacks, *self.problem.made_callbacks()],
            logger=list(self.loggers),
            enable_progress_bar=False,  # a run has one of its own
            default_root_dir=self.run.path,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders know their rank
        )

    def fit(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        loaders: Any,
        checkpoint: Path,
        validate: bool = True,
    ) -> None:
        """See `nas.search.base.Stage`."""
        saved = checkpoint if broadcast(checkpoint.exists) else None
        if saved is not None:
            check_checkpoint(module, saved)
        val = self.problem.data.val_dataloader() if validate else None
        with interruptible():
            trainer.fit(
                module,
                *by_epochs(trainer, module, loaders, val),
                ckpt_path=saved,
                weights_only=True,
            )
        if trainer.interrupted:
            raise InterruptedRunError("interrupted")
        broadcast_module(module)  # BatchNorm's statistics are of each rank's own images


class Run:
    """One run of a `SearchProblem` in a run directory; finished stages are read back, not repeated.

    Everything that can be wrong with the input is found in the constructor, before any training.

    Args:
        problem: what the run is made of.
        run: where its files go.
        arch: the architecture, where it is known and nothing is searched.
        train: train the network found; else it is evaluated as the supernet leaves it.

    Raises:
        UserError: see `DataModule`, the space, `trace` and the search.
    """

    def __init__(
        self,
        problem: SearchProblem,
        run: RunDir,
        arch: Arch | None = None,
        train: bool = True,
    ) -> None:
        self.problem, self.run, self.arch, self.train = problem, run, arch, train
        self.attempts = Attempts(run.path)
        self.supernet = self.problem.supernet
        self.task = task_of(problem.data)
        if arch is not None:
            self.problem.check(arch)
        self.search = None if arch else self._searcher()
        self.teacher = teacher_of(problem)
        if self.teacher == LARGEST and self.search and not self._has_trained_supernet:
            raise UserError(
                f"finetune.teacher={LARGEST} is the largest network of a trained supernet, and "
                "this search leaves none: pass finetune.teacher=RUN, a folder of a trained network"
            )
        network = discretize(self.supernet, arch)
        if self.task.outputs is not None:
            check_logits(network, problem.data.example, self.task.outputs)
        self._training(network)

    def _searcher(self) -> Search:
        search = build_search(self.problem)
        search.prepare(self.problem)
        return search

    def _training(self, network: nn.Module, teacher: nn.Module | None = None) -> Training:
        known = {"task": self.task}
        taught = {} if teacher is None else {"teacher": teacher}
        made: Training = called(
            self.problem.finetune, known, network=network, seed=self.problem.seed, **taught
        )
        return made

    def training_of(self, arch: Arch) -> Training:
        """The training of a network by the recipe `finetune`."""
        source = self.supernet if self.problem.inherit else self.problem.build()
        teacher = self.teacher
        if isinstance(teacher, str):  # LARGEST
            teacher = discretize(self.supernet, largest_of(self.problem))
        return self._training(discretize(source, arch), teacher)

    def __call__(self) -> dict[str, Any]:
        """Run what is left to do, write the artefacts, return what is in result.json.

        Of the processes of a distributed run, the first writes and has a result; the others' is
        empty.
        """
        trainer = TrainingStage(self.problem, self.run).trainer(1, [])
        with all_ranks(trainer), shown(self._work(), self.problem.shows_progress):
            if trainer.world_size > 1:
                silence_unused(trainer.strategy.root_device)
            return self._carried_out()

    def _work(self) -> dict[str, Part]:
        """The parts of the run, for the time that it takes."""
        known = getattr(self.search, "work", None)
        return {**(known(self.problem) if known else {}), "network": self.problem.work()}

    def _carried_out(self) -> dict[str, Any]:
        loggers = loggers_of(self.problem, self.run.path)
        try:
            return self._stages(loggers)
        except BaseException:
            # Its thread and its file would stay as long as the process, which may do other runs.
            for logger in loggers:
                with suppress(OSError):
                    logger.finalize("failed")
            raise

    def _stages(self, loggers: Sequence[Logger]) -> dict[str, Any]:
        started = time.monotonic()
        stage = TrainingStage(self.problem, self.run, loggers)
        found = self._find(stage)
        network, trained = self._finetune(stage)
        if not is_main():
            return {}
        result = self._result(found, trained, time.monotonic() - started)
        # What was trained is on the disk before anything is tried that may fail.
        write_atomic(self.run.network, state_bytes(network))
        write_json(self.run.result, result)
        self._finish(network, result, loggers)
        self.run.finetune_checkpoint.unlink(missing_ok=True)  # nothing is left to do
        return result

    def _finish(
        self, network: nn.Module, result: dict[str, Any], loggers: Sequence[Logger]
    ) -> None:
        """What is made of the network found; a step that fails is a warning in result.json."""
        current().step = "writing files"
        attempt = self.attempts.attempt
        with attempt("latency", "the latency of the network was not measured"):
            self._measure(network, result, loggers)
        if self.problem.onnx:
            with attempt("onnx", "no ONNX file"):
                example = some(next(iter(self.problem.data.test_dataloader()))[0], slice(16))
                result["onnx_max_abs_diff"] = onnx(network, example, self.run.onnx)
        if result["parts"] and self.problem.drawn:
            with attempt("drawing", "no drawing of the network"):
                write_drawing(self.run, result)
        if self.problem.drawn:
            with attempt("graph", "no graph of the network in TensorBoard"):
                log_graph(loggers, network, self.problem.data.example)
        with attempt("tensorboard", "no final figures in TensorBoard"):
            log_final(loggers, result, self.problem)
        write_json(self.run.result, result)

    def _find(self, stage: "TrainingStage") -> dict[str, Any]:
        """The search stage: sets `arch`; what is known of the search, see `SearchResult`."""
        path = self.run.path / "search.json"
        if self.search is not None and broadcast(lambda: self.run.arch.exists() and path.exists()):
            self.arch = agreed(lambda: Arch.load(self.run.arch))
            if self._has_trained_supernet:
                load_supernet(self.supernet, self.run.checkpoint)
            return broadcast(lambda: read_json(path))
        known: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": 0.0, "metrics": {}}
        if self.search is not None:
            found = self.search.run(self.problem, stage)
            self.arch, known = found.selected, found.to_json()
            write_json(path, known)
        assert self.arch is not None
        self.arch.save(self.run.arch)
        return known

    @property
    def _has_trained_supernet(self) -> bool:
        """Whether weights are inherited from a search of this run."""
        return self.search is not None and self.search.leaves in ("alphas", "supernet")

    def _finetune(self, stage: "TrainingStage") -> tuple[nn.Module, dict[str, Any]]:
        assert self.arch is not None
        metrics: dict[str, float] = {}
        module = self.training_of(self.arch)
        current().network("training" if self.train else "testing")
        data, watch = self.problem.data, Stopwatch()
        checkpoint = self.run.finetune_checkpoint
        callbacks = [watch, TrainingTelemetry(), LastCheckpoint(checkpoint)]
        trainer = stage.trainer(module.epochs, callbacks)
        sample = zeros(data.example, 2, trainer.strategy.root_device)
        prepare_network(module.network, self.problem.speed, sample)
        inherited = [module.network] if self.problem.inherit else []
        for network in [*inherited, *(module.teachers if self.teacher == LARGEST else ())]:
            self._recalibrate(network, trainer.strategy.root_device)
        known = self._has_trained_supernet or (self.search and self.search.leaves == "given")
        if self.problem.inherit and known:
            with interruptible():
                trainer.validate(module, data.val_dataloader(), verbose=False)
            name = f"val_{self.task.primary}"
            metrics[f"inherited_{name}"] = float(trainer.callback_metrics[name])
        if self.train:
            stage.fit(trainer, module, data.weight_loader(), checkpoint)
        prepare(module.network, "none")  # what is tested is what is saved
        for evaluate, loader in (
            (trainer.validate, data.val_dataloader()),
            (trainer.test, data.test_dataloader()),
        ):
            with interruptible():
                evaluate(module, loader, verbose=False)
            # Of this evaluation alone; Lightning returns only what went to a logger.
            metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        return module.network.cpu().eval(), {"metrics": metrics, "seconds": watch.seconds}

    def _recalibrate(self, network: nn.Module, device: torch.device) -> None:
        """The statistics inherited are those of a mixture of architectures."""
        network.to(device)
        data = self.problem.data
        with each_rank_alone(data):  # the same statistics on every rank
            recalibrate(network, (moved(x, device) for x, _ in data.calibration_loader()))
        network.cpu()

    def _measure(
        self, network: nn.Module, result: dict[str, Any], loggers: Sequence[Logger]
    ) -> None:
        """Where latency is a cost: that of the network itself, beside the prediction."""
        inputs: Any = inputs_of(self.problem.data.example, network)
        fields = measured_fields(network, inputs, self.problem.costs, self.arch)
        if not fields:
            return
        result["latency"] = fields
        if fields["measured"] is not None:
            result["costs"][LATENCY] = fields["measured"]
            result["units"][LATENCY] = "s"
        write_picture(self.run.path, board_of(loggers), self.problem.costs, fields)

    def _parts(self) -> list[dict[str, Any]]:
        assert self.arch is not None
        example = self.problem.data.example
        parts: list[dict[str, Any]] = []
        with self.attempts.attempt("parts", "no list of the network's parts"):
            found = summarize(self.supernet, self.arch, example, self.problem.priced)
            parts = [part.to_json() for part in found]
        return parts

    def _result(
        self, found: Mapping[str, Any], trained: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        assert self.arch is not None
        return {
            "schema": SCHEMA,
            "status": "finished",
            "message": None,
            "space": self.problem.space,
            "data": self.problem.data.name,
            "seed": self.problem.seed,
            **self.problem.about,
            "arch": dict(self.arch.choices),
            "arch_hash": self.arch.hash,
            "parts": self._parts(),
            "trained": self.train,
            "metrics": {**found["metrics"], **trained["metrics"]},
            **cost_fields(self.problem.costs, self.problem.budgets, self.arch),
            "input": input_fields(self.problem.data),
            "task": self.task.described(),
            "seconds": {
                "search": found["seconds"],
                "search_cpu": found.get("cpu_seconds"),  # of this process
                "finetune": trained["seconds"],
                "this_session": seconds,
            },
            "versions": versions(),
            "warnings": self.attempts.warnings,
            **({"onnx_max_abs_diff": None} if self.problem.onnx else {}),
        }
