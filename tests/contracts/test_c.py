"""The C file is the integer graph to the bit, on this machine and on every board in QEMU."""

import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nas
from nas.arch import Arch
from nas.cost.boards import _KERNELS, _UNPACK, Flash, Ram
from nas.cost.expected import expected
from nas.decision import decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.integer import IntegerGraph, boards, integer_graph
from nas.integer.arena import _Buffer, _placed, planned
from nas.integer.boards import BOARDS, check_boards, map_sizes, on_board
from nas.integer.c import _loops, _runs, c_source
from nas.integer.compiled import FILES, CompiledModel, c_contents, check_compiler
from nas.ops.blocks import GlobalPool
from nas.quantization.network import Quantize, quantized
from nas.spaces.staged import StagedSpace

from .strategies import randomized
from .test_integer import NETWORKS, graph_of

compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler here: apt install gcc"
)
emulator = pytest.mark.skipif(
    not all(map(shutil.which, ("arm-none-eabi-gcc", "qemu-system-arm"))),
    reason="no compiler or emulator of Cortex-M here: apt install gcc-arm-none-eabi "
    "libnewlib-arm-none-eabi qemu-system-arm",
)


def written(graph: IntegerGraph, folder: Path) -> Path:
    for name, text in zip(FILES, c_source(graph, "a test */ #error"), strict=False):
        (folder / name).write_text(text)
    return folder / FILES[0]


class Mixed(dict):
    """Bits by the path of a layer: of all kinds."""

    def get(self, path: str, default: int = 8) -> int:
        return (8, 4, 2)[len(path) % 3]


@compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_the_c_file_is_the_integer_graph_to_the_bit(name, tmp_path):
    _, graph, x = graph_of(name, Mixed())
    model = CompiledModel(written(graph, tmp_path))
    wild = torch.randint(-128, 128, (20, *graph.start.shape))
    for levels in (graph.start.quantize(x), wild):
        assert torch.equal(model.run(levels), graph.run(levels).flatten(1))
    assert torch.equal(model(x), graph(x).flatten(1))


@compiler
@pytest.mark.parametrize("part", [nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Tanh(), nn.Hardtanh()])
def test_each_kernel_compiles_without_the_others(part, tmp_path):
    network, x = nn.Sequential(part, nn.Flatten()).eval(), torch.randn(9, 3, 4, 4)
    graph = integer_graph(network, x)
    levels = graph.start.quantize(x)
    assert torch.equal(CompiledModel(written(graph, tmp_path)).run(levels), graph.run(levels))


@compiler
@pytest.mark.parametrize("bits", [[2, 8, 4, 4, 2, 8], [4, 8, 8, 4, 8, 8], [4] * 6])
def test_channels_of_different_bits(bits, tmp_path):
    network, x = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten()).eval(), torch.randn(9, 3, 5, 5)
    graph = integer_graph(network, x, {"0": torch.tensor(bits)})
    levels = graph.start.quantize(x)
    assert torch.equal(CompiledModel(written(graph, tmp_path)).run(levels), graph.run(levels))


class Corners(nn.Module):
    """Limits inside a wider range, a product of two maps, padding in a mean, a large shift."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.gate, self.wide = nn.Conv2d(6, 6, 1), nn.Conv2d(9, 4, 3)
        self.wide.bias.data[:] = torch.tensor([9000.0, -7000, 300, 0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(x)
        x = torch.cat([F.hardtanh(self.first(x), -0.2, 0.1), y], 1)
        x = F.avg_pool2d(x * self.gate(x), 3, 2, 1)
        x = torch.cat([x, F.max_pool2d(y, 3, 2, 1)], 1)
        wide = torch.sigmoid(self.wide(x).flatten(1) * 1e-3)
        return torch.cat([x.flatten(1), wide, x.mean((2, 3)).relu()], 1)


@compiler
def test_corners_that_the_networks_of_spaces_do_not_have(tmp_path):
    torch.manual_seed(0)
    network, x = Corners().eval(), torch.randn(16, 2, 7, 6)
    graph = integer_graph(network, x)
    assert max(conv.shift for conv in graph.convolutions()) > 30
    assert any(operator.low > -128 and operator.high < 127 for operator in graph.operators)
    model = CompiledModel(written(graph, tmp_path))
    for levels in (graph.start.quantize(x), torch.randint(-128, 128, (20, 2, 7, 6))):
        assert torch.equal(model.run(levels), graph.run(levels).flatten(1))


@compiler
@pytest.mark.parametrize("bias", [-60_000.0, 60_000.0])
def test_a_bias_that_outweighs_all_products_saturates(bias, tmp_path):
    network, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU6()).eval(), torch.randn(4, 1, 4, 4)
    network[0].weight.data.mul_(1e-12)
    network[0].bias.data.fill_(bias)
    graph = integer_graph(network, x)
    model = CompiledModel(written(graph, tmp_path))
    assert torch.equal(model(x), graph(x).flatten(1))
    assert torch.equal(model(x), torch.full((4, 8), 6.0 if bias > 0 else 0.0))


@compiler
def test_the_firmware_runs_here_without_a_warning_and_without_undefined_behaviour(tmp_path):
    network, graph, x = graph_of("sequences")
    for name, text in zip(FILES, c_contents(network, x, x, "a test", "abc"), strict=True):
        (tmp_path / name).write_text(str(text))
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-g", "-O1"]
    if shutil.which("gcc"):
        strict += ["-fsanitize=undefined", "-fno-sanitize-recover"]
    sources = [tmp_path / name for name in FILES if name.endswith(".c")]
    program = tmp_path / "firmware"
    boards.run_compiler([check_compiler(), *strict, *sources, "-o", program])
    done = subprocess.run([program], capture_output=True, text=True)
    assert not done.stderr
    for i, row in enumerate(graph.run(graph.start.quantize(x[:4]))):
        line = done.stdout.splitlines()[i]
        best = int(row.argmax())
        assert line.startswith(f"{i}: class {best} ({'abc'[best]})")
        assert line.endswith(f"levels {' '.join(map(str, row.tolist()))}")
    for word in ("malloc", "float", "double", "math.h"):
        assert word not in sources[0].read_text()
    page = (Path(__file__).parents[2] / "docs" / "boards.md").read_text(encoding="utf-8")
    (tmp_path / "feed.c").write_text(page.partition("```c feed.c\n")[2].partition("```")[0])
    boards.run_compiler([check_compiler(), *strict, "-c", tmp_path / "feed.c", "-o", program])


@emulator
@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake here: apt install cmake")
def test_the_example_is_built_by_cmake_for_this_machine_and_for_a_board(tmp_path):
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(33, 3)]
    network = nn.Sequential(nn.Conv2d(2, 33, 3, padding=1), nn.ReLU(), *pooled).eval()
    x = torch.randn(9, 2, 64, 64)  # an arena of 135 kB, which the stack must not lie in
    for name, text in zip(FILES, c_contents(network, x, x, "a test", "abc"), strict=True):
        (tmp_path / name).write_text(str(text))
    said = []
    for folder, words in (("build", []), ("build-m4", ["-DCPU=cortex-m4"])):
        for command in (["-S", ".", "-B", folder, *words], ["--build", folder]):
            subprocess.run(["cmake", *command], cwd=tmp_path, check=True, capture_output=True)
        run = ["-M", "mps2-an386", "-nographic", "-semihosting-config", "enable=on,target=native"]
        program = [tmp_path / folder / "firmware"]
        if words:
            program = ["qemu-system-arm", *run, "-kernel", *program]
        done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=True)
        said.append([re.sub(r"ticks \d+", "", line) for line in done.stdout.splitlines()])
    assert said[0] == said[1]
    assert len(said[0]) == 4


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, IntegerGraph, Tensor]:
    """The files of a small network, its graph, and levels of inputs."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)]
    network, x = nn.Sequential(*layers).eval(), torch.randn(100, 2, 5, 5)
    contents = c_contents(network, x, x, "a test", ["a", "b", 'c"'])
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).write_text(str(content))
    graph = integer_graph(network, x)
    return folder, graph, graph.start.quantize(x)


@emulator
@pytest.mark.parametrize("board", BOARDS)
def test_a_board_gives_the_same_to_the_bit(board, small):
    folder, graph, levels = small

    found = on_board(BOARDS[board], folder, levels, graph.run(levels))

    assert (found.samples, found.equal) == (100, 100)
    assert graph.weight_bytes < found.flash < graph.weight_bytes + 4000
    given = graph.start.numel + graph.end.numel
    assert planned(graph).size + given <= found.ram <= planned(graph).size + given + 8
    assert 5_000 < found.instructions < 200_000
    assert 0 < found.stack < 1000
    wrong = graph.run(levels[:9])
    wrong[4, 1] += 1
    again = on_board(BOARDS[board], folder, levels[:9], wrong)
    assert again.equal == 8
    assert again.instructions == pytest.approx(found.instructions, rel=0.01)


def test_what_is_missing_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for call, said in (
        (check_compiler, "apt install gcc"),
        (lambda: check_boards(["cortex_m4"]), "gcc-arm-none-eabi libnewlib-arm-none-eabi"),
        (lambda: check_boards(["avr"]), "board='avr' is not one of cortex_m4"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    asked = subprocess.CompletedProcess([], 0, "rdimon.specs\n", "")  # as it is not found
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: asked)
    with pytest.raises(UserError, match=r"lacks newlib .* libnewlib-arm-none-eabi"):
        check_boards(["cortex_m4"])
    check_boards([])


def test_sizes_are_read_off_a_linker_map():
    text = """
 .text          0x0000053c      0xac0 /tmp/network.o
 .text.startup  0x00000400       0xb4 /tmp/firmware.o
 .rodata.str1.4
                0x00000400       0x0c /tmp/network.o
 .bss           0x200009c0       0x10 network.o
 .bss           0x200009c0      0x73d /tmp/other_network.o.x
"""
    assert map_sizes(text, "network.o") == {"text": 0xAC0, "rodata": 0xC, "data": 0, "bss": 0x10}


lives = st.tuples(st.integers(0, 40), st.integers(0, 6), st.integers(0, 3))


@given(st.lists(lives, min_size=1, max_size=12))
def test_no_two_values_that_live_at_once_overlap(drawn):
    buffers = [_Buffer(str(i), n, a, a + b) for i, (n, a, b) in enumerate(drawn)]
    offsets, size, least = _placed(buffers)
    assert least <= size
    for one in buffers:
        assert 0 <= offsets[one.name] <= size - one.size
        for other in buffers:
            if one is not other and one.first <= other.last and other.first <= one.last:
                first, second = sorted([one, other], key=lambda b: (offsets[b.name], b.size))
                assert offsets[first.name] + first.size <= offsets[second.name]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(-5, 9)), max_size=4), st.integers(60, 70))
@settings(max_examples=60)
def test_loops_and_runs_give_back_the_order(nest, start):
    index = np.array([start])
    for count, stride in nest:
        index = (index[:, None] + stride * np.arange(count)).ravel()
    if (found := _loops(index)) is not None:
        begin, loops = found
        again = np.array([begin])
        for count, stride in loops:
            again = (again[:, None] + stride * np.arange(count)).ravel()
        assert np.array_equal(again, index)
    holes = np.where(index % 3 == 0, -1, index)
    again = np.concatenate([np.full(n, -1) if b < 0 else b + np.arange(n) for b, n in _runs(holes)])
    assert np.array_equal(again, holes)


SPACE = [
    {"ops": ["conv_k3", "mb_k3_e2_se", "dil_k3"], "channels": 8},
    {"ops": ["sep_k5", "res_k3", "conv_k5"], "channels": [8, 16], "stride": 2},
]


@pytest.fixture(scope="module")
def searched() -> nn.Module:
    torch.manual_seed(0)
    return randomized(StagedSpace((2, 12, 12), 3, SPACE)).eval()


def chosen(space: nn.Module, number: int) -> tuple[dict[str, object], nn.Module]:
    arch = {n: d.options[number % len(d.options)] for n, d in decisions(space)}
    return arch, discretize(space, Arch(space.name, arch)).eval()


@compiler
@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 7)])
def test_flattening_before_a_linear_layer_copies_nothing(shape, tmp_path):
    torch.manual_seed(0)
    conv = (nn.Conv1d if len(shape) == 2 else nn.Conv2d)(3, 6, 3, padding=1)
    linear = nn.Linear(6 * torch.Size(shape[1:]).numel(), 4)
    network, x = (
        nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear).eval(),
        torch.randn(16, *shape),
    )
    graph = integer_graph(network, x)
    assert [type(operator).__name__ for operator in graph.operators] == ["Conv", "Conv"]
    with torch.no_grad():
        assert (graph(x) - network(x)).abs().max() < 0.05
    packed = integer_graph(network, x, {"3": torch.tensor([8, 4, 2, 8])})
    levels = torch.randint(-128, 128, (20, *shape))
    assert torch.equal(CompiledModel(written(packed, tmp_path)).run(levels), packed.run(levels))
    given = graph.start.numel + graph.end.numel
    assert expected(network, Ram(), shape).of({}) == planned(graph).size + given


@pytest.mark.parametrize("number", range(3))
def test_flash_and_ram_of_a_search_are_never_below_those_of_the_graph(searched, number):
    arch, network = chosen(searched, number)
    graph = integer_graph(network, torch.randn(8, 2, 12, 12))
    ram, flash = (expected(searched, cost(), (2, 12, 12)).of(arch) for cost in (Ram, Flash))
    plan, given = planned(graph), graph.start.numel + graph.end.numel
    assert ram == plan.size + given
    assert graph.weight_bytes + 1000 < flash < graph.weight_bytes + 4500
    few = expected(searched, Flash(weight_bits=2), (2, 12, 12)).of(arch)
    packed = integer_graph(network, torch.randn(8, 2, 12, 12), 2).weight_bytes
    assert flash - few == graph.weight_bytes - packed - _UNPACK


def test_ram_holds_the_row_of_weights_that_is_unpacked():
    torch.manual_seed(0)
    stages = [{"ops": ["conv_k3", "sep_k5"], "channels": 16}]
    space = quantized(
        randomized(StagedSpace((2, 6, 6), 3, stages)),
        Quantize(weights=(4, 8)),
        [torch.randn(16, 2, 6, 6)],
    ).eval()
    ram = expected(space, Ram(), (2, 6, 6))
    for number in range(2):
        for bits in (4, 8):
            options = {n: d.options for n, d in decisions(space)}
            arch = {n: bits if bits in o else o[number] for n, o in options.items()}
            network = discretize(space, Arch(space.name, arch)).eval()
            graph = integer_graph(network, torch.randn(8, 2, 6, 6))
            given = graph.start.numel + graph.end.numel
            assert ram.of(arch) == planned(graph).size + given


def test_an_output_channel_takes_its_weights_and_four_bytes(searched):
    flash, (arch, _) = expected(searched, Flash(), (2, 12, 12)), chosen(searched, 0)
    found = []
    for channels in (8, 16):
        choices = arch | {"blocks.s1b0.candidates.sep_k5.out_channels": channels}
        modules = discretize(searched, Arch(searched.name, choices)).modules()
        layers = [m for m in modules if isinstance(m, nn.Conv2d | nn.Linear)]
        assert layers[-1].in_features == channels
        own = sum(layer.weight.numel() + 4 * len(layer.weight) for layer in layers)
        found.append(flash.of(choices) - own)
    assert found[0] == found[1]


def test_ram_leaves_out_padding_that_the_convolutions_do_themselves():
    torch.manual_seed(0)
    space = randomized(StagedSpace((3, 40), 3, [{"ops": ["tcn_k7_d2"], "channels": 8}])).eval()
    graph = integer_graph(discretize(space), torch.randn(8, 3, 40))
    given = graph.start.numel + graph.end.numel
    assert expected(space, Ram(), (3, 40)).of({}) == planned(graph).size + given


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


@pytest.mark.parametrize("part", [nn.LeakyReLU(), nn.Tanh(), nn.ELU(), Scaled()])
def test_flash_has_a_table_for_each_function_of_one_number(part):
    def flash(*parts: nn.Module) -> float:
        network = nn.Sequential(nn.Conv2d(2, 4, 3), *parts, nn.Conv2d(4, 3, 10))
        return float(expected(network, Flash(), (2, 12, 12))())

    assert flash(part) - flash(nn.ReLU()) > 256
    assert flash(nn.ReLU()) == flash()


@emulator
@pytest.mark.parametrize("how", ["relu", "hardswish", "bits"])
def test_flash_of_a_search_is_just_above_that_of_the_linker_map(searched, how, tmp_path):
    x = torch.randn(16, 2, 12, 12)
    if how == "hardswish":
        searched = randomized(StagedSpace((2, 12, 12), 3, SPACE, activation=how)).eval()
    elif how == "bits":
        fixed = [{**stage, "channels": 8} for stage in SPACE]
        space = randomized(StagedSpace((2, 12, 12), 3, fixed))
        searched = quantized(space, Quantize(weights=4, first=8), [x]).eval()
    arch, network = chosen(searched, 1)
    for name, text in zip(FILES, c_contents(network, x, x, "a test", "abc"), strict=True):
        (tmp_path / name).write_text(str(text))
    model = CompiledModel(tmp_path / FILES[0])
    levels = model.start.quantize(x[:1])
    found = on_board(BOARDS["cortex_m4"], tmp_path, levels, model.run(levels))
    flash = expected(searched, Flash(), (2, 12, 12)).of(arch)
    assert found.flash <= flash <= 1.03 * found.flash
    assert found.weights == integer_graph(network, x).weight_bytes


@emulator
@pytest.mark.parametrize("kind", ["linear", "conv", "depthwise"])
def test_flash_of_one_layer_alone_is_just_above_that_of_the_linker_map(kind, tmp_path):
    layer, shape = {
        "linear": (nn.Linear(64, 48), (64,)),
        "conv": (nn.Conv2d(4, 24, 8), (4, 8, 8)),
        "depthwise": (nn.Conv2d(24, 24, 8, groups=24), (24, 8, 8)),
    }[kind]
    network = nn.Sequential(layer, nn.ReLU(), nn.Flatten()).eval()
    found = compiled_size(integer_graph(network, torch.randn(16, *shape)), tmp_path)
    assert found <= expected(network, Flash(), shape).of({}) <= 1.03 * found


class Parts(nn.Module):
    """Its layer reads a part of a map, strided where `rest` is False: else it joins the rest."""

    def __init__(self, rest: bool) -> None:
        super().__init__()
        self.rest = rest
        self.conv = nn.Conv2d(4, 4, 3, 1 if rest else 6, padding=1)

    def forward(self, x):
        if self.rest:
            first, rest = x.chunk(2, 1)
            return torch.cat([self.conv(first), rest], 1)
        return self.conv(x[:, :4])


@emulator
@pytest.mark.parametrize("kind", ["flat", "pooled", "part", "parts"])
def test_moves_of_a_users_network_are_priced(kind, tmp_path):
    """A part of a map is a copy, and so is a map that ends as a row of numbers."""
    ends = {
        "flat": [nn.Conv2d(8, 4, 3), nn.Flatten()],
        "pooled": [nn.MaxPool2d(2), nn.Flatten()],
        "part": [Parts(False), GlobalPool()],
        "parts": [Parts(True), GlobalPool()],
    }[kind]
    network = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), *ends).eval()
    graph = integer_graph(network, torch.randn(16, 2, 12, 12))

    flash, ram = (expected(network, cost(), (2, 12, 12)).of({}) for cost in (Flash, Ram))

    found = compiled_size(graph, tmp_path)
    assert found <= flash <= found + 200
    held = planned(graph).size + graph.start.numel + graph.end.numel
    assert held <= ram <= 1.25 * held
    if kind in ("flat", "pooled"):
        assert ram == held


def compiled_size(graph: IntegerGraph, folder: Path) -> int:
    """Bytes of code and constants on a Cortex-M4."""
    written(graph, folder)
    (board := folder / "board").mkdir()
    boards._compile(BOARDS["cortex_m4"], folder, board)
    size = ["arm-none-eabi-size", str(board / "network.o")]
    said = subprocess.run(size, capture_output=True, text=True, check=True).stdout
    text, data = map(int, said.split()[6:8])
    return text + data


class Calls(nn.Module):
    """A searched number of sums: of two blocks with a skip each, both, one or none are left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            nas.ChoiceBlock({op: nas.build_op(op, 4, 4) for op in ("res_k3", "conv_k3")})
            for _ in range(2)
        )
        self.last = nn.Conv2d(4, 3, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x).flatten(1)


def test_a_kernel_that_one_place_calls_is_cheaper_whichever_place_that_is():
    torch.manual_seed(0)
    space = randomized(Calls()).eval()
    flash = expected(space, Flash(), (2, 6, 6))
    per_call, code, alone = _KERNELS["add"]
    found = {}
    for first, second in product(("res_k3", "conv_k3"), repeat=2):
        arch = {"blocks.0": first, "blocks.1": second}
        network = discretize(space, Arch("mine", arch)).eval()
        layers = sum(4 * len(m.weight) + m.weight.numel() + 72 for m in convs(network))
        found[first, second] = flash.of(arch) - layers
        assert flash.of(arch) == expected(network, Flash(), (2, 6, 6)).of({})
    none, first, second, both = (found[key] for key in sorted(found))
    assert first == second == none + per_call + code - alone
    assert both == none + 2 * per_call + code
    for block in space.blocks:
        nn.init.normal_(block.alpha)
    shares = [dict(zip(b.options, b.theta.tolist(), strict=True)) for b in space.blocks]
    mean = sum(
        shares[0][a] * shares[1][b] * flash.of({"blocks.0": a, "blocks.1": b}) for a, b in found
    )
    assert float(flash().detach()) == pytest.approx(mean)


def convs(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_sizes_beyond_16_bits_are_refused():
    for network, shape in (
        (nn.Sequential(nn.Linear(66_000, 3)), (66_000,)),
        (nn.Sequential(nn.MaxPool1d(2)), (1, 66_000)),
    ):
        graph = integer_graph(network.eval(), torch.randn(2, *shape))
        with pytest.raises(UserError, match=r"has 66000 channels or positions .* up to 65535"):
            c_source(graph, "a test")


class Moves(nn.Module):
    """A network of a user's own that moves numbers, for something else than a convolution."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 3, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "transpose":
            x = torch.tanh(x.transpose(2, 3))
        else:
            x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)
        return self.last(x).flatten(1)


@emulator
@pytest.mark.parametrize("kind", ["transpose", "pad"])
def test_flash_and_ram_hold_what_a_users_network_moves(kind, tmp_path):
    torch.manual_seed(0)
    network, shape = Moves(kind).eval(), (2, 8, 8)
    graph = integer_graph(network, torch.randn(16, *shape))
    found = compiled_size(graph, tmp_path)
    flash, ram = (expected(network, cost(), shape).of({}) for cost in (Flash, Ram))
    assert found <= flash <= found + 350
    assert ram == planned(graph).size + graph.start.numel + graph.end.numel
