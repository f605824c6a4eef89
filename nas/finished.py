"""A finished run as Python objects: the front as a table, each network with its files."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import display_path
from nas.artifacts.reading import read_json
from nas.config.compose import Arguments, parse
from nas.config.given import Given, giving
from nas.errors import UserError
from nas.export.check import card, markdown
from nas.export.command import export
from nas.export.loading import load
from nas.extract import extract
from nas.front import heading, shown
from nas.process import undisturbed
from nas.quantities import error_of
from nas.report.collect import RunRecord, Sweep, collect
from nas.report.figure import pictures
from nas.report.fronts import fronts
from nas.tables import Grid

TRUSTED = "trusted"  # among what is given: the call itself has named what its folder names


@dataclass(frozen=True)
class Space:
    """A space given from Python, called as one of the configuration is.

    Args:
        source: a supernet, of which each call gives a copy, or what builds one of the shape of an
            input and the number of outputs.
    """

    source: nn.Module | Callable[..., nn.Module]

    def __call__(self, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
        """A supernet."""
        if isinstance(self.source, nn.Module):
            return copy.deepcopy(self.source).train()
        return self.source(input_shape, num_outputs)


class Picture(str):
    """A picture as the text of an SVG file, which a notebook shows."""

    def _repr_svg_(self) -> str:
        return str(self)


class Card(dict[str, Any]):
    """What a network is, how to feed it, what it costs: prints, and is shown, as a page."""

    def __str__(self) -> str:
        return markdown(self)

    _repr_markdown_ = __str__


@contextmanager
def _called(
    verb: str, folder: Path, options: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[Arguments]:
    """Inside, a verb can be carried out on a run with these arguments, and objects are given."""
    asked = Given()
    for key, value in {**({"trust": True} if TRUSTED in given else {}), **options}.items():
        asked.add(key, value)
    if asked.nodes:
        raise UserError(f"{', '.join(asked.nodes)}: nas {verb} takes no such mapping on a run")
    arguments = parse(verb, [str(folder), *asked.words])
    with undisturbed(), giving({**given, **asked.objects}):
        yield arguments


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network of a run, with its files.

    Args:
        record: what its folder says of it.
        given: objects that the folder does not hold, by the key of the configuration.
    """

    record: RunRecord
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Of its files: network.pt, network.onnx, arch.json, result.json, ..."""
        return self.record.path

    @property
    def arch(self) -> Arch:
        """Decision -> option."""
        return Arch(self.record.space, dict(self.record.arch))

    @property
    def metrics(self) -> Mapping[str, float]:
        """``val_acc``, ``test_acc``, ``test_loss``, ..."""
        return self.record.metrics

    @property
    def costs(self) -> Mapping[str, float]:
        """Exact costs, each in its unit: counts, bytes, seconds."""
        return self.record.costs

    @cached_property
    def network(self) -> nn.Module:
        """Plain modules with the trained weights, in eval mode on the CPU; read when first asked.

        Raises:
            UserError: the space was given from Python, and is not given now.
        """
        with giving(self.given):
            return load(self.folder, self.given.get("space"), self.given.get("space.model"))

    def export(self, *formats: str, **options: Any) -> list[Path]:
        """Write files that deploy, each checked against the network, as ``nas export`` does.

        Args:
            formats: "onnx", "int8_onnx", "python", "pt2", ...
            options: those of ``nas export``: ``out=``, ``overwrite=True``, ``qat=True``, ...

        Returns:
            The files of these formats; the card lies beside them.

        Raises:
            UserError: an unknown format or option, a file that is there already, or one that was
                not kept, since it computes something else.
        """
        asked = {"format": list(formats or ("onnx",)), **options}
        with _called("export", self.folder, asked, self.given) as arguments:
            content = export(arguments)
        out = Path(arguments.options.out or self.folder / "export")
        asked_for = (content["formats"][name] for name in arguments.options.format)
        return [out / file for row in asked_for for file in row["files"]]

    @property
    def card(self) -> Card:
        """The deployment card: that of ``export``, if there is one, else without files."""
        path = self.folder / "export" / "card.json"
        if path.is_file():
            return Card(read_json(path))
        return Card(card(RunDir(self.folder).read_result() or {}, self.record.trained, {}))

    def __repr__(self) -> str:
        figures = ", ".join(f"{name}={text}" for name, text in self._figures())
        return f"<network {self.record.arch_hash}: {figures}, in {display_path(self.folder)}>"

    def _figures(self) -> Iterator[tuple[str, str]]:
        for name in _columns(self.record):
            value = {**self.metrics, **self.costs}.get(name)
            yield heading(name), shown(name, value, self.record.units)


class FrontTable(Sequence[TrainedNetwork]):
    """Trained networks, the smallest first: a table of 80 columns, and a table in a notebook.

    Args:
        networks: in any order.
        where: the folder that they are of.
        budgets: cost -> at most so much, for `best`.
    """

    def __init__(
        self,
        networks: Sequence[TrainedNetwork],
        where: Path,
        budgets: Mapping[str, float] | None = None,
    ) -> None:
        self._networks = sorted(networks, key=lambda n: (n.costs["params"], n.costs["macs"]))
        self.where, self._budgets = where, budgets or {}

    @overload
    def __getitem__(self, index: int) -> TrainedNetwork: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TrainedNetwork]: ...
    def __getitem__(self, index: int | slice) -> TrainedNetwork | Sequence[TrainedNetwork]:
        return self._networks[index]

    def __len__(self) -> int:
        return len(self._networks)

    @property
    def best(self) -> TrainedNetwork:
        """By the metric of the task on the validation part, of those inside the budgets."""
        inside = [
            network
            for network in self
            if all(network.costs[name] <= bound for name, bound in self._budgets.items())
        ]
        metric = inside[0].record.primary.replace("test_", "val_")
        return min(inside, key=lambda network: error_of(metric, network.metrics[metric]))

    def rows(self) -> list[dict[str, Any]]:
        """A mapping for each network: its hash, metrics, exact costs, and folder."""
        return [
            {
                "network": network.record.arch_hash,
                **{name: network.metrics.get(name) for name in _columns(network.record)[:2]},
                **network.costs,
                "folder": str(network.folder),
            }
            for network in self
        ]

    def to_pandas(self) -> Any:
        """The `rows` as a DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas() needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.rows())

    def figure(self, cost: str = "params", metric: str | None = None) -> Picture:
        """The metric over a cost, as ``nas report`` draws it.

        Args:
            metric: e.g. "test_loss"; None: the metric of the task on the test part.

        Raises:
            UserError: no network has this cost and metric, or matplotlib is not installed.
        """
        runs = tuple(network.record for network in self)
        sweep = Sweep(self.where.resolve().name, self.where, runs)
        (svg,) = pictures(fronts([sweep], cost, metric or runs[0].primary), ("svg",))
        return Picture(svg.decode())

    def __repr__(self) -> str:
        return self._grid().text()

    def _repr_html_(self) -> str:
        try:
            picture = self.figure() if len(self) > 1 else ""
        except UserError:  # no matplotlib
            picture = ""
        return self._grid().html() + picture

    def _grid(self) -> Grid:
        names = list(dict.fromkeys(name for one in self for name in _columns(one.record)))
        best = self.best
        rows = [
            [
                one.record.arch_hash + " *" * (one is best),
                *(shown(n, {**one.metrics, **one.costs}.get(n), one.record.units) for n in names),
            ]
            for one in self
        ]
        head = ["network", *map(heading, names)]
        lines = [f"{len(self)} network(s) of {display_path(self.where)}; * best by validation"]
        return Grid(lines, head, rows, left=("network",), folded=("network",))


def _columns(record: RunRecord) -> list[str]:
    """Names of what a table says of a network: validation and test metric, and the costs."""
    return [record.primary.replace("test_", "val_"), record.primary, *record.costs]


class FinishedRun:
    """A finished search.

    Args:
        folder: of the run.
        given: objects that the folder does not hold, by the key of the configuration.

    Raises:
        UserError: no finished run there.
    """

    def __init__(self, folder: Path, given: Mapping[str, Any] | None = None) -> None:
        result = RunDir(folder).read_result() or {}
        if result.get("status") != "finished":
            raise UserError(
                f"{folder} holds no finished run (no result.json that says so): finish it with "
                f"nas.search(..., resume='{folder}') or `nas search resume={folder}`"
            )
        self.folder, self._given = Path(folder), given or {}
        self._budgets: Mapping[str, float] = result.get("budgets") or {}

    @property
    def front(self) -> FrontTable:
        """All networks that were trained in the run's folder, the smallest first."""
        found = [run for run in collect(self.folder) if run.status == "finished" and run.trained]
        return self._table(found, self._budgets)

    @property
    def best(self) -> TrainedNetwork:
        """The best of the front, see `FrontTable.best`."""
        return self.front.best

    def extract(self, **options: Any) -> FrontTable:
        """Other networks out of the same search, without searching again, as ``nas extract`` does.

        Args:
            options: those of ``nas extract``, ``front=12``, ``fine_tune=True``, ``cost="macs"``,
                and keys of the run's configuration, ``budget={"params": "20k"}``.

        Raises:
            UserError: a wrong option, a search that kept no supernet, or a budget that no network
                meets.
        """
        with _called("extract", self.folder, options, self._given) as arguments:
            taken = extract(arguments, announced=False)
        return self._table([record for run in taken for record in collect(run.path)])

    def _table(
        self, records: Sequence[RunRecord], budgets: Mapping[str, float] | None = None
    ) -> FrontTable:
        networks = [TrainedNetwork(record, self._given) for record in records]
        return FrontTable(networks, self.folder, budgets)

    def __repr__(self) -> str:
        return repr(self.front)

    def _repr_html_(self) -> str:
        return self.front._repr_html_()
