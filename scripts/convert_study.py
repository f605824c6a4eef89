"""Which known networks can be made searchable, and whether what comes out is exact.

    python scripts/convert_study.py OUT [--only NAME ...] [--choices 2] [--table]

All classification models of torchvision, and common ones of timm (`pip install timm`), with random
weights. Of each, three random networks are compared with the given one whose channels are set to 0,
and their costs with counted ones. OUT/rows.jsonl has one line for each; what is in it is not done
again. --table prints what experiments/compress/README.md shows.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nas
from nas.compress.convert import converted
from nas.compress.rules import Channels, Rules
from nas.compress.verify import masked
from nas.errors import UserError

TIMM = """
resnet26d resnext50_32x4d seresnet50 res2net50_26w_4s resnest14d skresnet18 ecaresnet50t
rexnet_100 regnetx_004 regnety_004 efficientnet_lite0 tf_efficientnetv2_b0 mobilenetv3_large_100
mobilenetv4_conv_small mnasnet_100 fbnetc_100 ghostnet_100 hardcorenas_a lcnet_050 tinynet_e
mobileone_s0 repvgg_a0 densenet121 dla34 cspresnet50 darknet53 vovnet39a hrnet_w18_small
convnext_atto convnextv2_atto fasternet_t0 starnet_s1 edgenext_xx_small mobilevit_xxs
poolformer_s12 mixer_s32_224 deit_tiny_patch16_224 vit_tiny_patch16_224
swin_tiny_patch4_window7_224 pit_ti_224 levit_128s xcit_nano_12_p16_224 gmlp_ti16_224
resmlp_12_224
"""
LARGE = ("mixer", "deit", "vit_", "swin", "pit_", "levit", "xcit", "gmlp", "resmlp", "maxvit")
NETWORKS = 3


def main() -> None:
    """Convert what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--choices", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = given.out / "rows.jsonl"
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    if given.table:
        print(table(done))
        return
    known = torchvision.models.list_models(module=torchvision.models)
    names = [*(f"torchvision/{n}" for n in known), *(f"timm/{n}" for n in TIMM.split())]
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    for name in given.only or names:
        if name not in {row["name"] for row in done}:
            row = {"name": name, **tried(name, given.choices)}
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def made(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network with random weights, and the shape of its input."""
    library, _, own = name.partition("/")
    side = 224 if own.startswith(LARGE) else 96 if "inception" in own else 64
    torch.manual_seed(0)
    if library == "timm":
        import timm

        timm.layers.set_fused_attn(False)  # whose products FlopCounterMode does not see on a CPU
        return timm.create_model(own), (3, side, side)
    # Their truncated normal takes minutes.
    plain = {"init_weights": False} if own in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(own, weights=None, **plain), (3, side, side)


def tried(name: str, choices: int) -> dict[str, Any]:
    """What comes of one network: errors, costs, seconds of one core."""
    model, shape = made(name)
    model.eval()
    for weight in model.parameters():  # behind zeros, as of the heads of ViTs, nothing is seen
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=0.02)
    start = time.process_time()
    try:
        found = converted(model, shape, Rules(channels=Channels(choices=choices)))
    except UserError as error:
        return {"refused": str(error)}
    seconds = time.process_time() - start
    supernet = found.supernet
    start = time.process_time()
    traced = nas.trace(supernet, shape)
    row: dict[str, Any] = {
        "decisions": len(traced.options),
        "channels": sum(r.channels for r in found.rows),
        "searched": sum(r.channels for r in found.rows if r.decision),
        "params": sum(p.numel() for p in model.parameters()),
        "convert_s": round(seconds, 2),
        "trace_s": round(time.process_time() - start, 2),
    }
    params = nas.ExpectedCost(supernet, nas.Params(), traced)
    macs = nas.ExpectedCost(supernet, nas.MACs(), traced)
    off, cost, x = 0.0, 0.0, torch.randn(1, *shape)
    generator = torch.Generator().manual_seed(0)
    for _ in range(NETWORKS):
        nas.sample_path(supernet, generator)
        chosen = nas.arch_of(supernet, "x").choices
        network = nas.discretize(supernet).requires_grad_(False)
        counter = FlopCounterMode(display=False)  # which does not see into fused kernels
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            y = _first(network(x))
        with torch.no_grad():
            whole = _first(functional_call(model, masked(supernet), (x,)))
        off = max(off, float((y - whole).abs().max() / whole.abs().max().clamp_min(1e-12)))
        cost += abs(params.of(chosen) - sum(p.numel() for p in network.parameters()))
        cost += abs(macs.of(chosen) - counter.get_total_flops() / 2)
    for _, decision in nas.decisions(supernet):
        decision.choose(decision.options[0])
    least = sum(p.numel() for p in nas.discretize(supernet).parameters())
    return {**row, "least_params": least, "error": off, "cost_error": cost}


def _first(out: Any) -> Tensor:
    found: Tensor = out if isinstance(out, Tensor) else out[0]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, and the shares over them."""
    lines = [
        "| network | decisions | searched | parameters, least | error | costs off | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['name']} | refused | | | | | {row['refused'][:160]} |")
            continue
        share = row["searched"] / row["channels"]
        lines.append(
            f"| {row['name']} | {row['decisions']} | {share:.0%} | {row['params'] / 1e6:.1f} M, "
            f"{row['least_params'] / 1e6:.1f} M | {row['error']:.0e} | {row['cost_error']:.0f} | "
            f"{row['convert_s']:.1f} + {row['trace_s']:.1f} |"
        )
    for library in ("torchvision", "timm"):
        own = [row for row in rows if row["name"].startswith(library)]
        fine = [r for r in own if "refused" not in r and r["error"] <= 1e-5 and not r["cost_error"]]
        lines.append(f"\n{library}: {len(fine)} of {len(own)} convert, exactly.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
