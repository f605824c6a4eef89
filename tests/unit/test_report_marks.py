"""Budgets, knees, seeds, choices, curves and details of a report."""

import json
import shlex
from pathlib import Path

import pytest

from nas.artifacts import RunDir
from nas.config.compose import parse
from nas.report import report
from nas.report.collect import Sweep, by_search, collect
from nas.report.figure import DOT, RING, Line, Points, Whiskers, chart
from nas.report.fronts import Front, budgets_of, fronts, series_of
from nas.report.page import details, frequencies, page
from nas.report.templates import COLOURS, GREYS
from nas.report.tensorboard import curves
from nas.report.terminal import print_next

PART = {"name": "a", "option": "conv_k3", "channels": 8, "size": [4, 4], "costs": {"params": 3.0}}


def write(folder: Path, name: str, params: float, acc: float, **changed) -> None:
    record = {
        "schema": 1,
        "status": "finished",
        "seed": 0,
        "overrides": {},
        "arch": {"blocks.0": "conv_k3"},
        "arch_hash": name,
        "metrics": {"test_acc": acc},
        "costs": {"params": params},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "result.json").write_text(json.dumps(record | changed))


def front_of(folder: Path) -> Front:
    return fronts([Sweep("s", folder, collect(folder))], "params", "test_acc")[0]


def test_the_knee_is_where_little_more_is_gained(tmp_path):
    for name, params, acc in (("a", 100, 0.5), ("b", 200, 0.9), ("c", 10_000, 0.92)):
        write(tmp_path, name, params, acc)
    front = front_of(tmp_path)
    knee = front.knee()
    assert knee is not None
    assert knee.name == "b"
    marks = chart([front], {r: r.name for r in front.runs}).marks
    rings = [m for m in marks if isinstance(m, Points) and m.radius == RING]
    assert [(m.x, m.runs) for m in rings] == [([200], ["b"])]


def test_two_members_have_no_knee(tmp_path):
    write(tmp_path, "a", 100, 0.5)
    write(tmp_path, "b", 200, 0.9)
    assert front_of(tmp_path).knee() is None


def test_budgets_of_the_cost_shown_are_lines(tmp_path):
    write(tmp_path, "a", 100, 0.5, budgets={"params": 150, "macs": 7})
    write(tmp_path, "b", 200, 0.9, budgets={"params": 300})
    front = front_of(tmp_path)
    assert budgets_of([front]) == [150, 300]
    lines = [mark for mark in chart([front]).marks if isinstance(mark, Line) and mark.label]
    assert [(line.x, line.label) for line in lines] == [
        ([150, 150], "budget 150"),
        ([300, 300], "budget 300"),
    ]


def test_runs_without_any_setting_are_in_the_legend_too(tmp_path):
    for name, overrides in (("a", {}), ("b", {}), ("c", {"tau": 1}), ("d", {"tau": 1})):
        write(tmp_path, name, 100, 0.5, overrides=overrides)
    legend = chart([front_of(tmp_path)]).legend
    assert sorted(label for _, label, *_ in legend) == ["defaults", "tau=1"]


def test_the_best_of_a_search_is_marked_and_an_untrained_network_says_so(tmp_path, capsys):
    """The run has copies of one network's files: that one is shown, once, with the mark."""
    runs = tmp_path / "runs"
    write(runs, "a", 200, 0.9, arch_hash="hash-b")
    write(runs, "a/front/hash-a", 100, 0.5, arch_hash="hash-a")
    write(runs, "a/front/hash-b", 200, 0.9, arch_hash="hash-b")
    write(runs, "a/front/hash-c", 300, 0.8, arch_hash="hash-c", trained=False)
    files = report(runs)
    front = files.fronts[0]
    assert [(run.name, run.best) for run in front.runs] == [
        ("a/front/hash-a", False), ("a/front/hash-b", True), ("a/front/hash-c", False),
    ]  # fmt: skip
    dots = [m for m in chart(files.fronts).marks if isinstance(m, Points) and m.radius == DOT]
    assert [(dot.x, dot.y, dot.colour) for dot in dots] == [([200], [90], "#ffffff")]
    html, printed = files.html.read_text(), capsys.readouterr().out
    for shown in (html, printed):
        assert shown.count("a/front/hash-b *") >= 1
        assert "* best of its search by validation" in shown
        assert "80.00 % (not trained)" in shown
        assert "90.00 % (not" not in shown
        assert "front: 2 of 3 networks" in shown
    assert "<h1>runs: 3 networks</h1>" in html
    assert "with the supernet\u0027s weights" in html or "with the supernet's weights" in html


@pytest.mark.parametrize(
    ("leaves", "kept", "more"),
    [("trials", False, True), ("supernet", True, True), ("supernet", False, False),
     ("alphas", True, True), ("alphas", False, False), ("nothing", True, False)],
)  # fmt: skip
def test_a_run_ends_with_what_works_next(leaves, kept, more, tmp_path, monkeypatch, capsys):
    """Whatever is offered passes the grammar; what is no longer possible is not offered."""
    monkeypatch.chdir(tmp_path)
    run = RunDir(Path("runs/a b"))
    run.path.mkdir(parents=True)
    if kept:
        run.checkpoint.touch()
    print_next(run, leaves, 12)
    head, *lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line)[1:] for line in lines]
    assert head == "next:"
    assert commands[0] == ["nas", "export", "runs/a b"]
    assert ["nas", "extract", "runs/a b", "front=12", "fine_tune=true"] in commands or not more
    smaller = ["nas", "extract", "runs/a b", "budget.params=30%", "fine_tune=true"]
    assert smaller in commands or not more
    assert len(commands) == (3 if more else 1)
    for _, verb, *words in commands:
        assert parse(verb, words).places == ["runs/a b"]


def test_a_best_that_is_dominated_has_a_dot_that_shows_on_its_hollow_point(tmp_path):
    write(tmp_path, "a", 200, 0.5, arch_hash="hash-b")
    write(tmp_path, "a/front/hash-a", 100, 0.9, arch_hash="hash-a")
    write(tmp_path, "a/front/hash-b", 200, 0.5, arch_hash="hash-b")
    marks = chart([front_of(tmp_path)]).marks
    dots = [m for m in marks if isinstance(m, Points) and m.radius == DOT]
    assert [(dot.x, dot.colour) for dot in dots] == [([200], COLOURS[0])]


def test_seeds_of_a_setting_are_summed_up(tmp_path):
    for seed, acc in enumerate((0.5, 0.7, 0.9)):
        write(tmp_path, f"a{seed}", 100, acc, seed=seed, overrides={"strength": 1, "seed": seed})
    write(tmp_path, "b", 50, 0.4, overrides={"strength": 2, "seed": 0})
    front = front_of(tmp_path)
    repeated, single = series_of([front])
    found = repeated.spread(front)
    assert found is not None
    assert (found.cost, found.metric) == pytest.approx((100, 70))
    assert (found.cost_sd, found.metric_sd) == pytest.approx((0, 20))
    assert single.spread(front) is None
    drawn = [m for m in chart([front], spread=True).marks if isinstance(m, Whiskers)]
    assert [(m.x, m.y) for m in drawn] == [pytest.approx((100, 70))]
    assert not any(isinstance(m, Whiskers) for m in chart([front]).marks)


def test_each_search_has_a_front_and_baselines_are_grey_and_dashed(tmp_path):
    write(tmp_path, "r", 100, 0.5, search="random")
    write(tmp_path, "z", 150, 0.5, search="zero_cost")
    write(tmp_path, "f", 200, 0.8, search="fairnas", metrics={})  # a search with a front of two
    write(tmp_path / "f" / "front", "one", 100, 0.7)
    write(tmp_path / "f" / "front", "two", 300, 0.9)
    write(tmp_path, "s", 100, 0.9, search="spos", status="failed", message="out of memory")
    sweep = Sweep("s", tmp_path, collect(tmp_path))
    parts = by_search(sweep, "params", "test_acc")
    names = {part.label: [run.name for run in part.runs] for part in parts}
    fair = ["f", "f/front/one", "f/front/two", "s"]
    assert names == {"fairnas": fair, "random": ["r"], "zero_cost": ["z"]}
    found = fronts(parts, "params", "test_acc")
    labels = [series.label.partition(",")[0] for series in series_of(found)]
    assert labels == ["fairnas: 2 networks", "random: 1 network", "zero_cost: 1 network"]
    drawn = chart(found)
    lines = [mark for mark in drawn.marks if isinstance(mark, Line)]
    assert [line.dash for line in lines] == ["", "6 4", "6 4"]
    assert [line.colour for line in lines] == [COLOURS[0], *GREYS[:2]]
    assert [entry[2:] for entry in drawn.legend] == [(line.colour, line.dash) for line in lines]
    assert (tmp_path / "report.html") == report(tmp_path).html


def test_a_lone_search_is_one_front(tmp_path):
    write(tmp_path, "a", 100, 0.5, search="random")
    write(tmp_path, "b", 200, 0.9, overrides={"search": "random"}, status="interrupted")
    sweep = Sweep("s", tmp_path, collect(tmp_path))
    assert by_search(sweep, "params", "test_acc") == [sweep]
    (line,) = [m for m in chart([front_of(tmp_path)]).marks if isinstance(m, Line)]
    assert (line.colour, line.dash) == (COLOURS[0], "")


def test_choices_are_counted_over_the_front(tmp_path):
    write(tmp_path, "a", 100, 0.5)
    write(tmp_path, "b", 200, 0.9, arch={"blocks.0": "<b>", "blocks.1": 3})
    front = front_of(tmp_path)
    counts = {"blocks.0": {"conv_k3": 1, "<b>": 1}, "blocks.1": {"3": 1}}
    assert frequencies(front.members) == counts
    html = page([Sweep("s", tmp_path, collect(tmp_path))], [front])
    table = html[html.index('<table class="choices">') :].partition("</table>")[0]
    assert '<th class="text" scope="col">&lt;b&gt;</th>' in table
    assert '<td style="--share:50%">1</td>' in table
    assert '<td style="--share:0%"></td>' in table
    assert "<b>" not in table


def test_without_architectures_no_table_of_choices(tmp_path):
    write(tmp_path, "a", 100, 0.5, arch={})
    html = page([Sweep("s", tmp_path, collect(tmp_path))], [front_of(tmp_path)])
    assert '<table class="choices">' not in html


@pytest.mark.parametrize("board", ["tensorboard", "strength=1,seed=0"])
def test_curves_are_those_that_the_search_has_written_in_its_colour(tmp_path, board):
    from torch.utils.tensorboard import SummaryWriter

    write(tmp_path, "a", 100, 0.5, search="random")
    write(tmp_path, "b", 200, 0.9, search="bilevel")
    parts = by_search(Sweep("s", tmp_path, collect(tmp_path)), "params", "test_acc")
    found = fronts(parts, "params", "test_acc")
    runs = [run for front in found for run in front.members]
    series, ids = series_of(found), {run: f"run-{run.name}" for run in runs}
    assert curves(runs, "params", series, ids) == []
    with SummaryWriter(str(tmp_path / "b" / board)) as writer:
        for epoch in range(3):
            writer.add_scalar("accuracy/supernet_val", epoch / 4, epoch)
    (drawn,) = curves(runs, "params", series, ids)
    (line,) = drawn.marks
    assert (line.name, line.run, line.x, line.y) == ("b", "run-b", [1, 2, 3], [0, 25, 50])
    points = [m for m in chart(found, ids).marks if isinstance(m, Points) and "run-b" in m.runs]
    assert {m.colour for m in points} == {line.colour} == {COLOURS[0]}


def test_details_hold_the_drawing_and_what_to_type(tmp_path):
    write(tmp_path, "a b", 100, 0.5, parts=[PART], budgets={"params": 120})
    (run,) = front_of(tmp_path).runs
    found = details([run], {run: "run-0"})
    assert "conv_k3" in found["drawings"]["a b"]
    detail = found["runs"]["run-0"]
    assert ["parameters", "100 of a budget of 120"] in [list(fact) for fact in detail["facts"]]
    assert f"nas export '{tmp_path}/a b'" in detail["commands"]
    assert "extract" not in detail["commands"]  # no checkpoint to extract from


@pytest.mark.parametrize(
    "parts",
    [
        *(3, [3], {"a": PART}, [{**PART, "size": None}], [{**PART, "size": ["4 x 4"]}]),
        *([{**PART, "costs": {"params": value}}] for value in ("x", float("nan"), 10**400)),
    ],
)
def test_parts_of_another_form_are_not_drawn(tmp_path, parts):
    write(tmp_path, "a", 100, 0.5, parts=parts)
    (run,) = front_of(tmp_path).runs
    assert run.blocks == ()
