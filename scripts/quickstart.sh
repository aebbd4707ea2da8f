#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to a network that predicts, in a few minutes on a laptop: set up the environment, generate a image set,
# train a small VGG11 on it, evaluate it, export it, look at a few predictions, and say where everything is.
#
#   bash scripts/quickstart.sh [--retrain]
#
# A second call finds what the first one made: it trains again only with --retrain, or when code or recipe changed.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/env.sh"

DATA="data/shapes"
IMAGES="data/shapes_to_predict"  # ten more, as files
RUNS="outputs/quickstart"
RECIPE="configs/quickstart.yaml"

# What a trained network depends on, as text: the environment, the images, and a check sum of each file.
describe_sources() {
    printf '%s\n' "$VIRTUAL_ENV"
    find src model_utils train.py requirements.txt cifar10_config.yaml "$RECIPE" "$DATA/shapes.json" -type f \
        ! -name '*.pyc' -exec cksum {} + | LC_ALL=C sort
}

# finished_run SOURCES: the newest run folder of a complete run that was made from just these; nothing if there is none.
finished_run() {
    local run found=""
    for run in "$RUNS"/*/; do
        if [[ -f "$run/sources.txt" && -f "$run/best.ckpt" && "$(<"$run/sources.txt")" == "$1" ]]; then
            found="${run%/}"
        fi
    done
    printf '%s' "$found"
}

# train SOURCES: one run; sets `run` to the folder it left.
train() {
    local before folder
    before="$(printf '%s\n' "$RUNS"/*/)"
    python train.py --config_path="$RECIPE" --data_dir="$DATA" --ckpt_path="$RUNS" --mode=train_and_evaluate
    for folder in "$RUNS"/*/; do
        [[ $'\n'"$before"$'\n' == *$'\n'"$folder"$'\n'* ]] || run="${folder%/}"
    done
    [[ -n "$run" && -f "$run/best.ckpt" ]] || die "training ended without a checkpoint under $REPOSITORY/$RUNS"
    printf '%s\n' "$1" >"$run/sources.txt"
}

# deploy: export the network of `run`, compared with the original, and let the exported file name ten new images.
deploy() {
    python export.py --config_path="$RECIPE" --ckpt_file="$run/best.ckpt" --file_name="$run/vgg11" \
        --file_format=MINDIR,ONNX
    python scripts/make_shapes.py "$IMAGES" --layout=folders --train=1 --test=10 --seed=2
    python infer.py --config_path="$RECIPE" --model_path="$run/vgg11.mindir" --input="$IMAGES/val" --top=2 \
        --annotate="$run/predictions"
}

main() {
    local run="" sources retrain=false
    case "$*" in
        '') ;;
        --retrain) retrain=true ;;
        -h | --help) printf 'usage: bash scripts/quickstart.sh [--retrain]\n' && return ;;
        *) die "unknown argument: $*" "usage: bash scripts/quickstart.sh [--retrain]" ;;
    esac
    prepare_environment
    cd -- "$REPOSITORY"
    SECONDS=0
    mkdir -p "$RUNS"
    lock "$RUNS"
    python scripts/make_shapes.py "$DATA"
    sources="$(describe_sources)"
    $retrain || run="$(finished_run "$sources")"
    if [[ -n "$run" ]]; then
        printf 'Found the network of an earlier call (--retrain trains again).\n'
    else
        train "$sources"
    fi
    python eval.py --config_path="$RECIPE" --data_dir="$DATA" --ckpt_path="$RUNS" --pre_trained="$run/best.ckpt"
    deploy
    printf '\nDone in %d s. The run folder is %s\n' "$SECONDS" "$REPOSITORY/$run"
    printf '  %-27s %s\n' curves.png "loss, accuracy and learning rate to look at" \
        metrics.csv "the same as numbers, one row per epoch" train.log "everything that was printed" \
        best.ckpt "the checkpoint of the best epoch" config.yaml "every setting of the run" \
        "vgg11.mindir, vgg11.onnx" "the exported network; vgg11.json describes it" \
        predictions/ "ten images with their prediction, and all of them in contact_sheet.png"
}

main "$@"
