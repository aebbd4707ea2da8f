#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: bash run_infer_310.sh MODEL_PATH DATASET_NAME DATASET_PATH NEED_PREPROCESS [DEVICE_ID] [any infer.py flag ...]
#   MODEL_PATH       a .mindir for MindSpore Lite (or MindSpore, if that is not installed), an .onnx for onnxruntime
#   DATASET_NAME     cifar10 | imagenet2012
#   DATASET_PATH     the data set; with `n` for cifar10 also a folder that preprocess.py has written
#   NEED_PREPROCESS  y writes inputs and labels to ./preprocess_Result; n uses those of an earlier call
#   DEVICE_ID        which device; that of the environment unless given, else 0
# ENGINE=mindspore runs a .mindir in MindSpore although MindSpore Lite is installed.
# Writes to the current folder: result_Files/, time_Result/test_perform_static.txt, acc.log and a log of each stage.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"

refuse() { printf 'run_infer_310.sh: error: %s\n' "$1" >&2; exit 2; }

# stage NAME LOG COMMAND...: run it; if it fails, say so, show the end of its log, and exit with its status.
stage() {
    local name=$1 log=$2 status=0
    shift 2
    "$@" >"$log" 2>&1 || status=$?
    if [ "$status" -ne 0 ]; then
        printf 'run_infer_310.sh: %s failed with status %d; the end of %s:\n' "$name" "$status" "$PWD/$log" >&2
        tail -n 20 -- "$log" | sed 's/^/  /' >&2
        exit "$status"
    fi
    printf '%s: done, see %s\n' "$name" "$log"
}

# first_existing PATH...: the first that exists.
first_existing() {
    local path
    for path in "$@"; do
        if [ -e "$path" ]; then printf '%s\n' "$path"; return; fi
    done
}

begin 4 "$@"
model=$1 dataset=$2 data=${3%/} need_preprocess=$4 device=${DEVICE_ID:-0}
shift 4
case "${1:-}" in
    --*) ;;
    *) device=${1:-$device}; shift $(($# > 0)) ;;
esac
[ -f "$model" ] || refuse "MODEL_PATH: there is no file $model"
[[ "$model" =~ \.(mindir|onnx)$ ]] || refuse "MODEL_PATH: $model is neither a .mindir nor an .onnx file"
[[ "$dataset" =~ ^(cifar10|imagenet2012)$ ]] || refuse "DATASET_NAME: must be cifar10 or imagenet2012, not $dataset"
[ -d "$data" ] || refuse "DATASET_PATH: $data is not a folder"
[[ "$need_preprocess" =~ ^[yYnN]$ ]] || refuse "NEED_PREPROCESS: must be y or n, not $need_preprocess"
[[ "$device" =~ ^[0-9]+$ ]] || refuse "DEVICE_ID: must be a number, not $device"

for flag in "$@"; do
    name='dataset|dataset_name|model_path|data_dir|data_path|input|label_dir|result_dir|result_path|time_dir'
    [[ ! "${flag//-/_}" =~ ^__($name)(=|$) ]] || refuse "$flag: this script sets it from its own arguments"
done

rm -f -- acc.log  # an old accuracy must not be taken for that of a run that failed
flags=("--dataset=$dataset" "--model_path=$model" "$@")
labels=imagenet_label.json inputs="" source=("--data_dir=$data")
[ "$dataset" != cifar10 ] || labels=cifar10_label_ids.npy
if [[ "$need_preprocess" = [yY] ]]; then
    stage preprocess preprocess.log "$python" "$ROOT/preprocess.py" "${flags[@]}" "${source[@]}" \
        --result_path=preprocess_Result
    inputs=preprocess_Result/00_data label_file=preprocess_Result/$labels
elif [ "$dataset" = cifar10 ]; then  # inputs, and the labels beside them
    if [ -n "$(first_existing "$data"/*.bin)" ] && [ -z "$(first_existing "$data"/*_batch*.bin)" ]; then
        inputs=$data
    else
        inputs=$(first_existing "$data/00_data" preprocess_Result/00_data)
    fi
    [ -n "$inputs" ] || refuse "NEED_PREPROCESS=n: there are no prepared inputs in $data or preprocess_Result; give y once"
    label_file=$(first_existing "$inputs/$labels" "$(dirname -- "$inputs")/$labels")
else
    label_file=$(first_existing "$data/$labels" "$(dirname -- "$data")/$labels" "preprocess_Result/$labels")
fi
[ -n "$label_file" ] || refuse "NEED_PREPROCESS=n: there is no $labels for ${inputs:-$data}; give y once"
[ "$dataset" != cifar10 ] || source=("--input=$inputs")
stage inference infer.log "$python" "$ROOT/infer.py" "--engine=${ENGINE:-auto}" "--device_id=$device" "${flags[@]}" \
    "${source[@]}" --result_dir=result_Files --time_dir=time_Result
grep -h -e ' runs ' infer.log || true  # which engine it was
stage postprocess acc.log "$python" "$ROOT/postprocess.py" "${flags[@]}" --result_dir=result_Files \
    "--label_dir=$label_file"
cat acc.log time_Result/test_perform_static.txt
