"""The stages of a run: search -> discretize -> fine-tune -> test -> export, each resumable."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from nas.anatomy import anatomy
from nas.arch import Arch
from nas.decision import free
from nas.discrete import discretize
from nas.errors import InterruptedRunError, UserError
from nas.export import load_supernet, onnx, state_bytes
from nas.latency.figure import NAME as LATENCY
from nas.latency.figure import measured_fields, write_picture
from nas.plan import Plan, Problem
from nas.recalibrate import recalibrate
from nas.result import (
    SCHEMA,
    cost_fields,
    input_fields,
    read_json,
    versions,
    write_drawing,
)
from nas.run import RunDir, write_atomic, write_json
from nas.run_log import log_final, logger_of
from nas.search.by_trials import TrialSearch
from nas.search.callbacks import LastCheckpoint, StopWhenStable
from nas.search.differentiable import DifferentiableSearch
from nas.search.gap import DiscretizationGap
from nas.search.oneshot import OneShot
from nas.search.speed import SpeedUp
from nas.search.stopwatch import Stopwatch
from nas.search.telemetry import SearchTelemetry, TrainingTelemetry
from nas.train import Training, strategy_of


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
        self.problem = problem or Problem(plan)
        self.supernet = self.problem.supernet
        if arch is not None:
            self.problem.check(arch)
        self.search = None if arch else self._searcher()
        self._training(discretize(self.supernet, arch))

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
            return module
        return self.plan.search(supernet=self.supernet, seed=self.plan.seed)

    def _training(self, network: nn.Module) -> Training:
        return self.plan.finetune(network=network, seed=self.plan.seed)

    def __call__(self) -> dict[str, Any]:
        """Run what is left to do, write the artefacts, return what is in result.json."""
        started = time.monotonic()
        logger = logger_of(self.plan, self.problem, self.run.path)
        found = self._find(logger)
        network, trained = self._finetune(found, logger)
        result = self._result(found, trained, time.monotonic() - started)
        self._measure(network, result, logger)
        write_atomic(self.run.network, state_bytes(network))
        if self.plan.onnx:
            result["onnx_max_abs_diff"] = self._onnx(network)
        write_drawing(self.run, result)
        write_json(self.run.result, result)
        log_final(logger, result, network, self.plan, self.problem)
        self.run.finetune_checkpoint.unlink(missing_ok=True)
        return result

    def _find(self, logger: TensorBoardLogger) -> dict[str, Any]:
        """The search stage: the architecture, and what is known of the search."""
        stage = self.run.path / "search.json"
        if self.arch is None and self.run.arch.exists() and stage.exists():
            self.arch = Arch.load(self.run.arch)
            if isinstance(self.search, DifferentiableSearch | OneShot):
                load_supernet(self.supernet, self.run.checkpoint)
            return read_json(stage)
        known: dict[str, Any] = {"seconds": 0.0, "cpu_seconds": 0.0, "metrics": {}}
        if self.arch is None and isinstance(self.search, DifferentiableSearch):
            known = self._fit_search(self.search, logger)
            self.arch = self.problem.select()
        elif self.arch is None and isinstance(self.search, OneShot | TrialSearch):
            if isinstance(self.search, OneShot):
                known = self._fit_supernet(self.search, logger)
            found = self.search.find(self.problem, self.run)
            self.arch, known = found.arch, found.known(known)
        elif self.arch is None:
            assert self.search is not None
            self.arch = self.search.pick(self.problem)
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
        saving = [SearchTelemetry(), LastCheckpoint(self.run.checkpoint)]
        callbacks = [watch, DiscretizationGap(), stable, *self.plan.guards.values(), speed, *saving]
        trainer = self._trainer(module.epochs, callbacks, logger)
        self._fit(
            trainer,
            module,
            module.loaders(data),
            self.run.checkpoint if self.run.checkpoint.exists() else None,
        )
        free(self.supernet)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        kept = {k: metrics[k] for k in ("supernet_val_acc", "supernet_val_loss") if k in metrics}
        return {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds, "metrics": kept}

    def _fit_supernet(self, module: OneShot, logger: TensorBoardLogger) -> dict[str, Any]:
        watch = Stopwatch()
        callbacks = [watch, TrainingTelemetry("supernet"), LastCheckpoint(self.run.checkpoint)]
        saved = self.run.checkpoint
        self._fit(
            self._trainer(module.epochs, callbacks, logger),
            module,
            module.loaders(self.plan.data),
            saved if saved.exists() else None,
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
            trainer.validate(module, data.val_dataloader(), verbose=False)
            metrics["inherited_val_acc"] = float(trainer.callback_metrics["val_acc"])
        saved = self.run.finetune_checkpoint
        if self.train:
            self._fit(trainer, module, data.weight_loader(), saved if saved.exists() else None)
        for evaluate, loader in (
            (trainer.validate, data.val_dataloader()),
            (trainer.test, data.test_dataloader()),
        ):
            evaluate(module, loader, verbose=False)
            # Of this evaluation alone; Lightning returns only what went to a logger.
            metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        return module.network.cpu().eval(), {"metrics": metrics, "seconds": watch.seconds}

    def _recalibrate(self, network: nn.Module, device: torch.device) -> None:
        """The statistics inherited are those of a mixture of architectures."""
        network.to(device)
        recalibrate(network, (x.to(device) for x, _ in self.plan.data.calibration_loader()))
        network.cpu()

    def _fit(
        self,
        trainer: pl.Trainer,
        module: Any,
        loaders: Any,
        checkpoint: Any,
        validate: bool = True,
    ) -> None:
        try:
            trainer.fit(
                module,
                loaders,
                self.plan.data.val_dataloader() if validate else None,
                ckpt_path=checkpoint,
                weights_only=True,
            )
        except SystemExit:
            raise InterruptedRunError("interrupted") from None
        if trainer.interrupted:
            raise InterruptedRunError("interrupted")

    def _trainer(
        self, epochs: int, callbacks: list[pl.Callback], logger: TensorBoardLogger
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

    def _onnx(self, network: nn.Module) -> float | None:
        example = next(iter(self.plan.data.test_dataloader()))[0][:16]
        try:
            return onnx(network, example, self.run.onnx)
        except UserError as error:
            logging.getLogger("nas").warning("no ONNX file: %s", error)
            return None

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
        found = anatomy(self.supernet, self.arch, shape, self.problem.priced)
        return [part.to_json() for part in found]

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
        }
