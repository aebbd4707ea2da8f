#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: [MINDSPORE_VERSION=X.Y.Z] bash scripts/run_tests.sh [--slow] [pytest arguments, such as -k schedule or -x]
# Sets up the environment, checks the code with ruff and runs the tests; exits with the status of the first failure.
# MINDSPORE_VERSION=2.10.0 does so with another MindSpore, beside the pinned one.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/env.sh"
case "${1:-}" in
    -h | --help) sed -n '3,5s/^# //p' "${BASH_SOURCE[0]}" && exit ;;
esac
prepare_environment requirements-dev.txt
cd -- "$REPOSITORY"
python -m ruff check .
# Some processes with a library thread each: most of a test is Python and compiling, which use one core.
workers=$(getconf _NPROCESSORS_ONLN)
OMP_NUM_THREADS=1 python -m pytest --durations=10 -n "$((workers < 4 ? workers : 4))" --dist worksteal "$@"
