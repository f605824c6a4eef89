"""A recurrent controller trained by REINFORCE (Zoph and Le 2017; MnasNet, Tan et al. 2019)."""

from collections import deque
from collections.abc import Mapping, Sequence
from math import isfinite, log
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nas.arch import Arch
from nas.search.gradient.reinforce import CostAwareAccuracy
from nas.search.sampling.evolution import mutated
from nas.search.sampling.space import SearchSpace
from nas.search.sampling.trials import Trial
from nas.selection import largest_of, least_of
from nas.values import Count, NonNegative, Positive, checked

ROUNDS = 4  # of draws, none of them new, before a network drawn is changed until it is new
LARGEST = 3.0  # advantage, in standard deviations of the rewards


class Policy(nn.Module):
    """An LSTM that decides one thing after another, told each time what it decided before.

    ``p(arch) = prod_d p(option_d | option_1, ..., option_(d-1), condition)``.

    Args:
        counts: number of options of each of D decisions.
        hidden: size of the LSTM's state and of the embeddings.
    """

    def __init__(self, counts: Sequence[int], hidden: int = 64) -> None:
        super().__init__()
        self.counts = tuple(counts)
        self.start = nn.Linear(1, hidden)
        self.cell = nn.LSTMCell(hidden, hidden)
        self.embeddings = nn.ModuleList(nn.Embedding(count, hidden) for count in counts)
        self.heads = nn.ModuleList(nn.Linear(hidden, count) for count in counts)
        for head in self.heads:  # all options are equally likely at first
            nn.init.zeros_(cast(nn.Linear, head).weight)
            nn.init.zeros_(cast(nn.Linear, head).bias)

    def draw(self, condition: Tensor, generator: torch.Generator) -> Tensor:
        """Indices of options ``(S, D)`` for conditions ``(S,)``."""

        def pick(d: int, log_p: Tensor) -> Tensor:
            return torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]

        with torch.no_grad():
            picks, _, _ = self._unroll(condition, pick)
        return picks

    def forward(self, condition: Tensor, picks: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of `picks` and entropies along them, both ``(S,)``."""
        _, log_p, entropy = self._unroll(condition, lambda d, _: picks[:, d])
        return log_p, entropy

    def _unroll(self, condition: Tensor, pick: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, state = self.start(condition[:, None]), None
        picks, log_p, entropy = [], torch.zeros_like(condition), torch.zeros_like(condition)
        for d, (head, embedding) in enumerate(zip(self.heads, self.embeddings, strict=True)):
            state = self.cell(x, state)
            scores = F.log_softmax(head(state[0]), -1)
            taken = pick(d, scores)
            picks.append(taken)
            log_p = log_p + scores.gather(1, taken[:, None])[:, 0]
            entropy = entropy - (scores.exp() * scores).sum(-1)
            x = embedding(taken)
        return torch.stack(picks, 1), log_p, entropy


def policy_loss(log_p: Tensor, advantages: Tensor, entropy: Tensor, bonus: float = 0.0) -> Tensor:
    """A number whose gradient estimates that of ``-E[R] - bonus * H``, all ``(S,)``."""
    return -(advantages.detach() * log_p).mean() - bonus * entropy.mean()


@checked("controller")
class Controller:
    """Proposes what its policy draws; after each round of draws, moves it along their rewards.

    The reward of a network is ``acc * (cost / T)^w`` (see `CostAwareAccuracy`), where of a loss the
    accuracy is ``1 / (1 + loss)``. T is the budget of the cost, else its mean over all
    architectures, as in MnasNet. With `spread`, T is drawn for each network between the least and
    the largest cost, and the policy is told: one policy for the whole front. Its baseline is then
    the moving average of the rewards that recent networks have for the same T.

    A draw outside the budgets has reward 0, and one scored before the reward it had: both are
    learned from and cost nothing. Where a round has nothing inside, its draws are repaired.

    Args:
        space: what to search.
        seed: of all draws and of the policy's weights.
        objectives: an accuracy or a loss, and costs.
        reward: accuracy and costs -> reward; None: MnasNet's soft one, with `spread` its hard one
            (the soft one has the same best network for every T).
        spread: search for the whole front.
        samples: networks drawn in a round.
        rate: of Adam.
        bonus: weight of the entropy.
        memory: of the moving average, in trials.
        hidden: size of the LSTM.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        objectives: Sequence[str] = ("val_loss",),
        reward: CostAwareAccuracy | None = None,
        spread: bool = True,
        samples: Count = 8,
        rate: Positive = 0.01,
        bonus: NonNegative = 0.3,
        memory: Count = 64,
        hidden: Annotated[int, Field(ge=1, le=4096)] = 64,
    ) -> None:
        self.space, self.by, self.along = space, objectives[0], tuple(objectives[1:])
        self.spread = spread and bool(self.along)
        hard = CostAwareAccuracy(0.0, -1.0)
        self.reward = reward or (hard if self.spread else CostAwareAccuracy())
        self.samples, self.bonus = samples, bonus
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy([len(o) for o in space.options.values()], hidden)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), rate)
        self.known: dict[str, dict[str, float]] = {}  # hash -> accuracy and costs
        self.recent: deque[dict[str, float]] = deque(maxlen=memory)
        self.ranges = {n: self._range(n) for n in self.along if n in space.costs}
        self.condition, self.picks = torch.zeros(0), torch.zeros(0, 0)
        self.drawn: list[Arch | None] = []  # of this round; None: outside the budgets
        self.left: deque[Arch] = deque()

    def ask(self, count: int) -> Sequence[Arch]:
        for turn in range(ROUNDS):
            if self.left:
                break
            self._learn()
            self._draw(repair=turn == ROUNDS - 1)
        if not self.left:
            self.left.append(self._changed())
        return [self.left.popleft() for _ in range(min(count, len(self.left)))]

    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            if trial.arch.hash in self.known:
                continue
            worth = _accuracy(trial, self.by)
            seen = {"accuracy": worth} | {name: trial.value(name) for name in self.along}
            self.known[trial.arch.hash] = seen
            if worth > 0:
                self.recent.append(seen)

    def _draw(self, repair: bool) -> None:
        """A round of draws, of which the new ones are to be asked for."""
        if self.spread:
            # One in each of as many equal parts: all targets are heard of in every round.
            parts = torch.arange(self.samples) + torch.rand(self.samples, generator=self.generator)
            self.condition = 2 * parts / self.samples - 1
        else:
            self.condition = torch.zeros(self.samples)
        self.picks = self.policy.draw(self.condition, self.generator)
        rows = [dict(zip(self.space.options, row, strict=True)) for row in self.picks.tolist()]
        archs = [self.space.arch(row) for row in rows]
        self.drawn = [arch if self.space.fits(arch) else None for arch in archs]
        if repair and not any(self.drawn):
            # The nearest ones inside are learned from as if they had been drawn.
            self.drawn = [self.space.repaired(arch) for arch in archs]
            indices = [self.space.indices(arch) for arch in self.drawn if arch is not None]
            self.picks = torch.tensor([list(row.values()) for row in indices])
        new = {a.hash: a for a in self.drawn if a is not None and a.hash not in self.known}
        self.left.extend(new.values())

    def _changed(self) -> Arch:
        """An architecture near what is drawn, new as far as that is easily found."""
        inside = [arch for arch in self.drawn if arch is not None]
        arch = inside[0] if inside else self.space.draw(self.generator)
        for _ in range(10):
            if arch.hash not in self.known:
                break
            arch = mutated(self.space, arch, self.generator)
        return arch

    def _learn(self) -> None:
        """One step along the rewards of the last round."""
        if not self.drawn or not self.recent:
            return
        advantages = torch.tensor(
            [self._advantage(a, float(c)) for a, c in zip(self.drawn, self.condition, strict=True)]
        )
        log_p, entropy = self.policy(self.condition, self.picks)
        self.optimizer.zero_grad()
        policy_loss(log_p, advantages, entropy, self.bonus).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _advantage(self, arch: Arch | None, condition: float) -> float:
        """Reward less baseline, in standard deviations of the rewards of recent networks."""
        others = self._rewards(list(self.recent), condition)
        own = 0.0
        if arch is not None:
            own = float(self._rewards([self.known[arch.hash]], condition)[0])
        spread = max(float(others.std(correction=0)), 1e-9)
        return max(-LARGEST, min(LARGEST, (own - float(others.mean())) / spread))

    def _rewards(self, seen: Sequence[Mapping[str, float]], condition: float) -> Tensor:
        accuracy = torch.tensor([one["accuracy"] for one in seen], dtype=torch.float64)
        costs = {n: torch.tensor([one[n] for one in seen]).double() for n in self.along}
        failed = accuracy == 0
        found = self.reward(accuracy, costs, self._targets(condition))
        return found.masked_fill(failed, 0.0)

    def _targets(self, condition: float) -> dict[str, float]:
        """T of each cost: at -1 its least, at 1 its largest, in log scale."""
        targets = {}
        for name in self.along:
            if self.spread:
                low, high = self.ranges.get(name) or self._seen_range(name)
                share = (condition + 1) / 2
                targets[name] = float(np.exp(log(low) + share * (log(high) - log(low))))
            elif name in self.space.costs:
                mean = float(self.space.costs[name].mean())
                targets[name] = self.space.budgets.get(name, mean)
            else:
                targets[name] = float(np.mean([one[name] for one in self.recent]))
        return targets

    def _range(self, name: str) -> tuple[float, float]:
        cost = self.space.costs[name]
        # Some networks cost nothing, and a target has a logarithm.
        high = max(min(self.space.budgets.get(name, np.inf), largest_of(cost)), 1e-12)
        return max(least_of(cost), 1e-3 * high), high

    def _seen_range(self, name: str) -> tuple[float, float]:
        costs = [max(one[name], 1e-12) for one in self.known.values() if isfinite(one[name])]
        return min(costs), max(costs)


def _accuracy(trial: Trial, by: str) -> float:
    """In [0, 1], larger is better; 0 where scoring failed."""
    value = trial.value(by)
    if not isfinite(value):
        return 0.0
    return 1 - value if by.endswith("_acc") else 1 / (1 + max(value, 0.0))
