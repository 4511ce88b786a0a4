#!/bin/sh
# Makes .venv and installs Align into it: `sh scripts/setup.sh base|dev`.
#
# Needs Python 3.11 or later and nothing else. A second call does nothing: a stamp in .venv carries
# a hash of pyproject.toml. Knobs, all optional: PYTHON (the interpreter), VENV (default .venv),
# TORCH_SPEC (what pip installs first), and pip's own PIP_* variables, which pip reads by itself.
set -eu

kind=${1:-base}
venv=${VENV:-.venv}
cd "$(dirname "$0")/.."

case "$kind" in
  base) target="." ;;
  dev) target=".[dev]" ;;
  *)
    echo "scripts/setup.sh: '$kind' is neither base nor dev." >&2
    exit 2
    ;;
esac

say() { echo "[setup] $*"; }

fail() {
  echo "[setup] error: $*" >&2
  exit 1
}

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or later (it says:" \
      "$("$PYTHON" --version 2>&1 || true)). Fix: name another, e.g. make test PYTHON=python3.12."
    echo "$PYTHON"
    return
  fi
  # Versions that torch and its companions have wheels for, before whatever python3 is.
  for candidate in python3.12 python3.11 python3.13 python3 python; do
    if new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "Align needs Python 3.11 or later; python3 here is" \
    "$(python3 --version 2>&1 || echo missing). Fix: install Python 3.12 (from your system's" \
    "packages, pyenv or conda), or name it: make quickstart PYTHON=/path/to/python3.12."
}

# A virtual environment that was moved, or whose Python went away, is told apart from a missing one.
if [ -e "$venv" ] && ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
  fail "$venv exists, but $venv/bin/python does not run. Fix: remove $venv and try again."
fi
if [ ! -e "$venv" ]; then
  python=$(find_python)
  say "creating $venv with $("$python" --version 2>&1)"
  "$python" -m venv "$venv" || {
    rm -rf "$venv"
    fail "python -m venv failed. Fix: on Debian and Ubuntu, apt-get install python3-venv."
  }
fi
python="$venv/bin/python"
new_enough "$python" || fail "$venv holds $("$python" --version 2>&1), but Align needs 3.11 or" \
  "later. Fix: remove $venv and try again, or set VENV to another folder."

# What decides the installation: the requirements, the place of the checkout (the installation is
# editable) and the interpreter.
hash=$("$python" - <<'PY'
import hashlib, os, sys
text = open("pyproject.toml", "rb").read() + os.getcwd().encode() + sys.version.encode()
print(hashlib.sha256(text).hexdigest()[:16])
PY
)
# The dev set includes the base set, so its stamp answers for both.
[ "$(cat "$venv/align-dev.stamp" 2>/dev/null || true)" = "$hash" ] && exit 0
[ "$(cat "$venv/align-$kind.stamp" 2>/dev/null || true)" = "$hash" ] && exit 0

# A terminal sees pip's progress; a log gets one line per step.
if [ -t 1 ]; then quiet=""; else quiet="--quiet"; fi
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

has_torch() {
  "$python" -c 'import sys
from importlib.metadata import version
major, minor = map(int, version("torch").split(".")[:2])
sys.exit(not (2, 10) <= (major, minor) < (2, 14))' >/dev/null 2>&1
}

install_torch() {
  if [ -n "${TORCH_SPEC:-}" ]; then
    say "installing $TORCH_SPEC"
    # shellcheck disable=SC2086 - TORCH_SPEC may hold several words
    pip install $quiet $TORCH_SPEC
    return
  fi
  if nvidia-smi >/dev/null 2>&1; then
    say "NVIDIA GPU found; installing torch 2.13.0 with CUDA (some GB, several minutes)"
  else
    # Found only where pip's own configuration names an index or a folder that has it.
    if pip install --quiet --no-deps --dry-run "torch==2.13.0+cpu" >/dev/null 2>&1; then
      say "no NVIDIA GPU found; installing the CPU build of torch 2.13.0"
      pip install $quiet "torch==2.13.0+cpu"
      return
    fi
    say "no NVIDIA GPU found; installing torch 2.13.0 as pip finds it. On Linux that is the CUDA"
    say "build: it runs on this machine too, but is some GB larger. docs/install.md says how to"
    say "have the smaller CPU build instead."
  fi
  pip install $quiet "torch==2.13.0"
}

has_torch || install_torch
say "installing align-rlhf ($kind) and what it needs (several minutes the first time)"
pip install $quiet -e "$target"
echo "$hash" >"$venv/align-$kind.stamp"
say "done"
