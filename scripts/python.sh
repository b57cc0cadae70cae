# Sourced by train_cpu.sh and run_tests.sh: find_python prints a Python that can run cpulm.

find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: there is no Python 3.10 to 3.14 here; python3 is $(python3 --version 2>/dev/null || echo missing)" >&2
    echo "hint: install one of them (https://www.python.org/downloads/) and run this again" >&2
    return 1
}
