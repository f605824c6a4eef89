"""Temperature schedules: where they begin, end and pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UserError
from nas.supernet.relax import constant, exponential, linear

TAU = st.floats(0.01, 100)


@pytest.mark.parametrize("schedule", [linear, exponential])
@given(start=TAU, end=TAU, progress=st.floats(0, 1))
def test_from_start_to_end_and_never_outside(schedule, start, end, progress):
    tau = schedule(start, end)
    assert tau(0.0) == pytest.approx(start)
    assert tau(1.0) == pytest.approx(end)
    low, high = sorted((start, end))
    assert low * (1 - 1e-9) <= tau(progress) <= high * (1 + 1e-9)


def test_the_middle_is_the_arithmetic_or_the_geometric_mean():
    assert linear(10.0, 0.1)(0.5) == pytest.approx(5.05)
    assert exponential(10.0, 0.1)(0.5) == pytest.approx(1.0)


@given(TAU, st.floats(0, 1))
def test_constant_stays(tau, progress):
    assert constant(tau)(progress) == tau
    assert constant()(progress) == 1.0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_positive(value):
    for make in (lambda: constant(value), lambda: linear(1.0, value), lambda: linear(value, 1.0)):
        with pytest.raises(UserError, match="must be above 0"):
            make()
    with pytest.raises(UserError, match=r"end=.* must be above 0"):
        exponential(1.0, value)
