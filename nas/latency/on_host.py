"""Times an ONNX file with onnxruntime: sent to a board by `nas profile runtime=ssh` and run there.

    python3 on_host.py network.onnx CALLS SECONDS THREADS

Prints the nanoseconds of each call. Needs numpy and onnxruntime, and nothing of this package.
"""

import sys
import time
from typing import Any

WARM_UPS = 20
_FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}


def main(path: str, calls: int, seconds: float, threads: int) -> None:
    """Call the network `calls` times, or for `seconds`, but 20 times at least."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    draws = np.random.RandomState(0)
    feed = {}
    for node in session.get_inputs():
        if node.type in _FLOATS:
            feed[node.name] = draws.standard_normal(node.shape).astype(_FLOATS[node.type])
        else:
            feed[node.name] = np.zeros(node.shape, node.type[len("tensor(") : -1])
    for _ in range(WARM_UPS):
        session.run(None, feed)
    end = time.perf_counter() + seconds
    for done in range(calls):
        start = time.perf_counter_ns()
        session.run(None, feed)
        print(time.perf_counter_ns() - start, "ns")
        if done + 1 >= WARM_UPS and time.perf_counter() > end:
            break


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
