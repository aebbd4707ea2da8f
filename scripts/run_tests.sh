#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Set up the environment, then check the code with ruff and run the tests.
#
#   bash scripts/run_tests.sh [--slow] [pytest arguments]     e.g. -k schedule, -x, tests/test_vgg.py
#   MINDSPORE_VERSION=2.10.0 bash scripts/run_tests.sh        the same with another MindSpore, beside the pinned one
#
# Answers with the status of the first check that fails.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/env.sh"
case "${1:-}" in
    -h | --help)
        printf 'usage: [MINDSPORE_VERSION=X.Y.Z] bash scripts/run_tests.sh [--slow] [pytest arguments]\n'
        exit ;;
esac
prepare_environment
cd -- "$REPOSITORY"

python -m ruff check .
python -m pytest --durations=10 "$@"
