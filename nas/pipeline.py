"""The stages of a run: search -> discretize -> fine-tune -> test -> export, each resumable."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from nas.anatomy import anatomy
from nas.arch import Arch
from nas.decision import free
from nas.diagnostics import Attempts
from nas.discrete import discretize
from nas.errors import InterruptedRunError
from nas.export import load_supernet, onnx, state_bytes
from nas.export.loading import check_checkpoint
from nas.latency.found import NAME as LATENCY
from nas.latency.found import measured_fields, write_picture
from nas.plan import Plan, Problem, check_logits
from nas.ranks import apart, as_first, together, told
from nas.recalibrate import recalibrate
from nas.result import (
    SCHEMA,
    cost_fields,
    input_fields,
    read_json,
    versions,
    write_drawing,
)
from nas.run import RunDir, is_main, write_atomic, write_json
from nas.run_log import log_final, log_graph, logger_of
from nas.search.by_trials import TrialSearch
from nas.search.callbacks import LastCheckpoint, StopWhenStable
from nas.search.differentiable import DifferentiableSearch
from nas.search.gap import DiscretizationGap
from nas.search.oneshot import OneShot
from nas.search.speed import SpeedUp
from nas.search.stopwatch import Stopwatch
from nas.search.telemetry import SearchTelemetry, TrainingTelemetry
from nas.train import Training, interruptible, strategy_of


class Run:
    """One run of a `Plan` in a run directory; finished stages are read back, not repeated.

    Everything that can be wrong with the input is found in the constructor, before any training.

    Args:
        plan: what the run is made of.
        run: where its files go.
        arch: the architecture, where it is known and nothing is searched.
        problem: of this plan, where it has been built before.
        train: train the network found; else it is evaluated as the supernet leaves it.

    Raises:
        UserError: see `DataModule`, the space, `trace` and the search.
    """

    def __init__(
        self,
        plan: Plan,
        run: RunDir,
        arch: Arch | None = None,
        problem: Problem | None = None,
        train: bool = True,
    ) -> None:
        self.plan, self.run, self.arch, self.train = plan, run, arch, train
        self.attempts = Attempts(run.path)
        self.problem = problem or Problem(plan)
        self.supernet = self.problem.supernet
        if arch is not None:
            self.problem.check(arch)
        self.search = None if arch else self._searcher()
        network = discretize(self.supernet, arch)
        check_logits(network, plan.data.input_shape, plan.data.num_classes)
        self._training(network)

    def _searcher(self) -> Any:
        costs = {name: self.problem.costs[name] for name in self.plan.costs}
        target = getattr(self.plan.search, "func", self.plan.search)
        if isinstance(target, type) and issubclass(target, DifferentiableSearch):
            module = self.plan.search(
                supernet=self.supernet,
                costs=costs,
                targets=self.problem.budgets,
                objective=self.plan.objective,
                temperature=self.plan.relax.temperature,
                seed=self.plan.seed,
            )
            module.loaders(self.plan.data)  # a batch larger than a split is an error now
            return module
        if isinstance(target, type) and issubclass(target, OneShot):
            module = self.plan.search(
                supernet=self.supernet, costs=self.problem.costs, seed=self.plan.seed
            )
            module.loaders(self.plan.data)
            module.ranking.check(self.problem)
            return module
        searcher = self.plan.search(supernet=self.supernet, seed=self.plan.seed)
        if isinstance(searcher, TrialSearch):
            searcher.check(self.problem)
        return searcher

    def _training(self, network: nn.Module) -> Training:
        return self.plan.finetune(network=network, seed=self.plan.seed)

    def __call__(self) -> dict[str, Any]:
        """Run what is left to do, write the artefacts, return what is in result.json.

        Of the processes of a distributed run, the first writes and has a result; the others' is
        empty.
        """
        with together(self._trainer(1, [], False)):
            return self._carried_out()

    def _carried_out(self) -> dict[str, Any]:
        logger = logger_of(self.plan, self.problem, self.run.path)
        try:
            return self._stages(logger)
        except BaseException:
            # Its thread and its file would stay as long as the process, which may do other runs.
            with suppress(OSError):
                logger.finalize("failed")
            raise

    def _stages(self, logger: TensorBoardLogger) -> dict[str, Any]:
        started = time.monotonic()
        found = self._find(logger)
        network, trained = self._finetune(found, logger)
        if not is_main():
            return {}
        result = self._result(found, trained, time.monotonic() - started)
        # What was trained is on the disk before anything is tried that may fail.
        write_atomic(self.run.network, state_bytes(network))
        write_json(self.run.result, result)
        self._finish(network, result, logger)
        self.run.finetune_checkpoint.unlink(missing_ok=True)  # nothing is left to do
        return result

    def _finish(
        self, network: nn.Module, result: dict[str, Any], logger: TensorBoardLogger
    ) -> None:
        """What is made of the network found; a step that fails is a warning in result.json."""
        attempt = self.attempts.attempt
        with attempt("latency", "the latency of the network was not measured"):
            self._measure(network, result, logger)
        if self.plan.onnx:
            with attempt("onnx", "no ONNX file"):
                example = next(iter(self.plan.data.test_dataloader()))[0][:16]
                result["onnx_max_abs_diff"] = onnx(network, example, self.run.onnx)
        if result["parts"]:
            with attempt("drawing", "no drawing of the network"):
                write_drawing(self.run, result)
        with attempt("graph", "no graph of the network in TensorBoard"):
            log_graph(logger, network, self.plan)
        with attempt("tensorboard", "no final figures in TensorBoard"):
            log_final(logger, result, self.problem)
        write_json(self.run.result, result)

    def _find(self, logger: TensorBoardLogger) -> dict[str, Any]:
        """The search stage: the architecture, and what is known of the search."""
        stage = self.run.path / "search.json"
        if self.arch is None and told(lambda: self.run.arch.exists() and stage.exists()):
            self.arch = _agreed(lambda: Arch.load(self.run.arch))
            if isinstance(self.search, DifferentiableSearch | OneShot):
                load_supernet(self.supernet, self.run.checkpoint)
            return told(lambda: read_json(stage))
        known: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": 0.0, "metrics": {}}
        if self.arch is None and isinstance(self.search, DifferentiableSearch):
            known = self._fit_search(self.search, logger)
            self.arch = _agreed(self.problem.select)
        elif self.arch is None and isinstance(self.search, OneShot | TrialSearch):
            if isinstance(self.search, OneShot):
                known = self._fit_supernet(self.search, logger)
            found = self.search.find(self.problem, self.run)
            self.arch, known = found.arch, found.known(known)
        elif self.arch is None:
            assert self.search is not None
            pick = self.search.pick
            self.arch = _agreed(lambda: pick(self.problem))
        write_json(stage, known)
        self.arch.save(self.run.arch)
        return known

    def _fit_search(
        self, module: DifferentiableSearch, logger: TensorBoardLogger
    ) -> dict[str, Any]:
        watch = Stopwatch()
        stable = StopWhenStable(self.plan.stable_epochs)
        data = self.plan.data
        speed = SpeedUp(self.plan.speed, (data.batch_size, *data.input_shape))
        saving = LastCheckpoint(self.run.checkpoint, ("supernet_val_acc", "supernet_val_loss"))
        before = [watch, DiscretizationGap(), stable, *self.plan.guards.values(), speed]
        callbacks = [*before, SearchTelemetry(), saving]
        trainer = self._trainer(module.epochs, callbacks, logger)
        self._fit(
            trainer,
            module,
            module.loaders(data),
            _saved(self.run.checkpoint),
        )
        free(self.supernet)
        times = {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds}
        return {**times, "metrics": dict(saving.metrics)}

    def _fit_supernet(self, module: OneShot, logger: TensorBoardLogger) -> dict[str, Any]:
        watch = Stopwatch()
        callbacks = [watch, TrainingTelemetry("supernet"), LastCheckpoint(self.run.checkpoint)]
        self._fit(
            self._trainer(module.epochs, callbacks, logger),
            module,
            module.loaders(self.plan.data),
            _saved(self.run.checkpoint),
            validate=False,  # its networks are ranked afterwards, each by itself
        )
        return {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds, "metrics": {}}

    def _finetune(
        self, found: dict[str, Any], logger: TensorBoardLogger
    ) -> tuple[nn.Module, dict[str, Any]]:
        assert self.arch is not None
        metrics: dict[str, float] = {}
        source = self.supernet if self.plan.inherit else self.problem.build()
        module = self._training(discretize(source, self.arch))
        data, watch = self.plan.data, Stopwatch()
        callbacks = [watch, TrainingTelemetry(), LastCheckpoint(self.run.finetune_checkpoint)]
        trainer = self._trainer(module.epochs, callbacks, logger)
        if self.plan.inherit:
            self._recalibrate(module.network, trainer.strategy.root_device)
        if self.plan.inherit and isinstance(self.search, DifferentiableSearch | OneShot):
            with interruptible():
                trainer.validate(module, data.val_dataloader(), verbose=False)
            metrics["inherited_val_acc"] = float(trainer.callback_metrics["val_acc"])
        if self.train:
            saved = _saved(self.run.finetune_checkpoint)
            self._fit(trainer, module, data.weight_loader(), saved)
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
        data = self.plan.data
        with apart(data):  # the same statistics on every rank
            recalibrate(network, (x.to(device) for x, _ in data.calibration_loader()))
        network.cpu()

    def _fit(
        self,
        trainer: pl.Trainer,
        module: Any,
        loaders: Any,
        checkpoint: Any,
        validate: bool = True,
    ) -> None:
        if checkpoint is not None:
            check_checkpoint(module, checkpoint)
        with interruptible():
            trainer.fit(
                module,
                loaders,
                self.plan.data.val_dataloader() if validate else None,
                ckpt_path=checkpoint,
                weights_only=True,
            )
        if trainer.interrupted:
            raise InterruptedRunError("interrupted")
        as_first(module)  # BatchNorm's statistics are of each rank's own images

    def _trainer(
        self, epochs: int, callbacks: list[pl.Callback], logger: TensorBoardLogger | bool
    ) -> pl.Trainer:
        given = getattr(self.plan.trainer, "keywords", {})
        return self.plan.trainer(
            **strategy_of(given.get("strategy", "auto"), given.get("devices", 1)),
            max_epochs=epochs,
            callbacks=callbacks,
            logger=logger,
            default_root_dir=self.run.path,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the loaders know their rank
        )

    def _measure(
        self, network: nn.Module, result: dict[str, Any], logger: TensorBoardLogger
    ) -> None:
        """Where latency is a cost: that of the network itself, beside the prediction."""
        inputs = (torch.zeros(1, *self.plan.data.input_shape),)
        fields = measured_fields(network, inputs, self.problem.costs, self.arch)
        if not fields:
            return
        result["latency"] = fields
        if fields["measured"] is not None:
            result["costs"][LATENCY] = fields["measured"]
            result["units"][LATENCY] = "s"
        write_picture(self.run.path, logger.experiment, self.problem.costs, fields)

    def _parts(self) -> list[dict[str, Any]]:
        assert self.arch is not None
        shape = self.plan.data.input_shape
        parts: list[dict[str, Any]] = []
        with self.attempts.attempt("parts", "no list of the network's parts"):
            found = anatomy(self.supernet, self.arch, shape, self.problem.priced)
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
            "data": self.plan.data.name,
            "seed": self.plan.seed,
            **self.plan.about,
            "arch": dict(self.arch.choices),
            "arch_hash": self.arch.hash,
            "parts": self._parts(),
            "trained": self.train,
            "metrics": {**found["metrics"], **trained["metrics"]},
            **cost_fields(self.problem.costs, self.problem.budgets, self.arch),
            "input": input_fields(self.plan.data),
            "seconds": {
                "search": found["seconds"],
                "search_cpu": found.get("cpu_seconds"),  # of this process
                "finetune": trained["seconds"],
                "this_session": seconds,
            },
            "versions": versions(),
            "warnings": self.attempts.warnings,
            **({"onnx_max_abs_diff": None} if self.plan.onnx else {}),
        }


def _agreed(choose: Callable[[], Arch]) -> Arch:
    """What is chosen on the first rank, on all."""
    return Arch.from_json(told(lambda: choose().to_json()))


def _saved(checkpoint: Path) -> Path | None:
    """Where to go on from, if there is such a file."""
    return checkpoint if told(checkpoint.exists) else None
