"""A search in anyone's own PyTorch loop, without Lightning and without Hydra."""

import subprocess
import sys

OWN_LOOP = """
import torch
from torch import nn
from nas import ChoiceBlock, ExpectedCost, MACs, build_op, discretize, split_parameters

def block(c_in, c_out):
    return ChoiceBlock({op: build_op(op, c_in, c_out, stride=2) for op in ("conv_k5", "sep_k3")})

def batches():
    for _ in range(30):
        yield torch.randn(8, 1, 8, 8), torch.randint(10, (8,))

torch.manual_seed(0)
model = nn.Sequential(block(1, 8), block(8, 16), nn.Flatten(), nn.Linear(64, 10))

cost = ExpectedCost(model, MACs(), (1, 8, 8))
weights, alphas = split_parameters(model)
optimizers = torch.optim.SGD(weights, 0.05), torch.optim.Adam(alphas, 0.05)
start = cost().item()
for x, y in batches():
    loss = nn.functional.cross_entropy(model(x), y) + 3.0 * cost() / start
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
network = discretize(model)
"""
CHECK = """
import sys
assert not {"pytorch_lightning", "lightning", "hydra", "omegaconf"} & set(sys.modules)
assert network.eval()(x).shape == (8, 10)
# How far sep_k3, the cheaper op, ends above conv_k5 in each block.
print(*[float(alpha[1] - alpha[0]) for alpha in alphas])
"""


def test_the_penalty_decides_in_an_own_loop(tmp_path):
    script = OWN_LOOP + CHECK
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Labels are random: without the penalty neither op is better.
    ahead = [float(word) for word in done.stdout.split()]
    assert len(ahead) == 2
    assert min(ahead) > 1
