#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: bash run_infer_310.sh MODEL_PATH DATASET_NAME DATASET_PATH NEED_PREPROCESS [DEVICE_ID] [any infer.py flag ...]
#   MODEL_PATH       a .mindir for MindSpore Lite (MindSpore where that is not installed), an .onnx for onnxruntime
#   DATASET_NAME     cifar10 | imagenet2012
#   DATASET_PATH     the data set; with `n` for cifar10 it may be a folder that preprocess.py has written
#   NEED_PREPROCESS  y writes inputs and labels into ./preprocess_Result; n uses those of an earlier call
#   DEVICE_ID        which device; that of the environment unless given, else 0
# ENGINE=onnxruntime runs NAME.onnx in place of NAME.mindir, once it is shown to be of the same export.
# Leaves in the current folder: result_Files/, time_Result/test_perform_static.txt, acc.log and a log of each stage.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
. "$(dirname -- "$0")/common.sh"

# refuse LINE...: what is wrong with the command.
refuse() {
    printf 'run_infer_310.sh: error: %s\n' "$@" >&2
    exit 2
}

# stage NAME LOG COMMAND...: run it; where it fails, say so, show the end of its log, and end with its status.
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

# first_existing PATH...: the first that is there.
first_existing() {
    local path
    for path in "$@"; do
        if [ -e "$path" ]; then
            printf '%s\n' "$path"
            return
        fi
    done
}

# Where prepared CIFAR-10 inputs lie: in the folder named, in its 00_data, or where an earlier call left them.
prepared_inputs() {
    if [ -n "$(first_existing "$data"/*.bin)" ] && [ -z "$(first_existing "$data"/*_batch*.bin)" ]; then
        printf '%s\n' "$data"
    else
        first_existing "$data/00_data" preprocess_Result/00_data
    fi
}

case "${1:-}" in
    -h | --help) show_help "$0"; exit 0 ;;
esac
if [ $# -lt 4 ]; then
    show_help "$0" >&2
    exit 2
fi
model=$1 dataset=$2 data=${3%/} need_preprocess=$4
shift 4
device=${DEVICE_ID:-0}
case "${1:-}" in
    --*) ;;
    *) device=${1:-$device}; shift $(($# > 0)) ;;
esac
[ -f "$model" ] || refuse "MODEL_PATH: there is no file $model"
case "$model" in
    *.mindir | *.onnx) ;;
    *) refuse "MODEL_PATH: $model is neither a .mindir nor an .onnx file" ;;
esac
case "$dataset" in
    cifar10) labels=cifar10_label_ids.npy ;;
    imagenet2012) labels=imagenet_label.json ;;
    *) refuse "DATASET_NAME: must be cifar10 or imagenet2012, not $dataset" ;;
esac
[ -d "$data" ] || refuse "DATASET_PATH: $data is not a folder"
case "$need_preprocess" in
    [yY] | [nN]) ;;
    *) refuse "NEED_PREPROCESS: must be y or n, not $need_preprocess" ;;
esac
[[ "$device" =~ ^[0-9]+$ ]] || refuse "DEVICE_ID: must be a number, not $device"

for flag in "$@"; do
    name=${flag%%=*}
    case "${name//-/_}" in
        __dataset | __dataset_name | __model_path | __data_dir | __data_path | __input | __label_dir | __result_dir | __result_path | __time_dir)
            refuse "$name: this script sets it itself, from its arguments" ;;
    esac
done
rm -f -- acc.log  # an old accuracy must not be taken for that of a run that failed
flags=("--dataset=$dataset" "--dataset_name=$dataset" "--model_path=$model" "$@")
python=$(project_python)
case "$need_preprocess" in
    [yY])
        stage preprocess preprocess.log "$python" "$ROOT/preprocess.py" "${flags[@]}" "--data_dir=$data" \
            --result_path=preprocess_Result
        inputs=preprocess_Result/00_data label_file=preprocess_Result/$labels
        ;;
    *)
        if [ "$dataset" = cifar10 ]; then  # the labels of these very inputs, and no others
            inputs=$(prepared_inputs)
            [ -n "$inputs" ] || refuse "NEED_PREPROCESS=n: there are no prepared inputs in $data or preprocess_Result; give y once"
            label_file=$(first_existing "$inputs/$labels" "$(dirname -- "$inputs")/$labels")
        else
            label_file=$(first_existing "$data/$labels" "$(dirname -- "$data")/$labels" "preprocess_Result/$labels")
        fi
        [ -n "$label_file" ] || refuse "NEED_PREPROCESS=n: there is no $labels for ${inputs:-$data}; give y once"
        ;;
esac
if [ "$dataset" = cifar10 ]; then
    source=("--input=$inputs")
else
    source=("--data_dir=$data")
fi
stage inference infer.log "$python" "$ROOT/infer.py" "--engine=${ENGINE:-auto}" "--device_id=$device" "${flags[@]}" \
    "${source[@]}" --result_dir=result_Files --time_dir=time_Result
grep -h -e ' runs ' infer.log || true  # which engine it was
stage postprocess acc.log "$python" "$ROOT/postprocess.py" "${flags[@]}" --result_dir=result_Files \
    "--label_dir=$label_file"
cat acc.log time_Result/test_perform_static.txt
