"""The keys that verbs have of their own, beside those of a run's configuration."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from nas.config.schema import Count, Name, Share, Whole, checked
from nas.errors import UserError


@checked()
@dataclass(frozen=True)
class ExtractOptions:
    """Take other networks out of a finished search, without searching again.

    Every key of the run's own config.yaml can be set, too: a budget, budget.params=20k or
    budget.macs=30%, or how the networks are trained, finetune.epochs=10. For several devices
    budget.latency=3ms is for each, and budget.latency=[3ms,8ms] one after another.

    Args:
        front: 0: the most probable network inside the budgets; N: a front of at most N networks,
            from the smallest on.
        cost: the cost that the networks of a front are spread over.
        fine_tune: train each network; else it has the supernet's weights as they are.
        profile: files of `nas profile`. Of several devices, [A,B,...], each has a folder of its
            name, and all of them are in one table.
        out: the folder of the networks' folders; null: RUN/front.
        trust: run code from outside this package that the run's config.yaml names.

    Raises:
        UserError: an empty list of profiles.
    """

    front: Whole = 0
    cost: Name = "params"
    fine_tune: bool = False
    profile: tuple[Name, ...] | None = None
    out: Name | None = None
    trust: bool = False

    def __post_init__(self) -> None:
        if self.profile == ():
            raise UserError("profile=[] names no file; e.g. profile=[A.json,B.json]")


@checked()
@dataclass(frozen=True)
class ExportOptions:
    """Write files that deploy, each of them run and compared with the network, and a card.

    Of a run, data.KEY=VALUE sets where its data are, e.g. data.root=FOLDER; of an arch.json
    without a run, any key of the configuration can be set, e.g. data=digits.

    Args:
        format: state_dict, python, onnx, pt2, pte, int8_onnx, int8_pte, c, pte_cortex_m,
            tflite_int8; several as a,b.
        board: with format=c: run it in QEMU on these, too, for flash, RAM and instructions:
            cortex_m4, cortex_m7, cortex_m55; with format=pte_cortex_m: the one that it is for.
        out: where they go, with card.md, card.json and export.json; null: RUN/export.
        overwrite: replace files that are there.
        calibration: training images from which int8 learns its ranges.
        qat: train the network for int8 before it is quantized.
        qat_epochs: how long.
        qat_lr: the learning rate of that training.
        max_drop: of the accuracy on the test part that an int8 file may lose and be kept;
            0.05: 5 points.
        latency: measure each runtime.
        weights: of an arch.json without a run: the file of its weights.
        config_dir: of an arch.json without a run: a folder with a space or data of your own.
        trust: run code from outside this package that the run's config.yaml names.
    """

    format: tuple[Name, ...] = ("onnx",)
    board: tuple[Name, ...] = ()
    out: Name | None = None
    overwrite: bool = False
    calibration: Count = 512
    qat: bool = False
    qat_epochs: Count = 3
    qat_lr: Annotated[float, Field(gt=0, le=1)] = 1e-3
    max_drop: Share = 0.05
    latency: bool = True
    weights: Name | None = None
    config_dir: Name | None = None
    trust: bool = False


@dataclass(frozen=True)
class ReportOptions:
    """Gather all runs below some folders: front, table, CSV, pictures and a page of HTML.

    It reads figures; nothing that a folder names is run.

    Args:
        cost: of the fronts.
        metric: of the fronts, e.g. test_loss; null: what networks of their task are judged by.
        out: where the files go; null: the folder itself, or ./report for several.
        spread: draw mean and standard deviation over the seeds of each setting.
        serve: show the runs in TensorBoard as well.
    """

    cost: Name = "params"
    metric: Name | None = None
    out: Name | None = None
    spread: bool = False
    serve: bool = False


@dataclass(frozen=True)
class DrawOptions:
    """Print each network block by block, and write RUN/network.svg and RUN/network.csv.

    Nothing that a folder names is run.
    """


@dataclass(frozen=True)
class CompletionOptions:
    """Print what a shell needs to complete the words of `nas` with the TAB key.

    Options of your own, of --config-dir, are not among them.
    """
