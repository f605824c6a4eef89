"""Peak memory: the bytes of the largest set of activations that are live at once.

Whether a buffer is needed at a step depends on what is taken later: it is a disjunction of
conditions, whose probability is a polynomial. The peak of a network is the largest of the
polynomials of `peak_terms` at its one-hot thetas.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from torch import nn

from nas.cost.analytic import packed_bytes
from nas.cost.dry_run import Example
from nas.cost.expected import Expected, layer_terms
from nas.cost.layer import LayerSpec
from nas.cost.operators import Operator
from nas.cost.polynomial import (
    AnyOf,
    Choice,
    Condition,
    Polynomial,
    Term,
    consistent,
    reduced,
    times,
    upper_bound,
    weighted_sum,
)
from nas.cost.trace import Trace, trace
from nas.diagnostics import uncollected
from nas.errors import UserError

Probability = Callable[[AnyOf], Polynomial]


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of the largest set of live activations of the network for one sample.

    A buffer lives from the operator that makes it to the last one that reads it: the input until
    its last use, the output to the end, whatever a skip connection needs as long as it does. While
    an operator runs, its inputs and its outputs are both there. Views and in-place operators share
    a buffer; scratch memory inside a kernel is not counted.

    Args:
        bits: of one activation; a buffer takes whole bytes.
        fuse: BatchNorm and pointwise operators of one input (activations, dropout, scaling by a
            constant) write over that input where nothing needs it later, as runtimes on devices
            do. False: each output has memory of its own, as in eager PyTorch.
        weights: add the parameters that the network stores.
        weight_bits: of one parameter that has no bits of its own.

    Raises:
        UserError: `bits` or `weight_bits` is no positive whole number.
    """

    bits: int = 32
    fuse: bool = True
    weights: bool = False
    weight_bits: int = 32
    name: str = "peak_memory"
    unit: str = "B"

    def __post_init__(self) -> None:
        for key in ("bits", "weight_bits"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(
                    f"{self.name}: {key} must be a whole number of bits, at least 1 "
                    f"(32: float32, 8: int8), got {value!r}"
                )

    @uncollected()
    def expected(self, model: nn.Module, example: Example | Trace) -> Expected:
        """The peak memory of `model` under its thetas, differentiable in every alpha.

        ``E[max_r p_r]``: the mean over architectures, each with its probability, of the exact peak,
        which is the maximum of polynomials in thetas; see `ExpectedMaximum` for what is
        approximated where many decisions act on one step. One-hot thetas give the exact peak of
        that network.

        Args:
            example: as for `nas.cost.trace.trace`; or a `Trace` made before.

        Raises:
            UserError: as `trace` does.
        """
        traced = example if isinstance(example, Trace) else trace(model, example)
        peaks = peak_terms(traced, self._sizes(traced), self.fuse)
        # Stored weights depend on every decision: added afterwards, they leave the tables small.
        added = layer_terms(traced, _Weights(self.weight_bits)) if self.weights else None
        return Expected(model, self.name, self.unit, peaks, traced.options, added)

    def by_step(self, traced: Trace) -> Iterator[tuple[Operator, Polynomial]]:
        """Each operator that computes something, and the bytes of activations while it runs.

        The last one, "output", stands for the end, where the outputs are there.
        """
        return _live(traced, self._sizes(traced), self.fuse, _probabilities(traced.options))

    def _sizes(self, traced: Trace) -> list[int]:
        return [-(-buffer.numel * self.bits // 8) for buffer in traced.buffers]


@dataclass(frozen=True)
class _Weights:
    """Bytes of the parameters that a network stores."""

    bits: int
    name: str = "weights"
    unit: str = "B"

    def __call__(self, layer: LayerSpec) -> float:
        if layer.kind != "parameter":
            return 0
        own = packed_bytes(layer)
        return layer.numel * self.bits / 8 if own is None else own


def peak_terms(traced: Trace, sizes: Sequence[int], fuse: bool) -> list[dict[Term, float]]:
    """Polynomials whose largest, at one-hot thetas, is the peak of live memory of that network.

    Each is 0 where its step does not exist. Steps of different options of one decision share a
    polynomial, as no network has two of them.

    Args:
        sizes: of each buffer, in the unit of the result.
        fuse: a pointwise step writes over its input where nothing needs that any more.
    """
    root, options = _Node(), traced.options
    for step, terms in _live(traced, sizes, fuse, _probabilities(options)):
        node = root
        for choice in step.choices:
            node = node.children[choice]
        node.steps.append(reduced(terms, options))
    return _combined(root, options)


@dataclass
class _Node:
    """The steps directly under some choices, and the nodes one choice further in."""

    steps: list[dict[Term, float]] = field(default_factory=list)
    children: dict[Choice, "_Node"] = field(default_factory=lambda: defaultdict(_Node))


def _combined(node: _Node, options: Mapping[str, int]) -> list[dict[Term, float]]:
    """The polynomials of `node`: its steps, and for each decision below the options' i-th ones.

    Sums over options rather than one polynomial for each: as a relaxation they bound the cost more
    tightly, and three options at a third each do not look like a third of the memory.
    """
    inner: dict[str, list[tuple[Choice, list[dict[Term, float]]]]] = defaultdict(list)
    for choice, child in node.children.items():
        inner[choice[0]].append((choice, _combined(child, options)))
    found = list(node.steps)
    for branches in inner.values():
        for i in range(max(len(terms) for _, terms in branches)):
            joined = [times(choice, terms[min(i, len(terms) - 1)]) for choice, terms in branches]
            found.append(reduced(weighted_sum((1, terms) for terms in joined), options))
    return _undominated(found, options)


def _undominated(
    found: Sequence[dict[Term, float]], options: Mapping[str, int]
) -> list[dict[Term, float]]:
    """Without those that another is never below; the largest at uniform thetas first."""
    unique = {frozenset(terms.items()): terms for terms in found}
    kept: list[dict[Term, float]] = []
    for terms in sorted(unique.values(), key=lambda terms: -_at_uniform(terms, options)):
        excess = (weighted_sum([(1, terms), (-1, other)]) for other in kept)
        if all(upper_bound(difference, options) > 0 for difference in excess):
            kept.append(terms)
    return kept


def _at_uniform(terms: Polynomial, options: Mapping[str, int]) -> float:
    total = 0.0
    for term, value in terms.items():
        for name, _ in term:
            value /= options[name]
        total += value
    return total


def _live(
    traced: Trace, sizes: Sequence[int], fuse: bool, probability: Probability
) -> Iterator[tuple[Operator, Polynomial]]:
    """Each step, and the memory that lives while it runs."""
    steps = [operator for operator in traced.operators if not operator.view]
    uses = _uses(traced, steps, sizes, fuse)
    makers = {buffer: step.condition for step in steps for buffer in step.makes}
    due: dict[int, set[int]] = defaultdict(set)  # step -> buffers that may be needed less after it
    for buffer, (times_, _) in uses.items():
        for until in times_:
            due[until].add(buffer)
    # Numbers compare much faster than sets, of which there are millions: a bit for each choice.
    names = ((name, k) for name, count in traced.options.items() for k in range(count))
    bits = {choice: 1 << place for place, choice in enumerate(names)}
    masks = {b: [sum(map(bits.__getitem__, c)) for c in where] for b, (_, where) in uses.items()}
    # By what they are made under: where that cannot be, as between two options, none needs them.
    alive: dict[Condition, dict[int, None]] = defaultdict(dict)
    alive[frozenset()] = dict.fromkeys(b for b in traced.starts if b in uses)
    given: Condition | None = None  # what the step before stood under

    def needed(buffer: int, now: int, given: Condition) -> tuple[float, Polynomial]:
        """The bytes of a buffer, and where it is still needed if `given` holds."""
        until, where = uses[buffer]
        first = bisect_left(until, now)
        found = zip(where[first:], masks[buffer][first:], strict=True)
        # The condition of a use implies that under which the buffer is made.
        return sizes[buffer], probability(frozenset([c - given for c, m in found if not m & no]))

    # At the end the outputs are there, even of a network without an operator.
    for now, step in enumerate((*steps, Operator("output", "", ()))):
        if step.condition != given:
            given = step.condition
            others = _others(given, traced.options)
            no = sum(map(bits.__getitem__, others))
            possible = {under for under in alive if others.isdisjoint(under)} | {given}
            live = {b: needed(b, now, given) for under in possible for b in alive.get(under, ())}
        always: Polynomial = {frozenset(): 1.0}
        made = [(sizes[buffer], always) for buffer in step.makes]
        yield step, weighted_sum([*live.values(), *made])
        kept = dict.fromkeys(b for b in step.makes if b in uses)
        alive[given] |= kept
        for buffer in {**kept, **dict.fromkeys(due.pop(now, ()))}:
            under = makers.get(buffer, frozenset())
            if uses[buffer][0][-1] <= now:
                live.pop(buffer, None)
                del alive[under][buffer]
                if not alive[under]:
                    del alive[under]
            elif under in possible:
                live[buffer] = needed(buffer, now + 1, given)


def _uses(
    traced: Trace, steps: Sequence[Operator], sizes: Sequence[int], fuse: bool
) -> dict[int, tuple[list[int], list[Condition]]]:
    """Buffer -> until which steps it is needed, in order, and under which conditions."""
    found: dict[int, tuple[list[int], list[Condition]]] = defaultdict(lambda: ([], []))
    uses: list[tuple[int, int, Condition]] = []
    for now, step in enumerate(steps):
        for condition, buffer in step.reads:
            over = fuse and _written_over(step, buffer, sizes)
            uses.append((now - over, buffer, condition.union(step.choices)))
    uses += [(len(steps), buffer, condition) for condition, buffer in traced.outputs]
    for until, buffer, condition in uses:
        if consistent(condition):
            found[buffer][0].append(until)
            found[buffer][1].append(condition)
    return found


def _written_over(step: Operator, buffer: int, sizes: Sequence[int]) -> bool:
    """Whether `step` may put its output where its input is."""
    return step.pointwise and [sizes[made] for made in step.makes] == [sizes[buffer]]


def _given(conditions: Iterable[Condition], given: Condition, options: Mapping[str, int]) -> AnyOf:
    """Where any of `conditions` holds, each possible in itself, if `given` does."""
    # Sets compare much faster than a loop over choices, of which there are millions.
    others = _others(given, options)
    return frozenset(c - given for c in conditions if others.isdisjoint(c))


def _others(given: Condition, options: Mapping[str, int]) -> set[Choice]:
    """What cannot be taken under `given`."""
    return {(name, k) for name, taken in given for k in range(options[name]) if k != taken}


def _probabilities(options: Mapping[str, int]) -> Probability:
    """The probability that any of some conditions holds: one decision after the other is expanded.

    Inclusion and exclusion would take time exponential in the number of conditions; here equal
    alternatives are expanded once, and options that lead to the same alternatives stay together.
    """
    order = {name: place for place, name in enumerate(options)}

    @cache
    def probability(active_if: AnyOf) -> Polynomial:
        if not active_if or frozenset() in active_if:
            return {frozenset(): 1.0} if active_if else {}
        name = min(
            (name for condition in active_if for name, _ in condition), key=order.__getitem__
        )
        cases = [
            probability(_given(active_if, frozenset({(name, option)}), options))
            for option in range(options[name])
        ]
        most = Counter(frozenset(case.items()) for case in cases).most_common(1)[0][0]
        usual = dict(most)
        parts: list[tuple[float, Polynomial]] = [(1, usual)]
        for option, case in enumerate(cases):
            if case != usual:
                difference = weighted_sum([(1, case), (-1, usual)])
                parts.append((1, times((name, option), difference)))
        return weighted_sum(parts)

    return probability
