"""Names of candidate ops: what is known, what is refused and how."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas.errors import UserError
from nas.ops.catalogue import OPS, Op, Ops, known_names, parse
from nas.supernet.elastic_ops import ALL_OPS, op_exclusion_reason
from nas.supernet.elastic_ops import build_op as build


def allowed(name: str, *site: int, **more: int) -> bool:
    return op_exclusion_reason(name, *site, **more) is None


def test_the_names_promised_are_known():
    promised = {f"{stem}_k{k}" for stem in ("conv", "sep") for k in (3, 5, 7)}
    promised |= {f"mb_k{k}_e{e}{se}" for k in (3, 5, 7) for e in (3, 6) for se in ("", "_se")}
    promised |= {"identity", "zero", "avgpool_k3", "maxpool_k3"}
    promised |= {f"{stem}_k{k}" for stem in ("rconv", "dil", "sep2") for k in (3, 5)}
    promised |= {"skip", "avgpool_k3_norm", "maxpool_k3_norm"}
    assert promised <= set(known_names())
    assert len(known_names()) == len(set(known_names()))


def test_every_form_has_a_name():
    found = {id(parse(name, ALL_OPS)[0]) for name in known_names(ALL_OPS)}
    assert found == {id(op) for op in ALL_OPS.values()}


@pytest.mark.parametrize("name", known_names(ALL_OPS))
def test_build_takes_exactly_what_is_allowed(name):
    for out_channels, stride, ndim in product((8, 10), (1, 2), (1, 2)):
        if allowed(name, 8, out_channels, stride, ndim):
            assert isinstance(build(name, 8, out_channels, stride, ndim), nn.Module)
        else:
            with pytest.raises(UserError, match=f"op '{name}' does not fit 8 -> {out_channels}"):
                build(name, 8, out_channels, stride, ndim)


@pytest.mark.parametrize("name", known_names())
def test_numbers_in_a_name_reach_the_module(name):
    _, numbers = parse(name)
    op = build(name, 8, 8, ndim=2 if allowed(name, 8, 8) else 1)
    kernels = {getattr(layer, "kernel_size", None) for layer in op.modules()}
    k = numbers.get("kernel", 1)
    assert k == 1 or kernels & {k, (k,), (k, k), (k, 1)}
    assert "expand" not in numbers or op.branch[-2].in_channels == 8 * numbers["expand"]
    assert "groups" not in numbers or op[1].groups == numbers["groups"]


def test_where_identity_pooling_groups_and_sequences_do_not_go():
    assert allowed("identity", 4, 4, 1)
    assert not allowed("identity", 4, 4, 2)
    assert not allowed("identity", 4, 8, 1)
    assert allowed("maxpool_k3", 4, 4, 2)
    assert not allowed("avgpool_k3", 4, 8, 1)
    assert not allowed("grp_k3_g4", 6, 8, 1)
    assert not allowed("ssep_k3", 4, 4, 1, ndim=1)
    assert allowed("zero", 4, 8, 2)


def test_unusual_numbers_are_taken():
    assert build("mb_k9_e4", 8, 8).branch[3].kernel_size == (9, 9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("convk3", 4, 4), "no candidate op 'convk3'; did you mean 'conv_k3'"),
        (("mb_k5", 4, 4), "did you mean 'mb_k5_e"),
        (("qqqq", 4, 4), "no candidate op 'qqqq'.* Known: conv_k<kernel>, sep_k<kernel>, mb_"),
        (("conv_k03", 4, 4), "no candidate op"),
        (("conv_k0", 4, 4), "no candidate op"),
        (("conv_k4", 4, 4), "op 'conv_k4': the kernel must be odd, got 4"),
        (("identity", 4, 8), "4 -> 8 channels, stride 1: it needs stride 1 and as many output"),
        (("conv_k3", 0, 8), "channels must be at least 1, got 0"),
        (("conv_k3", 4, 8, 0), "stride must be at least 1, got 0"),
        (("conv_k3", 4, 8, 1, 3), r"ndim must be 1 \(sequences\) or 2 \(images\), got 3"),
        (("conv_k3", 4, 8, 1, 2, "rulu"), "no activation 'rulu', only relu, relu6"),
    ],
)
def test_mistakes_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        build(*arguments)


WORDS = st.from_regex(r"new_?[a-z.+]{0,4}", fullmatch=True)
NUMBERS = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True) | st.sampled_from(
    ["kernel", "expand"]
)
USUAL = st.dictionaries(NUMBERS, st.lists(st.sampled_from([1, 3, 11]), min_size=1, unique=True))


@st.composite
def tables(draw) -> tuple[str, Ops]:
    """A form with numbers of any name, some of them twice, and the catalogue with its op."""
    numbers = draw(st.lists(NUMBERS, max_size=3))
    form = draw(WORDS) + "".join(f"{draw(st.sampled_from('_-x'))}{{{n}}}" for n in numbers)
    op = Op(lambda site, **numbers: numbers, usual=draw(USUAL))
    return form, {**OPS, form: op}


@given(tables())
def test_an_op_with_new_numbers_in_its_name_is_one_entry(drawn):
    form, ops = drawn
    names = [name for name in known_names(ops) if parse(name, ops)[0] is ops[form]]
    assert names
    for name in names:
        op, numbers = parse(name, ops)
        assert form.format(**numbers) == name
        assert all(set(op.usual.get(key, [n])) & {n} for key, n in numbers.items())
        assert op.build(None, **numbers) == numbers
    with pytest.raises(UserError, match=r"no candidate op '.*'; did you mean '"):
        parse(names[0] + "q", ops)
    with pytest.raises(UserError, match="Known: conv_k<kernel>"):
        parse("?", ops)
