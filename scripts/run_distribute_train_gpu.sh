#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: bash run_distribute_train_gpu.sh DATA_PATH [cifar10|imagenet2012] [any train.py flag ...]
# One process per GPU; `--help` lists the variables that steer it.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
python=$(project_python)
exec "$python" "$SCRIPTS/launch.py" cards "$@"
