"""The training loop of the documents: a search without Lightning and without Hydra."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "loop.md").read_text(encoding="utf-8")
(LOOP,) = re.findall(r"```python\n(import torch\n.*?split_parameters.*?)```", PAGE, re.DOTALL)
CHECK = """
import sys
assert not {"pytorch_lightning", "lightning", "hydra", "omegaconf"} & set(sys.modules)
network = nas.discretize(supernet)
assert network.eval()(train[0][0]).shape == (8, 10)
print(type(network[2]).__name__, *supernet[2].alpha.tolist())
"""


def test_the_loop_of_the_page_finds_the_cheapest_op(tmp_path):
    """Its labels are random: without the penalty no op is better than another."""
    script = LOOP.replace("range(4)", "range(60)").replace("(8, 1, 28, 28)", "(8, 1, 8, 8)")
    script = f"import torch\ntorch.manual_seed(0)\n{script}".replace("strength=0.1", "strength=2.0")
    done = subprocess.run(
        [sys.executable, "-c", script + CHECK], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    taken, conv, skip = done.stdout.split()
    assert taken == "Identity"
    assert float(skip) > float(conv) + 0.1
