"""Python's search for cycles waits until the work of a command begins."""

import gc

import pytest

import nas.cli
from nas.diagnostics import collect_again, stop_collecting, uncollected


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.enable()
    gc.unfreeze()


def test_collecting_goes_on_without_what_was_there_before():
    gc.unfreeze()
    stop_collecting()
    assert not gc.isenabled()
    collect_again()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000
    gc.unfreeze()
    collect_again()
    assert not gc.get_freeze_count()


def test_who_collects_nothing_is_left_so():
    gc.disable()
    stop_collecting()
    collect_again()
    assert not gc.isenabled()


@pytest.mark.parametrize(("verb", "collects"), [("search", False), ("report", True)])
def test_a_command_that_trains_stops_and_its_work_collects_again(verb, collects, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nas", verb])
    seen = []
    monkeypatch.setattr(nas.cli, "run", lambda _: seen.append(gc.isenabled()))
    with pytest.raises(SystemExit):
        nas.cli.main()
    assert seen == [collects]
    collect_again()
    assert gc.isenabled()


@pytest.mark.parametrize("collects", [True, False])
def test_no_cycles_are_looked_for_inside_and_afterwards_as_before(collects):
    (gc.enable if collects else gc.disable)()

    @uncollected()
    def fails():
        assert not gc.isenabled()
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert gc.isenabled() == collects
