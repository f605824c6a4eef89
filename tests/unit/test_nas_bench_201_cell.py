"""Cells of NAS-Bench-201 as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UserError
from nas.spaces.nas_bench_201 import EDGES, OPS, live, parse, render

CELLS = st.lists(st.sampled_from(OPS), min_size=6, max_size=6).map(tuple)


@given(CELLS)
def test_parse_inverts_render(ops):
    assert parse(render(ops)) == ops


@given(CELLS)
def test_live_edges_are_those_on_some_path(ops):
    def paths(node: int) -> list[list[int]]:
        if node == 3:
            return [[]]
        steps = [(i, to) for i, (source, to) in enumerate(EDGES) if source == node]
        return [[i, *rest] for i, to in steps if ops[i] != "none" for rest in paths(to)]

    on_paths = {i for path in paths(0) for i in path}
    assert live(ops) == tuple(i in on_paths for i in range(6))


def test_the_published_text_is_read():
    text = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|"
    ops = parse(text)
    assert dict(zip(EDGES, ops, strict=True))[1, 2] == "avg_pool_3x3"
    assert live(ops) == (True, False, False, True, True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no NAS-Bench-201 cell"),
        ("|a~0|+|a~0|a~1|+|a~0|a~1|a~2|", "'a' .* is not one of"),
        ("|none~0|+|none~0|none~1|", "no NAS-Bench-201 cell"),
        ("|none~0|+|none~1|none~0|+|none~0|none~1|none~2|", "no NAS-Bench-201 cell"),
    ],
)
def test_other_text_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)
