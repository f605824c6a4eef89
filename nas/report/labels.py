"""Names, numbers and colours as a reader wants them: units in full, thousands grouped, percent."""

# Distinct to colour-blind readers (after Okabe and Ito), legible on white and on dark.
COLOURS = ("#3a8bd0", "#d9622b", "#259b78", "#b768a8", "#c2921d", "#6b7f93")

COSTS = {
    "params": "parameters",
    "macs": "multiply-accumulates (MACs) per sample",
    "flops": "operations (FLOPs) per sample",
    "size": "stored size (bytes)",
    "peak_memory": "peak activation memory (bytes)",
    "roofline": "latency bound (s)",
    "energy": "energy per sample (J)",
    "latency": "predicted latency (s)",
    "latency_measured": "measured latency (s)",
}
UNITS = {"ms": "ms", "s": "s", "us": "µs", "bytes": "bytes", "kb": "kB", "mj": "mJ", "uj": "µJ"}


def cost_label(name: str) -> str:
    """`peak_bytes` -> `peak (bytes)`: the cost with its unit, for an axis."""
    stem, _, suffix = name.rpartition("_")
    unit = f"{stem.replace('_', ' ')} ({UNITS[suffix]})" if stem and suffix in UNITS else None
    return COSTS.get(name) or unit or name.replace("_", " ")


def metric_label(name: str) -> str:
    """`test_acc` -> `test accuracy (%)`, for an axis."""
    if name.endswith("acc"):
        return name.replace("_", " ") + "uracy (%)"
    return name.replace("_", " ")


def lower_is_better(metric: str) -> bool:
    """Whether a metric is an error itself; all others are fractions of 1 to be maximised."""
    return metric.endswith(("loss", "error"))


def error_of(metric: str, value: float) -> float:
    """The metric as something to minimise: `1 - value`, or a loss as it is."""
    return value if lower_is_better(metric) else 1 - value


def error_label(metric: str) -> str:
    """The name of the quantity that `error_of` returns."""
    return metric if lower_is_better(metric) else f"1 - {metric}"


def on_axis(metric: str, value: float) -> float:
    """The metric in units of the axis: accuracies in percent."""
    return 100 * value if metric.endswith("acc") else value


def metric_text(metric: str, value: float | None) -> str:
    """Accuracies in percent to two decimals, others to four digits, "-" where not measured."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if metric.endswith("acc") else f"{value:.4g}"


def cost_text(value: float | None) -> str:
    """Exact counts in full, measured costs to four digits, "-" where not measured."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
