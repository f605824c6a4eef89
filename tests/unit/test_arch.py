"""`Arch`: a value that survives a file, and files that are not one."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.arch import Arch
from nas.errors import UserError

OPTIONS = st.text() | st.integers() | st.lists(st.integers(0, 99)).map(tuple)
CHOICES = st.dictionaries(st.text(), OPTIONS, max_size=5)
ARCHS = st.builds(Arch, st.text(), CHOICES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arch")


@settings(max_examples=25)  # each waits for the disk
@given(arch=ARCHS)
def test_a_file_gives_back_the_value(arch, folder):
    arch.save(folder / "sub" / "arch.json")
    loaded = Arch.load(folder / "sub" / "arch.json")
    assert loaded == arch == pickle.loads(pickle.dumps(arch))  # noqa: S301
    assert loaded.to_json() == arch.to_json()
    assert len(arch.hash) == 12
    assert [path.name for path in (folder / "sub").iterdir()] == ["arch.json"]


@given(CHOICES, st.randoms())
def test_order_does_not_matter(choices, random):
    items = list(choices.items())
    random.shuffle(items)
    one, other = Arch("s", choices), Arch("s", dict(items))
    assert one == other
    assert {one: 1}[other] == 1
    assert one.to_json() == other.to_json()


@given(ARCHS, ARCHS)
def test_hashes_differ_where_values_do(one, other):
    assert (one == other) == (one.hash == other.hash) == (one.to_json() == other.to_json())


def test_the_type_of_an_option_counts():
    hashes = {Arch("s", {"d": option}).hash for option in (1, "1", (1,), "(1,)", ())}
    assert len(hashes) == 5


def test_it_is_frozen():
    source = {"d": "a"}
    arch = Arch("s", source)
    source["d"] = "b"
    assert arch.choices["d"] == "a"
    with pytest.raises(TypeError):
        arch.choices["d"] = "b"
    with pytest.raises(AttributeError):
        arch.space = "t"


GOOD = {"schema": 1, "space": "s", "choices": {"d": "a"}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not JSON"),
        ('{"schema": 1,', "is not JSON"),
        ('{"a":' * 100_000, "is not JSON"),
        ("[1]", r"=\[1\]: Input should be"),
        ('{"schema": 1, "space": "s"}', "choices: Field required"),
        (json.dumps(GOOD | {"schema": 2}), "has schema 2; this version of nas reads schema 1"),
        (json.dumps(GOOD | {"space": 3}), "space=3: Input should be a valid string"),
        (json.dumps(GOOD | {"choices": ["a"]}), r"choices=\['a'\]: Input should be an object"),
        (json.dumps(GOOD | {"choices": {"d": 1.5}}), r"choices\['d'\].*=1.5: Input"),
        (json.dumps(GOOD | {"choices": {"d": True}}), r"choices\['d'\].*=True: Input"),
        (json.dumps(GOOD | {"choices": {"d": None}}), r"choices\['d'\].*=None: Input"),
        (json.dumps(GOOD | {"choices": {"d": [1, "x"]}}), r"choices\['d'\].*: Input"),
        (b"\xff\xfe\x00", "cannot read the architecture file"),
    ],
    ids=range(13),
)
def test_a_bad_file_is_named(content, says, tmp_path):
    path = tmp_path / "arch.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=says) as caught:
        Arch.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError, match=str(path)):
            Arch.load(path)
