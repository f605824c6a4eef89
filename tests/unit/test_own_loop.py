"""README's own training loop: a search without Lightning and without Hydra."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

SETUP = """
import torch
from torch import nn
torch.manual_seed(0)
task_loss = nn.functional.cross_entropy
"""
OPTIMIZERS = "optimizers = torch.optim.SGD(weights, 0.02), torch.optim.Adam(alphas, 0.05)"
STEP = """
for step in range(40):
    # Random labels: without the penalty no op is better than another.
    x, y = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    {loss}
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
"""
CHECK = """
import sys
assert not {"pytorch_lightning", "lightning", "hydra", "omegaconf"} & set(sys.modules)
assert network.eval()(x).shape == (8, 10)
print(type(network.second).__name__, *supernet.second.alpha.tolist())
"""


def script() -> str:
    """README's class and loop, with the batches and the steps that it leaves to the reader."""
    (module,) = [block for block in BLOCKS if "class Mine" in block]
    (loop,) = [block for block in BLOCKS if "split_parameters" in block]
    before, loss, after = re.split(r"^(loss = .*)\n", loop, flags=re.MULTILINE)
    small = before.replace("(1, 28, 28)", "(1, 8, 8)")
    step = STEP.format(loss=re.sub(r"\b0\.\d+ \* cost", "2.0 * cost", loss))
    assert "2.0 * cost" in step
    return "\n".join([SETUP, module, small, OPTIMIZERS, step, after, CHECK])


def test_the_loop_of_the_readme_finds_the_cheapest_op(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", script()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    taken, *alphas = done.stdout.split()
    wide, sep, skip = map(float, alphas)
    assert taken == "Identity"
    assert skip > sep + 0.1
    assert sep > wide + 0.1
