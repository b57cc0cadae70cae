#!/usr/bin/env bash
# All checks: ruff, mypy --strict and pytest: bash run_tests.sh [OPTIONS of pytest]
set -eu
root="$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)"
. "$root/scripts/python.sh"
base="$(find_python)"
python="$("$base" "$root/scripts/environment.py" --extra test)"
cd -- "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# Two at a time: many tests wait for processes that they start, and for pauses of seconds.
exec "$python" -m pytest --numprocesses 2 --dist worksteal "$@"
