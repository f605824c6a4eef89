"""How often each option stands in each block over the networks of a front."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from nas.report.runs import Run


def frequencies(runs: Sequence[Run]) -> dict[str, Counter[str]]:
    """Decision -> option -> number of runs that take it."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        for name, option in run.arch.items():
            found.setdefault(name, Counter())[str(option)] += 1
    return found


def choices_table(runs: Sequence[Run]) -> str:
    """Blocks as rows, options as columns, shares as shades; "" without architectures."""
    found = frequencies(runs)
    options = dict.fromkeys(option for counts in found.values() for option in sorted(counts))
    if not found:
        return ""
    head = "".join(f'<th class="text" scope="col">{escape(option)}</th>' for option in options)
    body = "".join(_row(name, counts, options) for name, counts in found.items())
    return (
        '<div class="scroll"><table class="choices"><thead><tr><th class="text">block</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(name: str, counts: Counter[str], options: Mapping[str, None]) -> str:
    total = counts.total()
    cells = "".join(
        f'<td style="--share:{100 * counts[option] / total:.0f}%">'
        f"{counts[option] if counts[option] else ''}</td>"
        for option in options
    )
    return f'<tr><th class="text" scope="row">{escape(name)}</th>{cells}</tr>'
