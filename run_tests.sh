#!/usr/bin/env bash
# All checks: ruff, mypy --strict and pytest: bash run_tests.sh [OPTIONS of pytest]
set -eu
root="$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)"
. "$root/scripts/python.sh"
base="$(find_python)"
python="$("$base" "$root/scripts/environment.py" --extra test)"
cd -- "$root"
unset PYTHONDONTWRITEBYTECODE # hundreds of processes import the same modules
"$python" -m ruff check .
"$python" -m ruff format --check .
# Types are checked beside the tests, of which two run at a time: many wait for processes and pauses.
types="$(mktemp)"
trap 'rm -f -- "$types"' EXIT
"$python" -m mypy >"$types" 2>&1 &
checker=$!
passed=0
"$python" -m pytest --numprocesses 2 --dist worksteal "$@" || passed=$?
wait "$checker" || passed=$?
cat -- "$types"
exit "$passed"
