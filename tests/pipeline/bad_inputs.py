"""Bad inputs as data: a kind of mistake in each line, and what the message must name."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nas.config.compose import compose_config
from nas.config.help import groups

# Words of `nas search` -> what the message names. `Hydra` says a few of them in its own words.
SEARCH: dict[str, str] = {
    "seed=18446744073709551616": "seed",
    "seed=9223372036854775807": "seed",
    "seed=-1": "at least 0",
    "seed=": "seed",
    "seed=1.5": "seed",
    "seed=true": "seed",
    **{f"{group}=null": f"{group}=null" for group in groups() if group != "experiment"},
    **{f"{group}=3": f"{group}=3" for group in ("cost", "guard", "data")},
    "budget=null": "budget",
    "~data": "data",
    "~search.epochs": "epochs",
    "space.width=inf": "space.width=inf",
    "space.width=1e9": "memory",
    "space.width=1e30": "memory",
    "space=darts space.width=1e6": "memory",
    "space=darts space.cells=100000000": "at most 1000",
    "space.stages=[{ops:[conv_k3],channels:1000000000}]": "memory",
    "space.stages=[{ops:[conv_k3],channels:8,repeat:100000000}]": "repeat",
    "space.stages=[{ops:[conv_k999999999],channels:8}]": "memory",
    "space=truth space.stem.channels=0": "channels",
    "space=truth space.stem.kernel=nan": "kernel",
    "space=truth space.stem.stride=text": "stride",
    "space=spos space.head.features=-1": "features",
    "space=spos space.head.features=[1,x]": "features",
    "space.stages=[1]": "space.stages",
    "space.stages=null": "space.stages",
    "name=": "name= is empty",
    "name=..": "'..'",
    "name=../x": "'..'",
    "name=a/../../b": "'..'",
    "name=/abs": "name=/abs",
    "name=null": "name",
    "out=": "out= is empty",
    "out=null": "out",
    f"name={'x' * 300}": "too long",
    f"name={'/'.join(['y' * 200] * 30)}": "too long",
    "name=\udcff": "UTF-8",
    "name=a\0b": "UTF-8",
    "threads=100000000": "at most 1024",
    "threads=-1": "threads",
    "--foo": "--foo",
    "-x": "-x",
    "--config-dir": "--config-dir",
    "--config-dir=/no/such": "/no/such",
    "--cfg foo": "foo",
    "foo": "key=value",
    "search.epochs={a:1}": "search.epochs",
    'search.epochs="3': "search.epochs",
    "search.epochs=${foo}": "foo",
    "search.epochs=99999999999999999999999": "at most",
    "search.warmup_epochs=15": "below",
    "finetune.optimizer.momentum=0": "Nesterov",
    "search.alpha_optimizer.betas=[0.5]": "betas",
    "search.alpha_optimizer.betas=[0.5,1.5]": "below 1",
    "search.alpha_optimizer.betas=[nan,0.5]": "betas",
    "search=random_search search.metric=val_foo": "val_loss",
    "search=random_search search.metric=test_acc": "test_acc",
    "search=random_search search.cost=foo": "search.cost=foo",
    "search=spos search.ranking.cost=foo": "cost=foo",
    "search=spos search.ranking.metric=foo": "metric=foo",
    "search=once_for_all search.phases=[{epochs:0}]": "at least 1",
    "search=once_for_all search.phases=[{epochs:1,lr:nan}]": "lr=nan",
    "search=once_for_all search.phases=[3]": "search.phases",
    "search=random_search search.halving.epochs=[3,1]": "rise",
    "search=random_search search.workers=100000000": "at most 256",
    "search=random_search search.searcher=foo": "foo",
    "trainer.devices=0": "trainer.devices=0",
    "trainer.devices=-5": "trainer.devices=-5",
    "trainer.devices=abc": "devices",
    "trainer.accelerator=foo": "foo",
    "trainer.strategy=fsdp": "ddp",
    "trainer.strategy=deepspeed": "ddp",
    "trainer.strategy=ddp_spawn": "ddp",
    "trainer.strategy=foo": "foo",
    "trainer.precision=3": "precision",
    "+trainer.max_epochs=3": "search.epochs",
    "profile=missing.json": "missing.json",
    "profile=missing.json cost=[latency]": "missing.json",
    "+loss=3": "'loss'",
    "+loss=ce": "Known keys",
    "+data.colour=red": "data.colour",
    "++search.foo=3": "search.foo",
    "+experiment=foo": "experiment=foo is none of",
    "+budget.foo=3": "foo",
    **{f"budget.params={v}": "budget.params" for v in ("nan", "inf", "-5", "0", "abc", "[1]")},
    "resume=maybe": "maybe",
    "onnx=maybe": "onnx",
    "speed=fast": "kernels",
    "search=random front=4": "search=random_search search.trials=4",
    "stable_epochs=-1": "stable_epochs",
    "relax.temperature=null": "relax.temperature",
}

# Words of `nas extract RUN`, `nas export RUN`, and so on, of a finished run.
OF_RUN: dict[str, str] = {
    "extract {run} front={{a: [": "front",
    "extract {run} front=-1": "at least 0",
    "extract {run} front=nan": "front",
    "extract {run} front=": "front= is empty",
    "extract {run} fine_tune=maybe": "true or false",
    "extract {run} fine_tune=1": "true or false",
    "extract {run} cost=": "cost",
    "extract {run} cost=foo": "cost=foo",
    "extract {run} out=": "out",
    "extract {run} foo": "key=value",
    "extract {run} --foo": "--foo",
    "extract {run} foo=1": "foo",
    "extract {run} budget.foo=3": "budget.foo",
    "extract {run} budget.params=0": "above 0",
    "extract {run} profile=missing.json": "missing.json",
    "extract {run} seed=-1": "seed",
    "extract {run} data=null": "data=null",
    "extract {run} space=../x": "chain_tiny",
    "extract {run} trust=maybe": "true or false",
    "extract {run} data._target_=os.system": "data._target_",
    "extract {run} =3": "unknown key",
    "export {run} format=foo": "onnx",
    "export {run} format=": "format= is empty",
    "export {run} calibration=0": "at least 1",
    "export {run} calibration=abc": "calibration",
    "export {run} qat_lr=nan": "qat_lr",
    "export {run} qat_lr=-1": "above 0",
    "export {run} qat_epochs=0": "qat_epochs",
    "export {run} max_drop=2": "max_drop",
    "export {run} max_drop=nan": "max_drop",
    "export {run} overwrite=maybe": "true or false",
    "export {run} qat=3": "true or false",
    "export {run} foo=1": "foo",
    "export {run} --foo": "--foo",
    "export {run} out=": "out",
    "export {run} weights=x": "weights",
    "report {run} cost=foo": "foo",
    "report {run} metric=foo": "foo",
    "report {run} cost=": "cost= is empty",
    "report {run} foo=1": "foo",
    "report {run} --foo": "--foo",
    "draw {run} foo=1": "foo",
    "draw {run} --foo": "--foo",
    "finetune arch={run}/result.json": "result.json",
    "finetune arch={run}": "{run}",
}

# Of the other verbs, without a run.
OTHERS: dict[str, str] = {
    "serach": "search",
    "--foo": "--foo",
    "extract": "RUN",
    "extract --front 3": "RUN",
    "extract /no/such": "/no/such",
    "export": "RUN",
    "export format=onnx": "RUN",
    "export /no/such.json": "/no/such.json",
    "report": "DIR",
    "report --serve": "DIR",
    "draw": "RUN",
    "draw /no/such": "/no/such",
    "finetune": "arch=FILE",
    "finetune arch=": "arch",
    "finetune arch=/no/such.json": "/no/such.json",
    "finetune arch=null": "arch=FILE",
    "describe space=foo": "chain_tiny",
    "describe space.width=inf": "finite",
    "describe cost=3": "cost=3",
    "describe --foo": "--foo",
    "describe +foo=1": "foo",
    "profile unit=bananas": "ms",
    "profile unit=bananas import_csv=x.csv": "ms",
    "profile runtime=foo": "onnxruntime",
    "profile accelerator=foo": "cuda",
    "profile dtype=int3": "float16",
    "profile threads=100000000": "at most 1024",
    "profile input=[0,1]": "at least 1",
    "profile input=3": "measure.input",
    "profile calibrate=100 networks=5": "calibrate=100",
    "profile seconds=nan": "finite",
    "profile calls=0": "at least 1",
    "profile out=": "measure.out",
    "profile import_csv=/no/such.csv": "/no/such.csv",
    "profile --foo": "--foo",
}

_NEGATIVE = ("exponent_feasible", "exponent_infeasible", "notes", "weight")  # below 0 is right
_OR_NULL = ("trials", "limit", "dtype", "resolution", "perturbation", "momentum")


NUMBERED = ("search", "objective", "relax", "finetune", "space", "data", "guard")


def configurations() -> dict[str, DictConfig]:
    """``group=option`` -> a configuration with it, for every option that a run may take.

    Composing takes long: each configuration has one option of every group.
    """
    found = {}
    for options in zip_longest(*(groups()[name] for name in NUMBERED)):
        chosen = {name: option for name, option in zip(NUMBERED, options, strict=True) if option}
        words = [f"{k}=[{v}]" if k == "guard" else f"{k}={v}" for k, v in chosen.items()]
        config = compose_config([*words, "name=x"])
        found |= {f"{name}={option}": config for name, option in chosen.items()}
    return found


def wrong_numbers(config: DictConfig, group: str) -> Iterator[tuple[str, str]]:
    """Key and wrong value, for every number of a group; once for each argument of a target."""
    resolved: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    yield from _wrong(resolved[group], group)


def _wrong(node: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        where = f"{key}.{name}"
        if isinstance(value, Mapping) and "_target_" in value:
            yield from _wrong(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield from ((where, wrong) for wrong in (".nan", ".inf", "-.inf", "text", "[1, x]"))
            if name not in _NEGATIVE:
                yield where, "-1"
            if name not in _OR_NULL:
                yield where, "null"
        elif isinstance(value, bool) and name != "fused":  # torch takes null for it
            yield from ((where, wrong) for wrong in ("3", "text", "null"))
