"""Fronts against their definitions, written out by brute force over small drawn points."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.pareto import hypervolume, knee, non_dominated, thinned

CORNER = 4


def point_sets(largest_d: int = 4) -> st.SearchStrategy[np.ndarray]:
    """Small integer points: ties and exact duplicates are common."""
    return st.integers(1, largest_d).flatmap(
        lambda d: st.lists(st.tuples(*[st.integers(0, CORNER)] * d), min_size=1, max_size=8).map(
            lambda rows: np.array(rows, dtype=float)
        )
    )


def dominates(p: np.ndarray, q: np.ndarray) -> bool:
    pairs = list(zip(p.tolist(), q.tolist(), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@given(point_sets())
def test_members_are_exactly_the_points_no_other_point_dominates(points):
    expected = [not any(dominates(p, q) for p in points) for q in points]

    assert non_dominated(points).tolist() == expected


@given(point_sets())
def test_no_member_dominates_another_and_a_member_dominates_every_non_member(points):
    on_front = non_dominated(points)
    front = points[on_front]

    assert not any(dominates(p, q) for p in front for q in front)
    assert all(any(dominates(p, q) for p in front) for q in points[~on_front])


@given(point_sets(), st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(points, random):
    order = list(range(len(points)))
    random.shuffle(order)
    corner = np.full(points.shape[1], CORNER)

    assert non_dominated(points[order]).tolist() == non_dominated(points)[order].tolist()
    assert hypervolume(points[order], corner) == hypervolume(points, corner)


@given(point_sets())
def test_exact_duplicates_share_their_fate(points):
    twice = np.concatenate([points, points])

    assert non_dominated(twice).tolist() == non_dominated(points).tolist() * 2


@given(point_sets())
def test_hypervolume_counts_the_unit_cells_above_some_point(points):
    cells = product(range(CORNER), repeat=points.shape[1])
    expected = sum((points <= np.array(cell)).all(axis=1).any() for cell in cells)

    assert hypervolume(points, np.full(points.shape[1], CORNER)) == expected


@given(point_sets())
def test_only_the_front_makes_the_hypervolume(points):
    corner = np.full(points.shape[1], CORNER)

    assert hypervolume(points[non_dominated(points)], corner) == hypervolume(points, corner)


@given(point_sets(), st.integers(-8, 8), st.integers(-50, 50))
def test_knee_is_a_member_and_does_not_move_with_the_units(points, power, shift):
    index = knee(points)

    assert non_dominated(points)[index]
    assert knee((points + shift) * 2.0**power) == index


def test_knee_is_farthest_below_the_line_through_the_ends():
    points = [[0, 10], [1, 9], [2, 2], [6, 1.5], [10, 0], [9, 9]]

    assert knee(points) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "function", [non_dominated, knee, lambda points: hypervolume(points, [1, 1])]
)
def test_a_value_that_is_not_finite_is_refused_by_row(function, bad):
    with pytest.raises(ValueError, match=r"row 1 .* Leave such rows out"):
        function([[0, 0], [0, bad], [1, 1]])


@pytest.mark.parametrize("points", [[1, 2, 3], 5, [[], []], np.zeros((2, 2, 2))])
def test_what_is_not_a_table_of_points_is_refused_with_its_shape(points):
    with pytest.raises(ValueError, match=r"\(n, d\).*shape"):
        non_dominated(points)


@pytest.mark.parametrize("reference", [[1], [1, 2, 3], [1, np.nan], 4])
def test_a_reference_that_does_not_fit_is_refused(reference):
    with pytest.raises(ValueError, match="2 finite numbers"):
        hypervolume([[0, 0]], reference)


def test_no_points_have_an_empty_front_no_volume_and_no_knee():
    empty = np.zeros((0, 2))

    assert non_dominated(empty).shape == (0,)
    assert hypervolume(empty, [1, 1]) == 0
    with pytest.raises(ValueError, match="at least one"):
        knee(empty)


@given(point_sets(2).filter(lambda points: points.shape[1] == 2), st.integers(1, 5))
def test_a_thinned_front_holds_the_most_hypervolume_beside_its_best_score(points, size):
    taken = thinned(points, size)
    front = np.unique(points[non_dominated(points)], axis=0)
    assert (np.diff(points[taken][:, 1]) > 0).all()
    assert len(taken) == min(size, len(front))
    best = front[front[:, 0].argmin()]
    assert best.tolist() in points[taken].tolist()
    corner = front.max(axis=0) + 0.05 * np.ptp(front, axis=0)
    others = [p for p in front if p.tolist() != best.tolist()]
    sets = combinations(others, min(size, len(front)) - 1)
    most = max(hypervolume([best, *rest], corner) for rest in sets)
    assert hypervolume(points[taken], corner) == pytest.approx(most)


def test_a_thinned_front_needs_a_size_and_two_objectives():
    for points, size in (([[1.0, 2.0]], 0), ([[1.0, 2.0, 3.0]], 1)):
        with pytest.raises(ValueError, match="size"):
            thinned(points, size)
