"""Configurations are checked against the constructors that they are for."""

import os
import pty
import re
import select
import shutil
import subprocess
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import pytest
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from nas.artifacts import RunDir, fingerprint
from nas.config.calls import target_of
from nas.config.check import check
from nas.config.completion import script
from nas.config.compose import compose_config, hydra_message, made, parse
from nas.config.help import VERBS, config_dir, groups, help_of, keys_of, usage
from nas.config.saved import change, read_saved
from nas.config.schema import violation
from nas.config.trusted import foreign, moved
from nas.errors import UserError
from nas.verbs import values_by_key


def composed(*overrides: str) -> Any:
    return compose_config([*overrides, "name=x"])


GROUPS = sorted(groups().keys() - {"cost", "experiment"})
# Composing takes long: one option of every group at a time.
SHIPPED = [
    [f"{group}={option}" for group, option in zip(GROUPS, options, strict=True) if option]
    for options in zip_longest(*(groups()[group] for group in GROUPS))
] + [[f"+experiment={option}"] for option in groups()["experiment"]]


@pytest.mark.parametrize("overrides", SHIPPED, ids=" ".join)
def test_every_shipped_configuration_passes(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.config.check.find_spec", lambda _: True)  # packages of loggers
    config = composed(*overrides)
    check(config)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    saved = OmegaConf.to_container(read_saved(RunDir(tmp_path)), resolve=False)
    assert isinstance(saved, dict)
    assert not list(foreign(saved))


# What the configurations of version 0.1.0 name, where it has moved since.
FORMERLY = """
cost.roofline.Energy cost.roofline.Roofline cost.size.Size
supernet.auxiliary.linear_fade supernet.temperature.constant supernet.temperature.exponential
supernet.temperature.linear
search.by_trials.TrialSearch search.differentiable.BilevelSearch
search.differentiable.SingleLevelSearch search.evaluate.Inherited search.evaluate.StandAlone
search.guards.EigenvalueStop search.guards.SkipCount search.halving.Halving
search.once_for_all.OnceForAll search.oneshot.OneShot search.perturbation.Perturbing
search.proxyless.ProxylessSearch search.regularizers.DirichletKL search.regularizers.ZeroOne
search.reinforce.ReinforceSearch search.reward.CostAwareAccuracy search.sampling.RandomArch
search.schemes.AllPaths search.schemes.Sandwich search.schemes.StrictFairness
search.schemes.UniformPath search.unrolled.SecondOrderSearch
search.gradient.darts.BilevelSearch search.gradient.darts.SecondOrderSearch
search.gradient.darts.SingleLevelSearch search.gradient.guards.EigenvalueStop
search.gradient.guards.SkipCount search.gradient.proxyless.ProxylessSearch
search.gradient.regularizers.DirichletKL search.gradient.regularizers.Perturbing
search.gradient.regularizers.ZeroOne search.gradient.reinforce.CostAwareAccuracy
search.gradient.reinforce.ReinforceSearch search.oneshot.once_for_all.OnceForAll
search.oneshot.oneshot.OneShot search.oneshot.path_sampling.AllPaths
search.oneshot.path_sampling.Sandwich search.oneshot.path_sampling.StrictFairness
search.oneshot.path_sampling.UniformPath search.sampling.halving.Halving
search.sampling.trial_search.RandomArch search.sampling.trial_search.TrialSearch
search.oneshot.AllPaths search.oneshot.Sandwich search.oneshot.StrictFairness
search.oneshot.UniformPath
"""


def test_a_run_of_an_earlier_version_is_read_by_the_names_of_this_one(tmp_path: Path) -> None:
    files = [path.read_text(encoding="utf-8") for path in config_dir().rglob("*.yaml")]
    shipped = set(re.findall(r"_target_: ([a-z]\w*[\w.]*)", "\n".join(files)))
    for name in FORMERLY.split():
        (tmp_path / "config.yaml").write_text(f"a: [{{b: {{_target_: nas.{name}, x: 1}}}}]")
        (read,) = read_saved(RunDir(tmp_path)).a
        assert read.b.x == 1
        assert callable(target_of(read.b, name))
        assert read.b["_target_"] in shipped
    for name in shipped | {"torch.optim.SGD", "SGD"}:
        assert moved({"_target_": name}) == {"_target_": name}
    kept = {"_target_": "nas.search.trial_search.TrialSearch", "metric": "val_acc", "cost": "macs"}
    old = {"_target_": "nas.search.by_trials.TrialSearch", "by": "val_acc", "along": "macs"}
    assert moved(old) == moved(kept) == kept
    assert moved({"ranking": {"searcher": "gradient"}}) == {"ranking": {"searcher": "auto"}}


def test_a_run_of_a_search_that_is_gone_says_what_to_take(tmp_path: Path) -> None:
    target = "nas.search.controller.Controller"
    (tmp_path / "config.yaml").write_text(f"search: {{searcher: {{_target_: {target}}}}}")
    with pytest.raises(UserError, match=r"^search=controller is not .*search=predictor.*$"):
        read_saved(RunDir(tmp_path))


@pytest.mark.parametrize("device", groups()["device"])
def test_every_shipped_cost_passes_on_every_device(device: str) -> None:
    config = composed(f"cost=[{','.join(groups()['cost'])}]", f"device={device}")
    check(config)
    saved = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(saved, dict)
    assert not list(foreign(saved))
    # Measured with a clock only; and latency needs a file.
    skipped = [("energy", "this_machine"), ("latency", device)]
    names = [n for n in groups()["cost"] if (n, device) not in skipped]
    costs = {name: instantiate(config.cost[name], _convert_="all") for name in names}
    assert {name: cost.name for name, cost in costs.items()} == {name: name for name in names}


def test_a_cost_on_a_device_needs_one() -> None:
    with pytest.raises(UserError, match=r"cost=energy .*: add one of .*device=gap9"):
        check(composed("cost=[params,energy]"))
    check(composed("cost=[params,size]"))


def test_a_key_that_is_not_set_leaves_a_run_what_it_was() -> None:
    assert fingerprint({"seed": 0}) == fingerprint({"seed": 0, "device": None})
    assert fingerprint({"seed": 0}) != fingerprint({"seed": 0, "device": "gap9"})


@pytest.mark.parametrize(
    ("value", "hint", "fits"),
    [
        (3, int, True),
        (3, float, True),
        (3.5, int, False),
        (True, int, False),
        (True, bool, True),
        ("3", int, False),
        (None, int | None, True),
        ("x", int | None, False),
        ([1, 2], tuple[float, float], True),
        ("ab", tuple[float, float], False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ("some/file", Path, True),
        ({"_target_": "x"}, float, True),
        ("fast", Any, True),
    ],
)
def test_fits(value: object, hint: Any, fits: bool) -> None:
    assert (violation(value, hint) is None) is fits


def test_unknown_keys_and_wrong_types_are_named_with_their_path() -> None:
    config = composed("+data.colour=red")
    with pytest.raises(UserError, match=r"data\.colour.*batch_size"):
        check(config)
    with pytest.raises(UserError, match=r"search\.weight_optimizer\.momentum='high'.*float"):
        check(composed("search=bilevel", "search.weight_optimizer.momentum=high"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_80_columns_wide(verb: str) -> None:
    chosen = ["search=once_for_all", "space=ofa_mobilenet", "cost=[latency,energy]"]
    for words in ([], chosen, ["all", *chosen], ["search"], ["experiment"], ["run"]):
        text = help_of(verb, words)
        assert max(map(len, text.splitlines())) <= 80
        assert "Args" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_one_screen_and_says_where_the_rest_is(verb: str) -> None:
    lines = help_of(verb).splitlines()
    assert len(lines) <= 40
    if VERBS[verb].options is None:
        assert len(lines) >= 24
        assert f"nas {verb} --help GROUP" in "\n".join(lines)
    assert max(map(len, usage().splitlines())) <= 80


def test_help_of_a_group_lists_its_options_and_keys() -> None:
    text = help_of("search", ["data"])
    assert re.search(r"^  image_folder +Your own images: ", text, re.MULTILINE)
    assert re.search(r"^  data.batch_size=64 +of a training$", text, re.MULTILINE)
    assert "gdas" in help_of("search", ["experiment"])
    assert "  budget.macs=null" in help_of("search", ["budget"])
    with pytest.raises(UserError, match=r"no such group; choose one of .*data"):
        help_of("search", ["dta"])


def test_a_launcher_that_is_not_installed_names_its_extra() -> None:
    error = HydraException(
        "Could not find 'hydra/launcher/submitit_slurm' Available options: basic"
    )
    assert "pip install 'dnas[slurm]'" in hydra_message(error)


COMPLETE = """
{script}
complete_line() {{
    COMP_LINE="$1" COMP_POINT=${{#1}} COMPREPLY=()
    _nas
    echo "${{COMPREPLY[*]}}"
}}
complete_line "nas sea"
complete_line "nas search dat"
complete_line "nas search data=fa"
complete_line "nas search seed=1 search.weight_optimizer.mo"
complete_line "nas extract RUN fr"
complete_line "nas search --he"
"""


def test_completion_in_bash() -> None:
    code = COMPLETE.format(script=script("bash"))
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    verbs, groups_and_keys, options, key, own, flags = done.stdout.splitlines()
    assert verbs == "search"
    assert {"data=", "data.limit=", "data.root="} <= set(groups_and_keys.split())
    assert options == "fashion_mnist"  # after the `=`, which ends a word in bash
    assert key == "search.weight_optimizer.momentum="
    assert own == "front="
    assert flags == "--help"
    with pytest.raises(UserError, match="bash, zsh"):
        script("fish")


TYPED = {  # with the tabulator, and what the command then gets
    "sea\t": "search",
    "search data=fash\tseed=1": "search|data=fashion_mnist|seed=1",  # a space after a whole word
    "extract RUN fron\t4": "extract|RUN|front=4",  # and none after a key
    "search search.weight_optimizer.mom\t.5": "search|search.weight_optimizer.momentum=.5",
}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_completion_in_zsh(tmp_path: Path) -> None:
    """In a terminal: zsh completes words for nobody else."""
    (tmp_path / "nas.zsh").write_text(script("zsh"))
    shown = 'nas() { print -r -- "<<${(j:|:)@}>>" }'
    lines = [f"source nas.zsh; {shown}; nas ready", *(f"nas {words}" for words in TYPED)]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        own = {"TERM": "dumb", "ZDOTDIR": str(tmp_path), "PATH": os.environ["PATH"]}
        os.execvpe("zsh", ["zsh", "-f", "-i"], own)
    said, found, end = b"", [], time.monotonic() + 120
    for count, line in enumerate(lines, start=1):
        os.write(terminal, line.encode() + b"\n")
        while len(found) < count and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                said += os.read(terminal, 65536)
            found = re.findall(r"<<([^$>]+)>>", said.decode(errors="replace"))  # no line as typed
    os.close(terminal)
    os.waitpid(child, 0)
    assert found == ["ready", *TYPED.values()]


def test_every_key_of_every_option_has_a_meaning() -> None:
    for group, options in groups().items():
        for option in options if group not in ("experiment", "device") else ():
            assert not [key.name for key in keys_of(group, option) if not key.meaning]


def test_help_lists_the_keys_of_the_option_that_is_chosen() -> None:
    assert "search.epochs=50 " in help_of("search", ["all", "search=darts"])
    text = help_of("search", ["search=darts"])
    assert "search.epochs=50 " in text
    assert "search.alpha_optimizer.lr=3.0e-4" in text  # darts.yaml's own
    assert "search.alpha_optimizer.fused=true" in text  # of bilevel.yaml, its default
    assert re.search(r"front=0 +0: the most probable network", help_of("extract"))


def test_a_cost_of_the_users_own_can_have_a_budget(tmp_path: Path) -> None:
    (tmp_path / "cost").mkdir()
    (tmp_path / "cost" / "mine.yaml").write_text("mine: {_target_: nas.cost.analytic.Params}\n")
    given = parse("search", ["--config-dir", str(tmp_path), "budget.mine=5k", "budget.macs=60%"])
    config = compose_config(given.overrides, str(tmp_path))
    assert (config.budget.mine, config.budget.macs) == ("5k", "60%")
    assert set(config.cost) == {"mine", "macs"}
    assert "augmented" in config.objective._target_.lower()
    with pytest.raises(UserError, match="Known keys of budget"):
        compose_config(parse("search", ["budget.mine=5k"]).overrides)


def test_the_verbs_share_one_grammar() -> None:
    for words in (["front=8", "fine_tune=true"], ["--front", "8", "--fine-tune"], ["--front=8"]):
        given = parse("extract", ["RUN", *words, "budget.macs=30%"])
        assert (given.places, given.options.front) == (["RUN"], 8)
        assert given.overrides == ["budget.macs=30%"]
    assert parse("export", ["RUN", "format=onnx,pt2"]).options.format == ("onnx", "pt2")
    assert parse("export", ["RUN", "--format", "[onnx,pt2]"]).options.format == ("onnx", "pt2")
    assert parse("profile", ["runtime=torch"]).overrides == ["measure.runtime=torch"]
    assert parse("search", ["a=1", "-m"]).flags == ["-m"]
    sweep = ["seed=range(1,4)", "search=glob(*)", "objective.strength=interval(0,1)"]
    assert parse("search", [*sweep, "-m"]).overrides == sweep
    assert parse("search", ["out=größe"]).overrides == ["out='größe'"]
    assert parse("extract", ["größe", "out=größe"]).options.out == "größe"
    with pytest.raises(UserError, match="seed='a' must be"):
        parse("search", ["seed=1,a"])
    for verb in ("search", "extract", "export", "report"):
        with pytest.raises(UserError, match=r"^out=\{: .*input"):
            parse(verb, ["out={", *([] if verb == "search" else ["RUN"])])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("./timed {file} {calls}", "./timed {file} {calls}"),
        ("make -C ~/firmware flash NETWORK=$(dirname {file})",) * 2,
        ("a 'b c' \"d\" | e, f\\ > ${HOME}/g \\${x} 'h\\'",) * 2,
        ("'b' && 'c'", "'b' && 'c'"),
        ("größe [", "größe ["),
        ("a,b", "a,b"),
        ("true", "true"),
        ("'\"./timed\" {file}'", '"./timed" {file}'),
        ('"./timed {file}"', "./timed {file}"),
        ("null", None),
    ],
)
def test_a_command_for_a_shell_is_taken_as_it_is(text: str, value: str | None) -> None:
    for key in ("command", "measure.command"):
        words = parse("profile", [f"{key}={text}"]).overrides
        assert made(compose_config(words).measure).command == value


def test_a_saved_run_takes_an_option_with_its_defaults(tmp_path: Path) -> None:
    config = composed()
    change(config, ["search=darts_second_order", "relax=gdas", "search.epochs=3"])
    expected = composed("search=darts_second_order", "relax=gdas", "search.epochs=3")
    assert config == expected


def test_what_was_asked_for_can_be_written_as_json():
    """YAML takes the name of a folder for a date."""
    words = ["data.root=2026-11-30", "a=[1,2026-11-30]", "+b=50k", "out=2026-11-30"]
    assert values_by_key(words) == {"data.root": "2026-11-30", "a": [1, "2026-11-30"], "b": "50k"}
