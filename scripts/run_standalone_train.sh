#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: bash run_standalone_train.sh DATA_PATH [cifar10|imagenet2012] [any train.py flag ...]
# Trains on one device of this machine; DEVICE_TARGET=Ascend|GPU|CPU chooses it, DEVICE_ID the card.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
begin 1 "$@"
data=$1
shift
flags=()
case "${1:-}" in
    "" | -*) ;;
    *) flags+=("--dataset=$1"); shift ;;
esac
[ -z "${DEVICE_TARGET:-}" ] || flags+=("--device_target=$DEVICE_TARGET")
become "$python" -u "$ROOT/train.py" "--data_dir=$data" ${flags[@]+"${flags[@]}"} "$@"
