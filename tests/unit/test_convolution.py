import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nas.ops.convolution import Conv2d, _Depthwise

sizes = st.integers(1, 9)


def grads(conv, x, cotangent):
    x = x.detach().requires_grad_()
    conv.weight.grad = None
    y = conv(x)
    y.backward(cotangent)
    return y.detach(), x.grad, conv.weight.grad


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=sizes,
    width=sizes,
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.integers(1, 3),
    depthwise=st.booleans(),
    last=st.booleans(),
)
def test_quick_convolution_is_the_plain_one(
    n, channels, height, width, kernel, stride, depthwise, last
):
    groups = channels if depthwise else 1
    conv = Conv2d(channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    x = torch.randn(n, channels, height, width)
    if last:
        x, conv = (t.to(memory_format=torch.channels_last) for t in (x, conv))
    plain = grads(conv, x, cotangent := torch.randn_like(conv(x)))
    conv.quick = True
    assert_close(grads(conv, x, cotangent), plain, atol=2e-5, rtol=1e-4)


def counted(monkeypatch):
    """How often the depthwise kernel ran."""
    calls = []
    apply = _Depthwise.apply
    monkeypatch.setattr(_Depthwise, "apply", lambda *args: calls.append(1) or apply(*args))
    return calls


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda conv: conv, 1),
        (lambda conv: conv.eval(), 0),
        (lambda conv: setattr(conv, "quick", False) or conv, 0),
        (lambda conv: conv.double(), 0),
    ],
)
def test_it_is_quick_only_where_asked_and_in_training(monkeypatch, change, expected):
    calls = counted(monkeypatch)
    conv = Conv2d(4, 4, 5, 1, 2, groups=4, bias=False)
    conv.quick = True
    conv = change(conv)
    conv(torch.randn(2, 4, 8, 8, dtype=conv.weight.dtype))
    assert len(calls) == expected


def test_quick_depthwise_has_second_derivatives():
    conv = Conv2d(2, 2, 5, 2, 2, groups=2, bias=False)
    x = torch.randn(2, 2, 6, 7, requires_grad=True)

    def second():
        (first,) = torch.autograd.grad(conv(x).pow(3).sum(), conv.weight, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), (x, conv.weight))

    plain = second()
    conv.quick = True
    assert_close(second(), plain, rtol=1e-3, atol=1e-3)


def test_a_state_dict_says_nothing_of_it():
    conv, other = Conv2d(2, 2, 5, groups=2, bias=False), torch.nn.Conv2d(2, 2, 5, groups=2)
    conv.quick = True
    assert conv.state_dict().keys() <= other.state_dict().keys()
