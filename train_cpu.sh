#!/usr/bin/env bash
# Train a first language model on this computer's CPU: bash train_cpu.sh [OPTIONS of cpulm train]
# With --overnight it trains on after the terminal is closed; see docs/overnight.md.
set -eu
root="$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)"
. "$root/scripts/python.sh"
python="$(find_python)"
exec "$python" "$root/scripts/train_cpu.py" "$@"
