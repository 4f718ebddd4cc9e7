#!/usr/bin/env bash
# Builds source archive and wheel, installs the wheel in an environment of its own, and tests it outside the tree.
# Usage: tools/test_wheel.sh PYTHON_THAT_BUILDS TORCH CONSTRAINTS
set -euo pipefail
builder=$(realpath -s "$1") torch=$2 constraints=$(realpath "$3")
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$builder" -m build --outdir "$work/dist" .
"$builder" -m venv "$work/venv"
python=$work/venv/bin/python
sed '/^torch==/d' "$constraints" >"$work/constraints.txt" # the second argument chooses it
# Unquoted: it may carry options of pip.
"$python" -m pip install --quiet $torch
"$python" -m pip install --quiet -c "$work/constraints.txt" "$(echo "$work"/dist/*.whl)[train]" pytest
cp -r tests/installed "$work/checks"
cd "$work/checks"
HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false "$python" -m pytest -ra -o python_files='check_*.py' --durations=5 .
