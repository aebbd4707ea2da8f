#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: bash run_1p.sh [any train.py flag ...]
# Trains and evaluates VGG19 on ImageNet on one device, by configs/vgg/vgg19_batch256.yaml; results in ./results/1p.
#   --datadir=FOLDER                        the data (or DATA_DIR=FOLDER)
#   --device_target=Ascend|GPU|CPU          the device (or DEVICE_TARGET=...)
#   --mode=evaluate --eval_dir=CHECKPOINTS  evaluates a checkpoint, or all in a folder
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"
begin 0 "$@"
become "$python" -u "$ROOT/train.py" "--config_path=$ROOT/configs/vgg/vgg19_batch256.yaml" \
    ${DATA_DIR:+"--data_dir=$DATA_DIR"} ${DEVICE_TARGET:+"--device_target=$DEVICE_TARGET"} "$@"
