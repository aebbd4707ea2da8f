#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: bash run_eval.sh DATA_PATH DATASET_TYPE DEVICE_TYPE CHECKPOINT_PATH [any eval.py flag ...]
#   DATASET_TYPE     cifar10 | imagenet2012
#   DEVICE_TYPE      Ascend | GPU | CPU | auto
#   CHECKPOINT_PATH  a checkpoint, a folder of them, or a quoted pattern
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
begin 4 "$@"
become "$python" -u "$ROOT/eval.py" "--data_dir=$1" "--dataset=$2" "--device_target=$3" "--pre_trained=$4" "${@:5}"
