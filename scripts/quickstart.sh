#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to a network that predicts, in a few minutes on a laptop: set up the environment, generate images, train
# a small VGG11 on them, evaluate it, export it, predict a few images, and say where everything is.
#
#   bash scripts/quickstart.sh [--retrain]
#
# A second call uses the network of the first. It trains again with --retrain, or when code or recipe changed.
# VENV=/other/disk/venv names another place for the environment, PYTHON=/path/to/python3.11 the Python to make it with.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/env.sh"

DATA="data/shapes"
IMAGES="data/shapes_to_predict"  # ten more, as files
RUNS="outputs/quickstart"
RECIPE="configs/quickstart.yaml"
DONE="quickstart.done"  # a file in the folder of a run that this script has finished

case "$*" in
    '' | --retrain) ;;
    -h | --help) sed -n '3,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit ;;
    *) die "unknown argument: $*" "usage: bash scripts/quickstart.sh [--retrain]" ;;
esac
prepare_environment
cd -- "$REPOSITORY"
SECONDS=0
mkdir -p "$RUNS"
python scripts/make_shapes.py "$DATA"

run=""
for folder in "$RUNS"/[0-9]*/; do  # the names are times: the newest comes last
    [[ ! -f "$folder$DONE" || ! -f "${folder}best.ckpt" ]] || run="${folder%/}"
done
if [[ -n "$run" && -n "$(find src model_utils train.py cifar10_config.yaml "$RECIPE" "$DATA/shapes.json" -type f \
    ! -name '*.pyc' -newer "$run/$DONE")" ]]; then
    run=""
fi
if [[ -n "$run" && "$*" != --retrain ]]; then
    printf 'Using the network of an earlier call (--retrain trains again).\n'
else
    python train.py --config_path="$RECIPE" --data_dir="$DATA" --ckpt_path="$RUNS" --mode=train_and_evaluate
    for run in "$RUNS"/[0-9]*/; do :; done
    run="${run%/}"
    [[ -f "$run/best.ckpt" ]] || die "training ended without a checkpoint in $REPOSITORY/$RUNS"
    touch "$run/$DONE"
fi
python eval.py --config_path="$RECIPE" --data_dir="$DATA" --ckpt_path="$RUNS" --pre_trained="$run/best.ckpt"
for evaluation in "$RUNS"/[0-9]*_eval/; do :; done
python export.py --config_path="$RECIPE" --ckpt_file="$run/best.ckpt" --file_format=MINDIR,ONNX
python scripts/make_shapes.py "$IMAGES" --layout=folders --train=1 --test=10 --seed=2
python infer.py --config_path="$RECIPE" --model_path="$run/vgg11.mindir" --input="$IMAGES/val" --top=2 \
    --annotate="$run/predictions"
printf '\nDone in %d s. The run folder is %s\n' "$SECONDS" "$REPOSITORY/$run"
printf '  %-27s %s\n' curves.png "loss, accuracy and learning rate to look at" \
    metrics.csv "the same as numbers, one row per epoch" train.log "everything that was printed" \
    best.ckpt "the checkpoint of the best epoch" config.yaml "every setting of the run" \
    "vgg11.mindir, vgg11.onnx" "the exported network; vgg11.json describes it" \
    predictions/ "ten images with their prediction, and all of them in contact_sheet.png"
printf 'The evaluation, with confusion_matrix.png and wrong.png, is in %s\n' "$REPOSITORY/${evaluation}best"
printf 'What comes next, with images of your own in a folder per class:\n'
printf '  %s\n' "source $(printf '%q' "$VIRTUAL_ENV/bin/activate")" \
    "python train.py --dataset=photos --data_dir=FOLDER"
