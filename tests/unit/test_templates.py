"""The templates are part of the package, and what fills them in stays text."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.export.check import markdown
from nas.report.templates import FOLDER, render

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_distribution_has_every_template(kind):
    pytest.importorskip("hatchling")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    builder = {"wheel": WheelBuilder, "sdist": SdistBuilder}[kind](str(ROOT))
    packed = {file.distribution_path for file in builder.recurse_included_files()}
    own = {f"nas/report/templates/{path.name}" for path in FOLDER.iterdir() if path.is_file()}
    assert {path.rpartition(".")[2] for path in own} == {"py", "html", "css", "js", "svg", "md"}
    assert own <= packed


@given(st.text(max_size=12) | st.sampled_from(["</script>", "<!--", "<b>", '"', "'", "&amp;"]))
def test_no_text_ends_the_script_that_it_stands_in(text):
    from nas.report.templates import _script_json

    encoded = str(_script_json({text: [text]}))
    assert "<" not in encoded
    assert json.loads(encoded) == {text: [text]}


def test_a_name_that_a_template_lacks_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("network.svg", alone=True)


CARD = {
    "space": "chain", "data": "mine", "trained": True, "machine": "a board",
    "arch": {"blocks.0": "conv_k3"}, "metrics": {"test_acc": 0.9, "val_acc": 0.8},
    "input": {"shape": [1, 8, 8], "mean": [0.5], "std": [0.25], "preparation": "image scaled",
              "classes": ["a|b", "`c`", "d\ne", "<f>"]},
    "output": "logits", "task": {"name": "classification", "primary": "acc"},
    "costs": {"params": 12345, "latency": 0.00123},
    "units": {"latency": "s"}, "budgets": {"latency": 0.002},
    "found_by": None, "seed": 0, "exported_by": "nas export r", "exported_with": {"torch": "2"},
    "eager_latency": None,
    "formats": {"onnx": {"runtime": "ORT", "files": {"a.onnx": 2000}, "max_abs_diff": 1e-6,
                         "argmax_agreement": 1.0, "metric": "acc", "score": 0.9, "samples": 1797}},
}  # fmt: skip


def test_the_card_has_what_there_is_and_no_empty_section():
    text = markdown(CARD)
    assert "Test accuracy 90.00%, validation 80.00%." in text
    assert "- input `[N, 1, 8, 8]`, float32: image scaled\n" in text
    assert "4 classes: a\\|b, 'c', d e, <f>\n" in text
    assert "| params | 12,345 | - |\n| latency | 1.23 ms | 2.00 ms |\n" in text
    assert "| onnx | ORT | `a.onnx` 2.00 kB | 1.0e-06 | 100.00% | accuracy 90.00% |\n" in text
    assert re.findall("^## (.*)", text, re.M) == [
        "Input and output", "Costs", "Files", "How it was made",
    ]  # fmt: skip
    assert "\n\n\n" not in text


def test_a_card_of_random_weights_says_so():
    text = markdown({**CARD, "trained": False, "costs": None})
    assert "**Not trained**" in text
    assert "accuracy 90.00%, v" not in text
    assert "## Costs" not in text
