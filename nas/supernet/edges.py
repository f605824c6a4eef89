"""Which two edges into a node of a cell are kept, as a decision over pairs of them.

An option is a pair of edge numbers, so that every option is a plain network, whose cost is exact
and can be held to a budget. The weight of an edge is the probability that it is kept, ``sum of
theta over the pairs with it``: the sum over pairs of the outputs of their edges is then the
weighted sum over edges, and each edge runs once.

The decision is either a `Shared` one, whose pairs have alphas of their own (the edge normalisation
of PC-DARTS over what is kept), or `StrongestEdges`, which has none: all edges count fully while
searching, and the pair of the largest op probabilities is kept (DARTS).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import nan

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.decision import Decision
from nas.supernet.relax import RelaxedDecision, softmax, straight_through
from nas.supernet.straight_through import Outcomes, with_theta_gradient


def pairs(edges: int) -> tuple[tuple[int, int], ...]:
    """Every pair of so many edges."""
    return tuple(combinations(range(edges), 2))


class Edges(nn.Module):
    """The sum of the given edges, each applied to its state.

    Args:
        edges: number of the state -> op.

    Shape: states, each ``(N, C_in, H, W)``, -> ``(N, C, H', W')``.
    """

    def __init__(self, edges: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({str(number): op for number, op in edges.items()})

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        first, *others = (op(states[int(number)]) for number, op in self.edges.items())
        total: Tensor = first
        for other in others:
            total = total + other
        return total


class StrongestEdges(RelaxedDecision):
    """Pairs ranked by the strengths of their edges (Liu et al. 2019, Section 2.4).

    ``logit(i, j) = log s_i + log s_j``, where s is the largest op probability of an edge: the best
    pair is that of the two strongest edges. It has no alpha of its own; a cost still counts each
    pair with its softmax probability, which moves the alphas of the edges.

    Args:
        ops: the decision on each edge.
    """

    derived = True

    def __init__(self, ops: Sequence[Decision], tied_to: Decision | None = None) -> None:
        super().__init__(pairs(len(ops)), tied_to=tied_to)
        self._ops = tuple(op.tied_to for op in ops)  # in a tuple: they are not its submodules

    @property
    def alpha(self) -> Tensor:  # type: ignore[override]
        """Logits of the pairs: the sum of both edges' largest log-probabilities."""
        strengths = [op.alpha.float().log_softmax(-1).max() for op in self._ops]
        return torch.stack([strengths[i] + strengths[j] for i, j in pairs(len(strengths))])

    @property
    def theta(self) -> Tensor:
        return softmax(self.alpha.masked_fill(~self.open, -torch.inf))

    def resample(self, generator: torch.Generator | None = None) -> None:
        """Nothing: the ops on the edges are drawn by their own decisions."""

    def active_if(self) -> Mapping[Option, nn.Module]:
        return dict.fromkeys(self.options, nn.Identity())

    def decisions(self) -> Sequence[Decision]:
        return ()  # it becomes the same whatever is taken


class Node(RelaxedDecision):
    """A node of a cell: the sum of its edges, weighted by the probability that each is kept.

    Args:
        edges: the op on the edge from each state.
        tied_to: the decision over `pairs` of them.

    Shape: as `Edges`.
    """

    keeps: Tensor  # (pairs, edges): whether the pair has the edge

    def __init__(self, edges: Sequence[nn.Module], tied_to: RelaxedDecision) -> None:
        super().__init__(pairs(len(edges)), tied_to=tied_to)
        self.edges = nn.ModuleList(edges)
        self.all_count = isinstance(tied_to, StrongestEdges)
        found = [[float(e in pair) for e in range(len(edges))] for pair in pairs(len(edges))]
        self.register_buffer("keeps", torch.tensor(found), persistent=False)
        # Not submodules, which would name every edge several times over.
        self._pairs: dict[Option, nn.Module] = {
            pair: Edges({i: edges[i] for i in pair}) for pair in pairs(len(edges))
        }

    @property
    def theta(self) -> Tensor:
        return self.tied_to.theta

    def resample(self, generator: torch.Generator | None = None) -> None:
        """Nothing: the decision that it is tied to is drawn."""

    def active_if(self) -> Mapping[Option, nn.Module]:
        return self._pairs

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        if self.unrolled:
            outputs = [pair(states) for pair in self._pairs.values()]
            return torch.stack(outputs).sum(0)
        weights = self._weights()
        # A compiled graph cannot look at values; it is used only where all edges run.
        blind = torch.compiler.is_compiling()
        values = [nan] * len(weights) if blind else weights.tolist()
        total: Tensor | None = None
        for value, weight, edge, x in zip(values, weights, self.edges, states, strict=True):
            if value == 0:
                continue
            y = edge(x) if value == 1 and not weight.requires_grad else weight * edge(x)
            total = y if total is None else total + y
        assert total is not None
        missing = [i for i, value in enumerate(values) if value == 0]
        decision = self.tied_to
        hard = isinstance(decision, RelaxedDecision) and decision.relax is straight_through
        if hard and missing:
            return self._with_gradient(total, weights, missing, states)
        return total

    def _with_gradient(
        self, total: Tensor, weights: Tensor, missing: Sequence[int], states: Sequence[Tensor]
    ) -> Tensor:
        """`total`; the alphas of edges that were not kept get the gradient that candidates get."""
        if not weights.requires_grad or int(self.open.sum()) == 1:
            return total

        def recompute(states: Sequence[Tensor]) -> Outcomes:
            for i in missing:
                yield [i], [self.edges[i](states[i])]

        return with_theta_gradient([total], weights, recompute, list(states))[0]

    def _weights(self) -> Tensor:
        """Of each edge ``(E,)``."""
        if self.all_count and (torch.compiler.is_compiling() or int(self.open.sum()) > 1):
            return torch.ones_like(self.keeps[0])
        return self.theta @ self.keeps.to(self.theta)
