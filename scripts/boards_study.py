"""Flash and RAM as predicted while searching against the linker map, and instructions in QEMU.

    python scripts/boards_study.py --out experiments/boards

Draws networks of every space that has an integer form, writes each as C, cross-compiles it for
every board, runs two samples in QEMU and writes sizes.csv. Weights are drawn: sizes do not depend
on them. Needs arm-none-eabi-gcc and qemu-system-arm, see docs/boards.md.
"""

import argparse
import csv
import io
import random
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import nn

from nas.arch import Arch
from nas.artifacts.files import write_atomic
from nas.config.help import config_dir
from nas.cost.analytic import MACs, Size
from nas.cost.boards import Flash, Ram
from nas.cost.expected import expected
from nas.cost.trace import trace
from nas.decision import decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.integer.boards import BOARDS, check_boards, on_board
from nas.integer.compiled import FILES, CompiledModel, c_contents

SHAPES = {
    "chain_tiny": (1, 28, 28),
    "ds_cnn": (1, 49, 10),
    "tcn": (9, 64),
    "resnet_tiny": (3, 32, 32),
    "mobilenet_tiny": (3, 32, 32),
    "mobilenet_v1_tiny": (3, 96, 96),
    "chain": (3, 32, 32),
    "autoencoder": (1, 640),
    "mnasnet_small": (3, 32, 32),
    "ofa_mobilenet_small": (3, 32, 32),
    "truth_mobile": (1, 28, 28),
    "nas_bench_201": (3, 16, 16),
}
EACH = 2  # networks of a space
COLUMNS = (
    *("space", "network", "board", "macs", "float32", "weights", "flash", "flash_map"),
    *("flash_over", "ram", "ram_map", "ram_over", "stack", "instructions", "equal"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/boards"))
    parser.add_argument("spaces", nargs="*", default=list(SHAPES))
    given = parser.parse_args()
    check_boards(BOARDS)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in given.spaces:
        for number in range(EACH):
            rows += measured(name, number)
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            given.out.mkdir(parents=True, exist_ok=True)
            write_atomic(given.out / "sizes.csv", text.getvalue())


def measured(name: str, number: int) -> Iterator[dict[str, Any]]:
    """The rows of one network, one for each board."""
    shape = SHAPES[name]
    space = supernet(name, shape)
    traced = trace(space, shape)
    draw = random.Random(number)
    arch = {n: draw.choice(list(d.options)) for n, d in decisions(space)}
    folded = Size("float32", fold_norm=True)
    costs = {c.name: expected(space, c, traced).of(arch) for c in (Flash(), Ram(), MACs(), folded)}
    network = discretize(space, Arch(name, arch)).eval()
    x = torch.randn(4, *shape)
    with TemporaryDirectory() as place:
        folder = Path(place)
        outputs = [str(i) for i in range(network(x).shape[-1])]
        try:
            contents = c_contents(network, x, x, f"a network of {name}", outputs)
        except UserError as error:
            print(f"{name} {number}: {error}")
            return
        for file, content in zip(FILES, contents, strict=True):
            (folder / file).write_text(str(content))
        model = CompiledModel(folder / FILES[0])
        levels = model.start.quantize(x[:2])
        for board, what in BOARDS.items():
            found = on_board(what, folder, levels, model.run(levels))
            row = {
                "space": name,
                "network": number,
                "board": board,
                "macs": int(costs["macs"]),
                "float32": int(costs["size"]),
                "weights": found.weights,
                "flash": int(costs["flash"]),
                "flash_map": found.flash,
                "flash_over": f"{costs['flash'] / found.flash - 1:.4f}",
                "ram": int(costs["ram"]),
                "ram_map": found.ram,
                "ram_over": f"{costs['ram'] / found.ram - 1:.4f}",
                "stack": found.stack,
                "instructions": int(found.instructions),
                "equal": f"{found.equal} of {found.samples}",
            }
            print(*(f"{key} {value}" for key, value in row.items()), flush=True)
            yield row


def supernet(name: str, shape: tuple[int, ...]) -> nn.Module:
    """A space of configs/space; its norms hold statistics as after training, no two alike."""
    table = yaml.safe_load((config_dir() / "space" / f"{name}.yaml").read_text(encoding="utf-8"))
    module, _, attribute = table["_target_"].rpartition(".")
    options = {key: value for key, value in table.items() if not key.startswith("_")}
    torch.manual_seed(0)
    outputs = shape[-1] if name == "autoencoder" else 10
    space: nn.Module = getattr(import_module(module), attribute)(
        input_shape=shape, num_outputs=outputs, **options
    )
    for part in space.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return space.eval()


if __name__ == "__main__":
    main()
