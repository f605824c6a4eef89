#!/usr/bin/env bash
# From a fresh clone to checked: set up, then lint, types and tests, all but the slow ones.
# Arguments go to pytest instead: -m slow runs those, -m "" all.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Two processes of one thread: the tests' networks are too small to feed more threads.
export OMP_NUM_THREADS=1
# Many tests start processes, which compile `nas` anew each time where the environment forbids to
# keep what is compiled, as that of a container often does.
unset PYTHONDONTWRITEBYTECODE

"$bin/python" -m ruff check
"$bin/python" -m ruff format --check
"$bin/python" -m mypy
# A file to a process: what the tests of a file share is made once.
[ $# -gt 0 ] || set -- -m "not slow"
"$bin/python" -m pytest -n 2 --dist loadfile "$@"
