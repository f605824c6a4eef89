# Make the environment and install this checkout into it. Sourced by quickstart.sh and test.sh.
#
# Sets `bin`, the folder of the environment's programs, and leaves the shell in the repository's
# root. NAS_VENV names another place for the environment (default: .venv in the root).
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
venv="${NAS_VENV:-.venv}"
bin="$venv/bin"
stamp="$venv/.dnas-installed"

find_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed, and no python3, python3.11 ... python3.14 on the" \
        "PATH is one. Install it and run this again." >&2
    return 1
}

make_venv() {
    local python
    python="$(find_python)" || return 1
    echo "Making $venv with $("$python" --version)" >&2
    if ! "$python" -m venv "$venv"; then
        echo "error: '$python -m venv $venv' failed. On Debian and Ubuntu the module comes" \
            "separately: install python3-venv and run this again." >&2
        return 1
    fi
}

# What was installed: this very folder (an environment may be shared by clones), as it is now.
wanted() {
    pwd
    cat pyproject.toml
}

if ! wanted | cmp -s - "$stamp"; then
    # pip comes last into an environment: without it an earlier attempt was cut short.
    [ -x "$bin/pip" ] || make_venv || exit 1
    echo "Installing into $venv (the first time takes minutes: PyTorch is large)" >&2
    quiet=--quiet
    [ ! -t 2 ] || quiet=--no-input # someone watches: show the progress bars
    if ! "$bin/python" -m pip install "$quiet" --disable-pip-version-check -e '.[all,dev]'; then
        echo "error: the installation failed; pip says why above. Run this again to go on." >&2
        exit 1
    fi
    wanted >"$stamp"
fi
