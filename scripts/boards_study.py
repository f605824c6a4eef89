"""Flash and RAM as predicted while searching against the linker map, and instructions in QEMU.

    python scripts/boards_study.py --out experiments/boards
    python scripts/boards_study.py --host chain_tiny ds_cnn
    python scripts/boards_study.py --cards runs/digits_*/export/card.json

Draws networks of every space that has an integer form, writes each as C, cross-compiles it for
every board, runs two samples in QEMU and writes sizes.csv; prints it as the table of
experiments/boards/README.md. Weights are drawn: sizes do not depend on them. Needs
arm-none-eabi-gcc and qemu-system-arm, see docs/boards.md. With --host, times the C file on this
machine beside the int8 files of onnxruntime and ExecuTorch. With --cards, prints what the cards of
`nas export format=c,onnx,int8_onnx board=cortex_m4,cortex_m7,cortex_m55` say of trained networks.
"""

import argparse
import csv
import io
import json
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
from nas.export.check import latencies
from nas.export.int8 import int8_onnx_bytes, int8_pte_bytes
from nas.integer.boards import BOARDS, check_boards, on_board
from nas.integer.compiled import FILES, CompiledModel, c_contents
from nas.lowering import onnx_bytes, open_onnx, open_pte

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
RUNTIMES = ("C int8", "ONNX Runtime int8", "ExecuTorch int8", "ONNX Runtime float32")
COLUMNS = (
    *("space", "network", "board", "macs", "float32", "weights", "flash", "flash_map"),
    *("flash_over", "ram", "ram_map", "ram_over", "stack", "instructions", "equal"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("experiments/boards"))
    parser.add_argument("--host", action="store_true", help="time on this machine instead")
    parser.add_argument("--cards", nargs="+", type=Path, help="print a table of these instead")
    parser.add_argument("spaces", nargs="*", default=list(SHAPES))
    given = parser.parse_args()
    if given.cards:
        print(trained([json.loads(path.read_text(encoding="utf-8")) for path in given.cards]))
        return
    torch.set_num_threads(1)
    if given.host:
        print(f"| network | {' | '.join(RUNTIMES)} |\n|---|{'---|' * len(RUNTIMES)}")
        for name in given.spaces:
            print(timed(name), flush=True)
        return
    check_boards(BOARDS)
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
    print(table([row for row in rows if row["board"] == "cortex_m4"]))


def table(rows: list[dict[str, Any]]) -> str:
    """Of one board, as Markdown."""
    heads = ["network", "MACs", "float32, B", "weights, B", "flash, B", "predicted", "RAM, B"]
    heads += ["predicted", "instructions / MAC"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        whole = row["float32"]
        weights, flash = (f"{row[k]:,} ({row[k] / whole:.1%})" for k in ("weights", "flash_map"))
        cells = [f"`{row['space']}` {row['network']}", f"{row['macs']:,}", f"{whole:,}", weights]
        cells += [flash, f"{float(row['flash_over']):+.2%}", f"{row['ram_map']:,}"]
        cells += [f"{float(row['ram_over']):+.2%}", f"{row['instructions'] / row['macs']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def trained(cards: list[dict[str, Any]]) -> str:
    """Of cards of trained networks, as Markdown."""
    heads = ["network", "float", "C", "int8 ONNX", "ONNX float32, B", "int8 ONNX, B"]
    heads += ["flash on M4 (of it weights), B", "RAM, B", "million instructions, M4 / M7 / M55"]
    heads += ["outputs equal to the bit", "host, us: C, int8 ONNX, ONNX"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for card in cards:
        c, small, plain = (card["formats"][name] for name in ("c", "int8_onnx", "onnx"))
        boards = [c["boards"][name] for name in BOARDS]
        first, *_ = boards
        cells = [f"`{card['space']}`", f"{c['eager_score']:.2%}"]
        cells += [f"{row['score']:.2%}" for row in (c, small)]
        cells += [f"{sum(row['files'].values()):,}" for row in (plain, small)]
        cells += [f"{first['flash']:,} ({first['weights']:,})", f"{first['ram']:,}"]
        cells.append(" / ".join(f"{board['instructions'] / 1e6:.2f}" for board in boards))
        equal = ", ".join(str(board["equal"]) for board in boards)
        cells.append(f"{equal} of {first['samples']}")
        times = (1e6 * row["latency"]["seconds"] for row in (c, small, plain))
        cells.append(", ".join(f"{time:.0f}" for time in times))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def drawn(name: str, number: int) -> tuple[nn.Module, dict[str, Any], nn.Module, torch.Tensor]:
    """A space, an architecture of it, its network, and inputs."""
    space, draw = supernet(name, SHAPES[name]), random.Random(number)
    arch = {n: draw.choice(list(d.options)) for n, d in decisions(space)}
    network = discretize(space, Arch(name, arch)).eval()
    return space, arch, network, torch.randn(16, *SHAPES[name])


def compiled_model(name: str, network: nn.Module, x: torch.Tensor, folder: Path) -> CompiledModel:
    """The C file of a network, on this machine."""
    outputs = [str(i) for i in range(network(x[:1]).shape[-1])]
    contents = c_contents(network, x, x, f"a network of {name}", outputs)
    for file, content in zip(FILES, contents, strict=True):
        (folder / file).write_text(str(content))
    return CompiledModel(folder / FILES[0])


def timed(name: str) -> str:
    """A line of Markdown: microseconds of one sample on one thread, in each of `RUNTIMES`."""
    _, _, network, x = drawn(name, 0)
    with TemporaryDirectory() as place, torch.no_grad():
        folder = Path(place)
        model = compiled_model(name, network, x, folder)
        levels = model.start.quantize(x[:1])
        pte = folder / "network.pte"
        pte.write_bytes(int8_pte_bytes(network, x, x))
        models = {
            "C int8": lambda _: model.run(levels),
            "ONNX Runtime int8": open_onnx(int8_onnx_bytes(network, x, x)),
            "ExecuTorch int8": open_pte(pte),
            "ONNX Runtime float32": open_onnx(onnx_bytes(network, (x,))),
        }
        found = latencies(network, models, x[:1])
    cells = [f"{1e6 * found[runtime]['seconds']:.0f}" for runtime in RUNTIMES]
    return f"| `{name}` 0 | {' | '.join(cells)} |"


def measured(name: str, number: int) -> Iterator[dict[str, Any]]:
    """The rows of one network, one for each board."""
    space, arch, network, x = drawn(name, number)
    traced = trace(space, SHAPES[name])
    folded = Size("float32", fold_norm=True)
    costs = {c.name: expected(space, c, traced).of(arch) for c in (Flash(), Ram(), MACs(), folded)}
    with TemporaryDirectory() as place:
        folder = Path(place)
        try:
            model = compiled_model(name, network, x, folder)
        except UserError as error:
            print(f"{name} {number}: {error}")
            return
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
