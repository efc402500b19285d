#!/bin/sh
# Make a virtual environment in $1 with the first Python of 3.11 or newer; PYTHON=… overrides.
set -eu
for python in ${PYTHON:-python3 python3.12 python3.11 python3.13}; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    if ! "$python" -m venv --clear "$1"; then
        echo "error: $python cannot make virtual environments; on Debian: apt-get install python3-venv" >&2
        exit 1
    fi
    echo "Using $("$1/bin/python" --version) in $1"
    exit 0
done
echo "error: no Python of 3.11 or newer found; set PYTHON=/path/to/python" >&2
exit 1
