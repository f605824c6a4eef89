"""Fronts of points to be minimised: who is on it, how much it covers, where it bends.

Arrays in, arrays out. `points` is ``(n, d)``: n candidates, d objectives, all minimised (give
``1 - accuracy``, not accuracy). NaN and infinity are refused: compared with NaN nothing dominates
and nothing is dominated, so a failed run would silently join the front.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Mask ``(n,)`` of the points that no other point dominates.

    p dominates q when p is nowhere larger and somewhere smaller; of exact duplicates both stay.

    Raises:
        ValueError: not ``(n, d)``, or a value is NaN or infinite (the row is named).

    Example:
        >>> from nas.pareto import non_dominated
        >>> non_dominated([(10, 0.3), (20, 0.1), (30, 0.2)]).tolist()  # (cost, error)
        [True, True, False]
    """
    array = _checked(points)
    on_front = np.zeros(len(array), dtype=bool)
    # A point can only be dominated by one before it in this order, so the first that is left is on
    # the front: one pass over the points for each member, not for each point.
    left = np.lexsort(array.T[::-1])
    while len(left):
        point = array[left[0]]
        ahead = left[~_dominated(array[left], point)]
        same = (array[ahead] == point).all(axis=1)
        on_front[ahead[same]] = True
        left = ahead[~same]
    return on_front


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume of the region dominated by `points` and bounded by `reference` ``(d,)``; exact.

    Points that are not below the reference in every objective add nothing. Time O(n log n) for
    d = 2; a factor n more for each further objective (hypervolume by slicing objectives,
    While et al. 2006).

    Raises:
        ValueError: as `non_dominated`, or `reference` is not ``(d,)`` and finite.

    Example:
        >>> from nas.pareto import hypervolume
        >>> hypervolume([(1, 2), (2, 1)], (3, 3))
        3.0
    """
    array = _checked(points)
    corner = np.asarray(reference, dtype=np.float64)
    if corner.shape != array.shape[1:] or not np.isfinite(corner).all():
        raise ValueError(
            f"the reference point must be {array.shape[1]} finite numbers, one per objective, "
            f"not {corner.tolist()}"
        )
    return _volume(array[(array < corner).all(axis=1)], corner)


def thinned(points: ArrayLike, size: int) -> list[int]:
    """Indices of the `size` points that hold the most hypervolume together; exact.

    The point that is best in the first objective is always among them. The reference is the worst
    of the front in each objective and a twentieth of the front's range beyond, so that both ends
    count. By dynamic programming from the largest second objective on: time O(size n^2).

    Args:
        points: ``(n, 2)``; those that another one dominates are never taken.
        size: at least 1; all of the front where it has no more.

    Returns:
        Positions in `points`, by ascending second objective.

    Raises:
        ValueError: as `non_dominated`, not two objectives, or `size` below 1.
    """
    array = _checked(points)
    if array.shape[1] != 2 or size < 1:
        raise ValueError(f"size={size} of {array.shape[1]} objectives: give at least 1, of two")
    _, first = np.unique(array, axis=0, return_index=True)  # of equal points one
    members = first[non_dominated(array[first])]
    members = members[array[members, 1].argsort()]
    if len(members) <= size:
        return [int(i) for i in members]
    front = array[members]
    height = front[:, 0].max() + 0.05 * np.ptp(front[:, 0]) - front[:, 0]
    places = front[:, 1]
    # gain[j, t]: the area that member j adds where t is the next one taken.
    gain = np.where(places[None] > places[:, None], places[None] - places[:, None], -np.inf)
    gain = gain * height[:, None]
    best = np.full(len(front), -np.inf)
    best[-1] = 0.05 * np.ptp(places) * height[-1]
    followers = []
    for _ in range(size - 1):
        sums = gain + best[None]
        followers.append(sums.argmax(axis=1))
        best = sums.max(axis=1)
    place = int(best.argmax())
    taken = [place]
    for following in reversed(followers):
        taken.append(int(following[taken[-1]]))
    return [int(members[i]) for i in taken]


def knee(points: ArrayLike) -> int:
    """Index of the front's knee: giving up a little in one objective gains most in the others.

    Each objective is scaled to 0..1 over the front and the least sum wins, which in two
    objectives is the point farthest below the line through the two ends. The first of equals.

    Raises:
        ValueError: as `non_dominated`, or there are no points.
    """
    array = _checked(points)
    members = np.flatnonzero(non_dominated(array))
    if not len(members):
        raise ValueError("no points, so no knee: give at least one")
    front = array[members]
    span = np.ptp(front, axis=0)
    scaled = (front - front.min(axis=0)) / np.where(span > 0, span, 1.0)
    return int(members[scaled.sum(axis=1).argmin()])


def _dominated(array: Points, point: Points) -> NDArray[np.bool_]:
    return np.asarray((point <= array).all(axis=1) & (point < array).any(axis=1))


def _volume(points: Points, corner: Points) -> float:
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points[:, 0].min())
    if len(corner) == 2:
        return _area(points, corner)
    # Between one point's last objective and the next one's, the cross-section is constant.
    points = points[points[:, -1].argsort(kind="stable")]
    depths = np.diff(points[:, -1], append=corner[-1])
    return sum(
        float(depth) * _volume(points[: i + 1, :-1], corner[:-1])
        for i, depth in enumerate(depths)
        if depth > 0
    )


def _area(points: Points, corner: Points) -> float:
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    lowest = np.minimum.accumulate(points[:, 1])
    widths = np.diff(points[:, 0], append=corner[0])
    return float((widths * (corner[1] - lowest)).sum())


def _checked(points: ArrayLike) -> Points:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"points must be an array (n, d) of n points with d >= 1 objectives, "
            f"not of shape {array.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise ValueError(
            f"row {bad[0]} of the points is {array[bad[0]].tolist()}: every objective must be "
            f"finite ({len(bad)} of {len(array)} rows are not). Leave such rows out first."
        )
    return array
