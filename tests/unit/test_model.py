"""The model of accuracy over options against brute force, and what it is for: noisy scores."""

from itertools import combinations, product

import numpy as np
import pytest

from nas.pareto import hypervolume, thinned
from nas.search.model import MARGIN, OptionModel, adds_most, correlation, worth_training

COUNTS = (3, 2, 4)
ALL = np.array(list(product(*map(range, COUNTS))))
SOME = ALL[::3]


def scores(seed: int) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).standard_normal(len(SOME)) / 5)


def test_draws_have_the_moments_of_the_posterior():
    values, noise = scores(0), 0.3
    model = OptionModel(SOME, values, noise)
    drawn = model.draws(ALL, 20_000, np.random.default_rng(1))
    logs = np.log(values)
    z = (logs - logs.mean()) / logs.std()
    near = correlation(ALL, SOME)
    inverse = np.linalg.inv(correlation(SOME, SOME) + noise * np.eye(len(SOME)))
    mean = logs.mean() + logs.std() * near @ inverse @ z
    spread = logs.var() * (correlation(ALL, ALL) - near @ inverse @ near.T)
    assert np.allclose(model.mean(ALL), mean)
    assert np.abs(drawn.mean(0) - mean).max() < 0.03 * logs.std()
    assert np.abs(np.cov(drawn.T) - spread).max() < 0.05 * logs.var()


def test_without_noise_scores_are_met_and_with_much_they_shrink_to_their_mean():
    values = scores(2)
    logs = np.log(values)
    assert np.allclose(OptionModel(SOME, values, 1e-9).mean(SOME), logs, atol=1e-4)
    far = OptionModel(SOME, values, 1e6).mean(SOME)
    assert np.abs(far - logs.mean()).max() < 1e-3


def test_an_error_of_zero_is_no_outlier():
    values = np.full(len(SOME), 0.02)
    values[:3] = 0.01, 0.0, 0.04
    found = OptionModel(SOME, values, 1e-9).mean(SOME)
    assert np.allclose(np.exp(found[:3]), [0.01, 0.005, 0.04], rtol=1e-3)
    assert np.isfinite(OptionModel(SOME, 0 * values, 0.3).mean(ALL)).all()


@pytest.mark.parametrize("counts", [(5,), (2, 2), (1, 3, 2)])
def test_correlations_are_one_on_the_diagonal_and_positive_definite(counts):
    picks = np.array(list(product(*map(range, counts))))
    found = correlation(picks, picks)
    assert np.allclose(np.diag(found), 1)
    assert np.linalg.eigvalsh(found).min() > 0
    assert OptionModel(picks, np.ones(len(picks)), 0.3).draws(
        picks, 3, np.random.default_rng(0)
    ).shape == (3, len(picks))


def volume(draws, costs, taken):
    logs = np.log(costs)
    corner = logs.max() + MARGIN * np.ptp(logs)
    return np.mean(
        [
            hypervolume(np.stack([one[taken], logs[taken]], axis=1), (one.max(), corner))
            for one in draws
        ]
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_is_worth_training_has_the_largest_expected_volume(seed, size):
    rng = np.random.default_rng(seed)
    draws, costs = rng.standard_normal((5, 9)), np.exp(rng.uniform(0, 3, 9))
    taken = worth_training(draws, costs, size)
    assert len(set(taken)) == size
    assert list(costs[taken]) == sorted(costs[taken])
    best = max(volume(draws, costs, list(c)) for c in combinations(range(9), size))
    assert volume(draws, costs, taken) >= 0.97 * best
    if size == 1:
        assert volume(draws, costs, taken) == pytest.approx(best)


def test_nothing_is_taken_that_is_on_no_front():
    draws, costs = np.array([[3.0, 2.0, 4.0, 1.0]] * 2), [1.0, 2.0, 3.0, 4.0]
    assert worth_training(draws, costs, 9) == [0, 1, 3]


def test_of_noisy_scores_the_model_finds_a_better_front_than_they_themselves():
    gained = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        picks = np.array(list(product(range(4), repeat=4)))
        effects = rng.standard_normal((4, 4))
        true = sum(effects[i][picks[:, i]] for i in range(4))
        costs = np.exp(sum(np.abs(effects[i][picks[:, i]]) for i in range(4)) - true / 4)
        seen = np.exp((true + rng.standard_normal(len(true)) * true.std() * 0.7) / 5)
        model = OptionModel(picks, seen, 0.3)
        taken = worth_training(model.draws(picks, 100, rng), costs, 8)
        plain = thinned(np.stack([seen, np.log(costs)], axis=1), 8)
        points = np.stack([true, np.log(costs)], axis=1)
        corner = points.max(0)
        gained.append(hypervolume(points[taken], corner) / hypervolume(points[plain], corner))
    assert np.mean(gained) > 1.02


@pytest.mark.parametrize("seed", range(6))
def test_the_next_network_adds_the_largest_expected_volume(seed):
    rng = np.random.default_rng(seed)
    draws, costs = rng.standard_normal((5, 9)), np.exp(rng.uniform(0, 3, 9))
    taken = [int(i) for i in rng.permutation(9)[: seed % 4]]
    found = adds_most(draws, costs, taken)
    volumes = {i: volume(draws, costs, [*taken, i]) for i in range(9) if i not in taken}
    assert found is not None
    assert volumes[found] == pytest.approx(max(volumes.values()))
    assert adds_most(draws, costs, list(range(9))) is None


def test_a_network_dominated_in_every_draw_is_never_next():
    draws, costs = np.array([[0.1, 0.5, 0.9], [0.2, 0.6, 0.9]]), [1.0, 2.0, 3.0]
    assert adds_most(draws, costs, [0]) is None


def test_trainings_find_the_front_that_a_wrong_ranking_hides():
    learned, ranked = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        truth = np.exp(sum(rng.standard_normal(n)[ALL[:, i]] for i, n in enumerate(COUNTS)) / 3)
        costs = np.exp(sum(rng.uniform(0, 1, n)[ALL[:, i]] for i, n in enumerate(COUNTS)))
        draws = OptionModel(ALL, rng.permutation(truth), 0.3).draws(ALL, 200, rng)
        taken = worth_training(draws, costs, 5)
        while len(taken) < 9:
            known = OptionModel(ALL[taken], truth[taken], 0.15).draws(ALL, 200, rng)
            taken.append(adds_most(known, costs, taken))
        learned.append(volume(truth[None], costs, taken))
        ranked.append(volume(truth[None], costs, worth_training(draws, costs, 9)))
    assert np.mean(learned) > 1.05 * np.mean(ranked)
