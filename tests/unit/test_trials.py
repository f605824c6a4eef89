"""The record of trials: nothing is lost, nothing is scored twice, a front is a front."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.arch import Arch
from nas.errors import UserError
from nas.search.searchers import best
from nas.search.trials import Trial, TrialLog, front_of, table_of, thinned_front

numbers = st.floats(-1e6, 1e6)


def trial(option: str, loss: float = 1.0, params: float = 10.0) -> Trial:
    scores = {"val_loss": loss, "val_acc": 0.25}
    return Trial(Arch("s", {"a": option}), scores, {"params": params}, 1.5, 1.25)


@given(
    st.dictionaries(
        st.text(min_size=1), st.one_of(st.text(), st.integers(), st.tuples(st.just(3)))
    ),
    st.dictionaries(st.text(min_size=1), numbers),
    st.one_of(st.none(), st.text()),
)
def test_a_line_holds_the_whole_trial(choices, metrics, message):
    one = Trial(Arch("s", choices), metrics, {"params": 7}, 2.0, 1.0, message)
    line = one.to_json()
    assert "\n" not in line
    assert Trial.from_json(line) == one


def test_a_torn_last_line_is_scored_again_and_the_rest_is_kept(tmp_path):
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append(trial("x"))
    log.append(trial("y"))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-20])

    again = TrialLog(log.path)
    assert log.path.read_bytes() == whole[:-20]  # who reads only may not write
    assert [t.arch.choices["a"] for t in again.known.values()] == ["x"]
    again.append(trial("y"))
    assert log.path.read_bytes() == whole


def test_a_damaged_line_inside_is_named(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_text("{}\n" + trial("x").to_json() + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1"):
        TrialLog(path)


def test_values_are_minimised_and_failures_come_last():
    failed = Trial(Arch("s", {"a": "z"}), {}, {"params": 1}, message="NaN")
    assert trial("x").value("val_acc") == 0.75
    assert trial("x").value("params") == 10
    assert failed.value("val_loss") == inf
    assert best([failed, trial("x", 2.0), trial("y", 1.0)], "val_loss").arch.choices["a"] == "y"
    with pytest.raises(UserError, match="no 'test_acc'"):
        trial("x").value("test_acc")
    with pytest.raises(UserError, match="NaN"):
        best([failed], "val_loss")


def test_the_front_and_its_table():
    trials = [trial("x", 1.0, 10), trial("y", 2.0, 20), trial("z", 0.5, 40)]
    front = front_of(trials, ("val_loss", "params"))
    assert [t.arch.choices["a"] for t in front] == ["x", "z"]
    assert front_of([], ("val_loss",)) == []
    rows = table_of(trials, ("val_loss", "params")).splitlines()
    assert rows[0].startswith("hash,a,params,")
    assert [row.rsplit(",", 1)[1] for row in rows[1:]] == ["1", "0", "1"]


def test_a_front_is_thinned_to_what_covers_most_with_the_most_accurate_in_it():
    places = {"a": (4, 10), "b": (3.9, 11), "c": (2, 100), "d": (1.9, 300), "e": (1, 1000)}
    trials = [trial(name, *place) for name, place in places.items()]
    trials.append(trial("f", 2.1, 120))  # behind the front

    def names(size):
        taken = thinned_front(trials, ("val_loss", "params"), size)
        return "".join(t.arch.choices["a"] for t in taken)

    assert [names(size) for size in (1, 2, 5, 9)] == ["e", "ce", "abcde", "abcde"]
    assert names(3) in ("ace", "bce")
    with pytest.raises(UserError, match="front=0"):
        names(0)
