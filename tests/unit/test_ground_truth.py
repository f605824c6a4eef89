"""The table of all networks that searches are judged by, and what costs nothing beside them."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from nas.arch import Arch

SCRIPT = Path(__file__).parents[2] / "scripts" / "ground_truth.py"
# Two decisions, one of them a depth; the largest network has the most MACs, and is the worst.
TABLE = """seed,s0b0,s1.depth,params,macs,val_acc,val_loss,test_acc,test_loss,seconds
0,conv,1,100,10,0.5,1,0.50,1,2
0,conv,2,200,30,0.7,1,0.80,1,4
0,sep,1,400,20,0.6,1,0.90,1,3
0,sep,2,800,40,0.6,1,0.40,1,5
1,conv,1,100,10,0.5,1,0.60,1,2
"""


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "small.csv"
    path.write_text(TABLE)
    return runpy.run_path(str(SCRIPT))["Truth"](path)


def test_a_member_has_the_hash_of_its_trial_and_half_a_seed_does_not_count(truth) -> None:
    arch = Arch("small", {"blocks.s0b0": "conv", "blocks.s1.depth": 2})
    assert truth.places([arch]) == [1]
    assert truth.seeds == ["0"]
    assert truth.seconds == 14


def test_shares_of_counting_and_of_the_true_front(truth) -> None:
    # Corner: error .6, 800 parameters. By MACs the front is 100, 200, 800; the truth is 100 to 400.
    two = np.log(2)
    whole = two * 0.1 + two * 0.4 + two * 0.5
    assert truth.best(3) == pytest.approx(1)
    assert truth.of_macs(3) == pytest.approx((two * 0.1 + 2 * two * 0.4) / whole)
    assert truth.random(4) == pytest.approx(1)
    alone = (two * 0.3 + two * 0.8 + two * 0.5) / 4
    assert truth.random(1) == pytest.approx(alone / whole, rel=0.2)


def test_random_alphas_are_as_many_as_asked_or_none(truth) -> None:
    """Log probabilities are sums over decisions: a front of one to four of these networks."""
    assert truth.random_alphas(2) > truth.random_alphas(1) > 0
    assert truth.random_alphas(5) is None
