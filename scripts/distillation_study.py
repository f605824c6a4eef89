"""What a teacher adds: small networks trained with and without one, for several seeds.

    python scripts/distillation_study.py OUT [--data fashion_mnist --root FOLDER] [--seeds 3]

For each seed a supernet is trained, and its largest network alone by the recipe; four random
networks are then trained from the supernet's weights, without a teacher and with each of two: the
largest network as the supernet leaves it, and the largest network trained. What is in OUT is not
done again. Prints the mean test accuracy of each, its gain over none in the same networks, and
the gain's standard error over the seeds.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from nas.arch import Arch
from nas.cli import run
from nas.config.compose import compose_config
from nas.decision import decisions
from nas.problem import SearchProblem
from nas.teacher import largest_of
from nas.verbs import components_of

NETWORKS = 4
SEARCH = ["search=fairnas", "search.ranking.trials=4", "front=1"]


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight", default="0.5")
    parser.add_argument("--temperature", default="4")
    given = parser.parse_args()
    taught = f"finetune.teacher_weight={given.weight} finetune.temperature={given.temperature}"
    gains: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        base = given.out / given.data / str(seed)
        words = [f"data={given.data}", f"seed={seed}", "space.width=0.25", "onnx=false"]
        words += ["threads=1", "trainer.enable_progress_bar=false"]
        if given.data != "digits":
            words += [f"data.root={given.root}", "data.download=false", "data.limit=4000"]
        words += ["finetune.epochs=8"]
        once(base / "search", "search", words, SEARCH)
        archs = drawn([*words, "name=x"], base)
        from_search = [f"checkpoint={base}/search/last.ckpt"]
        once(base / "largest", "finetune", words, [*from_search, f"arch={base}/largest.json"])
        ways = {"none": [], "inherited": ["finetune.teacher=largest", *taught.split()]}
        ways["trained"] = [f"finetune.teacher={base}/largest", *taught.split()]
        for name, teacher in ways.items():
            folder = name if name == "none" else f"{name}-{given.weight}-{given.temperature}"
            found = [
                once(
                    base / folder / arch.stem,
                    "finetune",
                    words,
                    [*from_search, f"arch={arch}", *teacher],
                )
                for arch in archs
            ]
            gains.setdefault(name, []).append(mean(found))
    for name, scores in gains.items():
        gain = [100 * (one - none) for one, none in zip(scores, gains["none"], strict=True)]
        error = stdev(gain) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
        print(f"{name:10} {mean(scores):.2%}  gain {mean(gain):+.2f} +- {error:.2f} points")


def drawn(words: list[str], base: Path) -> list[Path]:
    """Files of the largest architecture and of random ones; those of the latter."""
    problem = SearchProblem(**components_of(compose_config(words)))
    draw = torch.Generator().manual_seed(problem.seed)
    paths = []
    for number in range(NETWORKS):
        chosen: dict[str, Any] = {
            name: d.options[int(torch.randint(len(d.options), (), generator=draw))]
            for name, d in decisions(problem.supernet)
        }
        paths.append(base / f"network{number}.json")
        Arch(problem.space, chosen).save(paths[-1])
    largest_of(problem).save(base / "largest.json")
    return paths


def once(folder: Path, verb: str, words: list[str], more: list[str]) -> float:
    """The test accuracy of a run, which is made or gone on with where it is missing."""
    result = folder / "result.json"
    if not result.exists():
        code = run([verb, *words, *more, f"out={folder.parent}", f"name={folder.name}"])
        assert code == 0, folder
    return float(json.loads(result.read_text())["metrics"]["test_acc"])


if __name__ == "__main__":
    main()
