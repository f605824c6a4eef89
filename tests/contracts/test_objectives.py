"""What every objective must do; found in `nas.objective` and in `configs/`."""

import copy
import inspect
import io

import pytest
import torch
import yaml
from torch import nn

import nas.objective
from nas.config.help import config_dir
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.decision import decisions
from nas.errors import UserError
from nas.objective import Objective
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic_ops import build_op as build


def objectives() -> dict[str, type[Objective]]:
    """Classes of `nas.objective` that can be called with no argument."""
    return {
        name: found
        for name, found in vars(nas.objective).items()
        if inspect.isclass(found)
        and found is not Objective
        and {"forward", "penalty"} & vars(found).keys()
    }


WITH_TARGETS = {name: kind for name, kind in objectives().items() if kind.needs_targets}
# No price inside a budget.
SILENT_INSIDE = {"Hinge", "Constrained", "AugmentedLagrangian"}
COSTS = {"params": 6e4, "macs": 3e6}
REFERENCE = {"params": 5e4, "macs": 2e6}
TARGETS = {"params": 1e4, "macs": 1e6}


@pytest.fixture(params=objectives().values(), ids=objectives())
def objective(request):
    return request.param()


@pytest.fixture(params=WITH_TARGETS.values(), ids=WITH_TARGETS)
def constraint(request):
    return request.param()


def tensors(values, scale=1.0, grad=False):
    return {
        name: torch.tensor(value * scale, dtype=torch.float64, requires_grad=grad)
        for name, value in values.items()
    }


def started(objective, scale=1.0, targets=TARGETS, reference=REFERENCE):
    objective.start(
        tensors(reference, scale), {name: value * scale for name, value in targets.items()}
    )
    return objective


def late(objective, costs):
    """The objective after all it goes through in a search that does not change `costs`."""
    objective(torch.tensor(2.0), costs)
    for step in range(1, 11):
        objective.update({name: cost.detach() for name, cost in costs.items()}, step / 10)
    return objective


class Net(nn.Module):
    """Two choices, each with a cheap and an expensive option."""

    input_shape = (8, 6, 6)

    def __init__(self):
        super().__init__()
        self.first = ChoiceBlock({name: build(name, 8, 8) for name in ("conv_k3", "identity")})
        self.last = ChoiceBlock({name: build(name, 8, 8) for name in ("sep_k3", "conv_k5")})

    def forward(self, x):
        return self.last(self.first(x))


@pytest.fixture
def net():
    return Net()


def expected_costs(net):
    traced = trace(net, net.input_shape)
    return {cost.name: ExpectedCost(net, cost, traced) for cost in (Params(), MACs())}


def budgets(costs, factor):
    return {name: factor * float(cost.mean()) for name, cost in costs.items()}


def test_the_listing_finds_them_and_each_has_a_config():
    assert {"Plain", "Hinge", "AugmentedLagrangian"} <= set(objectives())
    assert set(WITH_TARGETS) >= SILENT_INSIDE
    files = [yaml.safe_load(path.read_text()) for path in config_dir().glob("objective/*.yaml")]
    assert {file["_target_"].rpartition(".")[2] for file in files} == set(objectives())
    for file in files:
        kind = objectives()[file.pop("_target_").rpartition(".")[2]]
        assert set(file) == set(inspect.signature(kind).parameters)
        if kind.__name__ != "Plain":  # has two
            defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
            assert defaults == pytest.approx(file)


@pytest.mark.parametrize("stage", ["start", "end"])
def test_a_change_of_unit_changes_nothing(objective, stage):
    seen = []
    for scale in (1.0, 1000.0, 1e-3):
        costs, made = tensors(COSTS, scale, grad=True), started(copy.deepcopy(objective), scale)
        if stage == "end":
            late(made, costs)
        loss = made(torch.tensor(2.0), costs)
        loss.backward()
        slopes = [float(cost.grad * cost.detach()) for cost in costs.values()]
        unitless = [v for name, v in made.state().items() if not name.startswith("budget/")]
        seen.append([float(loss.detach()), *slopes, *unitless])
    assert seen[1] == pytest.approx(seen[0], rel=1e-5)
    assert seen[2] == pytest.approx(seen[0], rel=1e-5)


@pytest.mark.parametrize("stage", ["start", "end"])
def test_the_penalty_alone_moves_alphas_to_the_cheaper_option(objective, net, stage):
    costs = expected_costs(net)
    objective.start({n: c.mean() for n, c in costs.items()}, budgets(costs, 0.5))
    if stage == "end":
        late(objective, {name: cost() for name, cost in costs.items()})
    objective(torch.tensor(2.0), {name: cost() for name, cost in costs.items()}).backward()
    for decision, cheap in ((net.first, "identity"), (net.last, "sep_k3")):
        downhill = -decision.alpha.grad
        assert decision.options[int(downhill.argmax())] == cheap
        assert float(downhill.max()) > 1e-6


def test_each_budget_that_is_exceeded_has_its_force(constraint):
    for exceeded in COSTS:
        made = copy.deepcopy(constraint)
        costs = {n: REFERENCE[n] if n == exceeded else TARGETS[n] / 2 for n in COSTS}
        now = tensors(costs, grad=True)
        started(made)(torch.tensor(2.0), now).backward()
        slopes = {name: float(cost.grad or 0) for name, cost in now.items()}
        assert slopes[exceeded] > 0
        if type(made).__name__ in SILENT_INSIDE:
            assert [name for name, slope in slopes.items() if slope] == [exceeded]


@pytest.mark.parametrize("kind", sorted(SILENT_INSIDE))
@pytest.mark.parametrize("stage", ["start", "end"])
@pytest.mark.parametrize("factor", [0.5, 1.0], ids=["inside", "at the budget"])
def test_nothing_is_gained_inside_the_budgets(kind, stage, factor):
    objective = started(objectives()[kind]())
    costs = tensors(TARGETS, factor, grad=True)
    if stage == "end":
        late(objective, costs)
    loss = objective(torch.tensor(2.0), costs)
    loss.backward()
    assert float(loss.detach()) == 2
    assert all(float(cost.grad or 0) == 0 for cost in costs.values())


def test_the_task_loss_is_passed_on_with_a_positive_slope(objective):
    task = torch.tensor(2.0, requires_grad=True)
    started(objective)(task, tensors(COSTS)).backward()
    assert float(task.grad) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_task_loss_may_be_in_half_precision(objective, dtype):
    task, costs = torch.tensor(2.0, dtype=dtype, requires_grad=True), tensors(COSTS, grad=True)
    loss = started(copy.deepcopy(objective))(task, costs)
    loss.backward()
    exact = started(objective)(torch.tensor(2.0, dtype=torch.float64), tensors(COSTS))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.shape == ()
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-6)
    assert all(float(cost.grad) > 0 for cost in costs.values())


def test_a_strength_is_the_number_that_was_configured(objective):
    # It is shown as a hyper-parameter of the run.
    assert isinstance(getattr(started(objective), "strength", 0.0), float)


def test_its_state_is_loaded_before_it_is_started(objective):
    costs = tensors(COSTS)
    late(started(objective), costs)
    file = io.BytesIO()
    torch.save(objective.state_dict(), file)
    file.seek(0)
    loaded = type(objective)()
    loaded.load_state_dict(torch.load(file, weights_only=True))

    assert loaded.state() == objective.state()
    for made in (objective, loaded):
        made.update(tensors(TARGETS, 1.5), 0.7)
    assert loaded.state() == objective.state()
    assert float(loaded(torch.tensor(1.0), costs)) == float(objective(torch.tensor(1.0), costs))
    assert objective.state_dict().keys() == loaded.state_dict().keys()


def test_a_search_without_costs_has_the_task_alone(objective):
    objective.start({}, {})
    objective.update({}, 1.0)
    task = torch.tensor(2.0, requires_grad=True)
    objective(task, {}).backward()
    assert float(task.grad) > 0
    assert dict(objective.state()) == {}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, r"'params' has none: .*budget\.params="),
        ({"params": 1e4}, r"'macs' has none: .*budget\.macs="),
        ({"params": 1e4, "macs": None}, r"'macs' has none"),
        ({"params": 0.0, "macs": 1e6}, r"budget\.params=0.0 must be .* above 0"),
        ({"params": 1e4, "macs": -5.0}, r"budget\.macs=-5.0 must be .* above 0"),
        ({"params": float("nan"), "macs": 1e6}, r"budget\.params=nan must be a finite"),
        ({"params": float("inf"), "macs": 1e6}, r"budget\.params=inf must be a finite"),
        (TARGETS | {"energy": 3.0}, r"budget\.energy=3.0 is .* no cost .*'macs', 'params'"),
    ],
)
def test_budgets_are_checked_at_the_start(constraint, targets, message):
    with pytest.raises(UserError, match=message):
        constraint.start(tensors(REFERENCE), targets)


@pytest.mark.parametrize("kind", sorted(set(objectives()) - set(WITH_TARGETS)))
def test_the_others_ignore_targets(kind):
    losses = [
        float(started(objectives()[kind](), targets=targets)(torch.tensor(2.0), tensors(COSTS)))
        for targets in ({}, TARGETS)
    ]
    assert losses[0] == losses[1]


def test_the_supernet_of_these_tests_has_two_decisions(net):
    assert len(list(decisions(net))) == 2
