"""`nas report` over folders of made-up runs: what is on the front, what is left out, and why."""

import csv
import io
import json
import math
import os
import re
from contextlib import redirect_stdout
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nas.report
from nas.errors import UserError
from nas.report import compare, follow, report
from nas.report.collect import RunRecord, Sweep, collect, differing, labelled
from nas.report.figure import RING, Line, Points, Whiskers, chart, pictures
from nas.report.fronts import costs_of, fronts, series_of
from nas.report.page import page
from nas.report.terminal import csv_text

ATTACK = '</script><script>alert("x")</script><img src="https://example.org/a.png">'


def write_run(folder: Path, name: str, params: float, test_acc: float, **changed) -> Path:
    record = {
        "schema": 1,
        "status": "finished",
        "message": None,
        "space": "chain",
        "data": "digits",
        "seed": 0,
        "overrides": {"objective.strength": 0.5, "seed": 0},
        "arch": {"blocks.0": "conv_k3", "blocks.1": 5, "blocks.2": [0, 2]},
        "arch_hash": "0123456789ab",
        "metrics": {"test_acc": test_acc, "val_acc": None, "test_loss": 1.5 - test_acc},
        "costs": {"params": params, "macs": 10 * params},
        "seconds": {"total": 12.25},
    }
    run = folder / name
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(record | changed), encoding="utf-8")
    return run


def write_sweep(folder: Path) -> Path:
    """Front by params: b, a, e. c costs more than a and is worse; d ties a in cost only."""
    write_run(folder, "a", 2000, 0.90)
    write_run(folder, "b", 1000, 0.80, costs={"params": 1000, "macs": 90_000})
    write_run(folder, "c", 3000, 0.85)
    write_run(folder, "d", 2000, 0.70)
    write_run(folder, "e", 9000, 0.95, seed=1, overrides={"objective.strength": 0.1, "seed": 1})
    return folder


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "sweep")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sweep with troubled runs, reported twice: the files, their first content, the print."""
    folder = write_sweep(tmp_path_factory.mktemp("made") / "sweep")
    add_troubled_runs(folder)
    first = contents(report(folder))
    with redirect_stdout(io.StringIO()) as printed:
        files = report(folder)
    return files, first, printed.getvalue()


def contents(files):
    return [path.read_bytes() for path in (files.csv, files.png, files.svg, files.html)]


def add_troubled_runs(folder: Path) -> None:
    write_run(folder, "failed", 1, 1, status="failed", message=f"[red]out of {ATTACK}", metrics={})
    write_run(folder, "nan", 500, math.nan)
    write_run(folder, "no_cost", 500, 0.99, costs={})
    write_run(folder, "stopped", 500, 0.99, status="interrupted", message="Ctrl-C in epoch 3")
    (folder / "torn").mkdir()
    (folder / "torn" / "result.json").write_text('{"schema": 1, "sta')
    (folder / "running").mkdir()
    (folder / "running" / "config.yaml").write_text("epochs: 3\n")


def names(runs):
    return [run.name for run in runs]


def front_of(folder, cost="params", metric="test_acc"):
    return fronts([Sweep("sweep", folder, collect(folder))], cost, metric)[0]


def page_of(folder, cost="params"):
    sweeps = [Sweep("sweep", folder, collect(folder))]
    return page(sweeps, fronts(sweeps, cost, "test_acc"))


def own_text(html: str) -> str:
    """The page without its script."""
    return re.sub(r"<script>.*?</script>", "", html, count=1, flags=re.S)


def test_front_and_dominated_runs_are_told_apart_and_sorted_by_cost(sweep):
    front = front_of(sweep)

    assert names(front.members) == ["b", "a", "e"]
    assert names(front.dominated) == ["d", "c"]


def test_another_cost_gives_another_front(sweep):
    assert names(front_of(sweep, "macs").members) == ["a", "e"]


def test_a_loss_is_minimised_as_it_is(sweep):
    assert names(front_of(sweep, metric="test_loss").members) == ["b", "a", "e"]


def test_hypervolume_is_the_area_of_the_staircase_in_the_figure(sweep):
    front = front_of(sweep)
    cost, error = 1.1 * 9000, 1.1 * 0.3
    stairs = [(1000, 2000, 0.2), (2000, 9000, 0.1), (9000, cost, 0.05)]
    expected = sum(math.log10(right / left) * (error - e) for left, right, e in stairs)

    assert front.reference == pytest.approx((cost, error))
    assert front.area == pytest.approx(expected)


def test_several_sweeps_share_the_reference_point(sweep, tmp_path):
    write_run(tmp_path / "random", "0", 20_000, 0.8)
    folders = {name: tmp_path / name for name in ("sweep", "random")}
    sweeps = [Sweep(name, folder, collect(folder)) for name, folder in folders.items()]

    both = fronts(sweeps, "params", "test_acc")

    assert both[0].reference == both[1].reference == pytest.approx((22_000, 0.33))
    assert both[0].area > both[1].area
    assert [series.label.split(":")[0] for series in series_of(both)] == ["sweep", "random"]


def test_every_run_without_a_place_is_listed_with_its_reason(made):
    files, _, printed = made
    reasons = {
        "failed": "[red]out of",
        "nan": "test_acc is nan",
        "no_cost": "has no params",
        "stopped": "Ctrl-C in epoch 3",
        "torn": "Unterminated string",
        "running": "no result.json",
    }
    listed = printed.split("6 runs not shown above:")[1]
    for name, reason in reasons.items():
        line = next(line for line in listed.splitlines() if line.startswith(f"  {name}"))
        assert reason in line
    rows = list(csv.DictReader(io.StringIO(files.csv.read_text())))
    assert {row["run"]: row["place"] for row in rows} == {
        **dict.fromkeys(["a", "b", "e"], "front"),
        **dict.fromkeys(["c", "d"], "dominated"),
        **dict.fromkeys(reasons, ""),
    }


def test_report_writes_readable_files_and_says_what_to_do_next(made):
    files, _, printed = made
    folder = files.csv.parent

    assert files.png.read_bytes().startswith(b"\x89PNG")
    assert "test accuracy (%)" in files.svg.read_text()
    assert files.html == folder / "report.html"
    assert f"tensorboard --logdir {folder}" in printed
    assert "front: 3 of 5 networks, params 1,000 to 9,000 (factor 9)" in printed
    assert "reference point (params 9,900, 1 - test_acc 0.33)" in printed
    assert names(files.fronts[0].members) == ["b", "a", "e"]


def test_tensorboard_gets_the_picture_and_the_table_once(made):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = made[0].tensorboard

    assert len(list(folder.iterdir())) == 1
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == ["front/params", "front/macs"]
    text = events.Tensors("front/params/text_summary")[0].tensor_proto.string_val[0].decode()
    assert re.search(r"\| e \| 1 \| strength=0.1 \| 95.00 % \| 9,000 \|", text)
    assert re.search(r"nas export \S+/e\n", text)


def test_a_sweep_that_runs_is_followed(sweep):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = sweep / "tensorboard_report"
    follow(sweep)
    write_run(sweep, "late", 500, 0.7)
    follow(sweep)
    events = EventAccumulator(str(folder)).Reload()
    # Files of one second come in the order of a number that is not padded: 10 before 9.
    assert sorted(event.step for event in events.Images("front/macs")) == [5, 6]


def test_a_sweep_without_a_finished_run_is_followed_silently(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "config.yaml").write_text("seed: 0")
    follow(tmp_path)
    assert not (tmp_path / "tensorboard_report").exists()


def test_reporting_again_gives_the_same_files(made):
    files, first, _ = made

    assert contents(files) == first


def test_csv_parses_back_to_what_the_runs_wrote(sweep):
    sweeps = [Sweep("sweep", sweep, collect(sweep))]
    text = csv_text(sweeps, fronts(sweeps, "params", "test_acc"))

    for row in csv.DictReader(io.StringIO(text)):
        record = json.loads((sweep / row["run"] / "result.json").read_text())
        for table in ("overrides", "metrics", "costs", "seconds"):
            prefix = f"{table}."
            read = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix) and v}
            written = {name: value for name, value in record[table].items() if value is not None}
            assert {name: json.loads(value) for name, value in read.items()} == written
        assert json.loads(row["arch"]) == record["arch"]
        assert (row["seed"], row["arch_hash"]) == (str(record["seed"]), record["arch_hash"])


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text of the cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_page_asks_the_network_for_nothing(sweep):
    html = page_of(sweep)
    elements = Elements(html).found

    assert not any({"src", "href", "srcset", "action"} & attrs.keys() for _, attrs in elements)
    assert "@import" not in own_text(html)
    assert "url(" not in own_text(html)
    policy = next(a["content"] for _, a in elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_text_of_a_run_never_becomes_markup(sweep):
    add_troubled_runs(sweep)
    write_run(
        sweep, f"z {ATTACK[-9:-1]}", 9500, 0.96, overrides={ATTACK: ATTACK}, arch={ATTACK: ATTACK},
        arch_hash=ATTACK, metrics={"test_acc": 0.96, ATTACK: 1}, costs={"params": 9500, ATTACK: 2},
    )  # fmt: skip
    plain, attacked = Elements(page_of(sweep / "a")).found, Elements(page_of(sweep)).found

    assert [tag for tag, _ in attacked].count("script") == 4
    assert {tag for tag, _ in attacked} - {tag for tag, _ in plain} <= {"section"}
    assert not any(tag == "img" for tag, _ in attacked)
    assert ATTACK in unescape(own_text(page_of(sweep)))


FIGURES = st.tuples(st.integers(1, 10**9), st.integers(0, 1000).map(lambda n: n / 1000))


def run_of(name, params, acc):
    figures = {"metrics": {"test_acc": acc}, "costs": {"params": params}}
    return RunRecord(Path(), name, "finished", **figures)


@given(st.lists(st.lists(FIGURES, min_size=1, max_size=6), min_size=1, max_size=3), st.booleans())
def test_a_chart_has_each_run_once_where_its_figures_are(sweeps, detailed):
    records = [
        Sweep(f"s{i}", Path(), tuple(run_of(f"{i}-{j}", *pair) for j, pair in enumerate(figures)))
        for i, figures in enumerate(sweeps)
    ]
    found = fronts(records, "params", "test_acc")
    runs = {run.name: run for front in found for run in front.runs}
    ids = {run: run.name for run in runs.values() if detailed or found[0].dominance(run) == "front"}
    ids |= {run: run.name for front in found for run in front.members}
    marks = chart(found, ids).marks
    points = [m for m in marks if isinstance(m, Points) and m.radius < RING]
    names = [name for m in points for name in (*m.runs, *m.names)]
    assert sorted(names) == sorted(runs)
    for mark in points:
        for x, y, name in zip(mark.x, mark.y, mark.runs or mark.names, strict=True):
            run = runs[name]
            assert x == pytest.approx(run.costs["params"], rel=1e-4)
            assert y == pytest.approx(100 * run.metrics["test_acc"], rel=1e-4)
            assert mark.series == ("" if len(sweeps) == 1 else f"s{name[0]}")
            if mark.runs:
                on_front = any(run in front.members for front in found)
                assert mark.hollow == (not on_front)
    lines = [m for m in marks if isinstance(m, Line)]
    assert [sorted(m.x) == list(m.x) and sorted(m.y) == list(m.y) for m in lines] == [True] * len(
        sweeps
    )
    bars = [m for m in marks if isinstance(m, Whiskers)]
    assert bars == []


def test_page_holds_a_chart_and_load_commands_per_cost(sweep, monkeypatch):
    monkeypatch.chdir(sweep.parent)
    html = page_of(sweep)
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', html, re.S)[1])

    assert list(charts) == ["params", "macs"]
    assert charts["params"]["marks"][0]["x"] == [1000, 2000, 9000]
    assert charts["macs"]["marks"][0]["x"] == [20_000, 90_000]
    sections = re.findall(r'<section data-cost="(\w+)"( hidden)?>(.*?)</section>', html, re.S)
    loads = {cost: re.findall(r'nas\.load\("(.*?)"\)', unescape(s)) for cost, _, s in sections}
    assert loads == {"params": ["sweep/b", "sweep/a", "sweep/e"], "macs": ["sweep/a", "sweep/e"]}
    assert [hidden for _, hidden, _ in sections] == ["", " hidden"]


def test_a_column_is_never_sorted_by_nan(sweep):
    write_run(sweep, "z", 9500, 0.96, costs={"params": 9500, "macs": math.nan})

    assert '<td data-value="">nan</td>' in page_of(sweep)


def test_a_cost_that_a_sweep_lacks_is_not_offered(sweep, tmp_path):
    write_run(tmp_path / "other", "0", 100, 0.5, costs={"params": 100, "latency_ms": 2.5})
    sweeps = [Sweep(name, tmp_path / name, collect(tmp_path / name)) for name in ("sweep", "other")]

    assert costs_of(sweeps, "test_acc") == ("params",)


def test_seeds_of_one_setting_share_a_colour(tmp_path):
    for strength in (8, 0.5, 1):
        for seed in range(2):
            write_run(
                tmp_path, f"{strength}-{seed}", 100 * strength + seed, 0.9 + seed / 100, seed=seed,
                overrides={"objective.strength": strength, "seed": seed, "epochs": 3},
            )  # fmt: skip
    series = series_of([front_of(tmp_path)])

    assert differing(collect(tmp_path)) == ("objective.strength",)
    assert [s.label for s in series] == ["strength=0.5", "strength=1", "strength=8"]
    assert [{run.seed for run in s.runs} for s in series] == [{0, 1}] * 3
    assert len({s.colour for s in series}) == 3


def test_compare_overlays_labelled_sweeps(sweep, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "random", "0", 20_000, 0.5)
    monkeypatch.chdir(tmp_path)

    files = compare({"ours": sweep, "by chance": Path("random")})

    assert files.html == Path("report/report.html")
    assert [front.label for front in files.fronts] == ["ours", "by chance"]
    assert "by chance: 1 network" in files.svg.read_text()
    assert "by chance: front: 1 of 1 network," in capsys.readouterr().out
    assert not (sweep / "report.html").exists()


def test_folders_are_labelled_by_name_or_by_path_where_names_repeat():
    x, y, z = Path("x/runs"), Path("y/runs/"), Path("z")

    assert labelled([x, z]) == {"runs": x, "z": z}
    assert labelled([x, y]) == {"x/runs": x, "y/runs": y}
    with pytest.raises(UserError, match="given twice"):
        labelled([z, Path("./z/")])


@pytest.mark.parametrize(
    ("cost", "metric", "said"),
    [("parms", "test_acc", "x: macs, params"), ("macs", "acc", "y: test_acc, test_loss")],
)
def test_an_unknown_axis_is_refused_with_those_there_are(sweep, cost, metric, said):
    with pytest.raises(UserError, match=said):
        report(sweep, cost, metric)


def test_without_a_finished_run_the_error_says_why(tmp_path):
    write_run(tmp_path, "0", 1, 1, status="failed", message="loss became NaN in epoch 2")

    with pytest.raises(UserError, match=r"no finished run .* loss became NaN in epoch 2"):
        report(tmp_path)
    assert not (tmp_path / "report.csv").exists()


def test_a_folder_without_runs_and_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="no run below"):
        report(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        report(tmp_path / "absent")
    with pytest.raises(UserError, match="give one"):
        report([])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "a list, not an object"),
        ('{"schema": 2}', "schema 2"),
        ('{"schema": 1, "status": "done"}', "status 'done'"),
        ('{"schema": 1, "status": "finished", "costs": [1]}', "costs is a list"),
        ('{"schema": 1, "status": "finished", "costs": {"params": "1"}}', "costs.params is '1'"),
        ('{"schema": 1, "status": "finished", "seed": "x"}', "seed 'x'"),
        ('{"schema": 1, "status": "finished", "message": "\\ud800"}', "surrogates not allowed"),
        ("[" * 100_000, "nested"),
        ('{"schema": 1, "status": "finished", "costs": {"params": 1' + "0" * 400 + "}}", "large"),
        (b"\xff\xfe", "codec can't decode"),
    ],
)
def test_a_result_that_cannot_be_understood_is_named_and_the_rest_goes_on(sweep, text, reason):
    (sweep / "odd").mkdir()
    content = text if isinstance(text, bytes) else text.encode()
    (sweep / "odd" / "result.json").write_bytes(content)

    odd = next(run for run in collect(sweep) if run.name == "odd")

    assert odd.status == "unreadable"
    assert reason in odd.message
    assert len(front_of(sweep).runs) == 5


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_a_folder_name_that_is_no_text_does_not_stop_the_report(sweep):
    os.rename(sweep / "a", os.fsencode(sweep) + b"/a\xff")

    sweeps = [Sweep("sweep", sweep, collect(sweep))]
    both = [csv_text(sweeps, [front_of(sweep)]), page_of(sweep)]

    assert all("a?" in text.encode().decode() for text in both)


def test_a_dollar_sign_in_a_setting_is_no_formula(sweep):
    write_run(sweep, "z", 9000, 0.5, overrides={"data.root": "$x_{$"})

    assert "root=$x_{$" in pictures([front_of(sweep)], ("svg",))[0].decode()


def test_a_missing_extra_is_named_and_table_and_page_are_there_all_the_same(
    sweep, capsys, monkeypatch
):
    load = nas.report.figure.import_module

    def absent(module):
        if module.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {module!r}")
        return load(module)

    monkeypatch.setattr(nas.report.figure, "import_module", absent)

    with pytest.raises(UserError, match=r"need matplotlib.*pip install 'dnas\[report\]'"):
        report(sweep)
    assert "front: 3 of 5 networks" in capsys.readouterr().out
    assert (sweep / "report.csv").exists()
    assert (sweep / "report.html").exists()


def test_an_out_that_cannot_be_written_is_refused(sweep, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(UserError, match="cannot write"):
        report(sweep, out=tmp_path / "file" / "below")
