#!/usr/bin/env bash
# The whole chain on a laptop, no GPU: makes .venv when there is none, a small world of moving shapes, a video
# autoencoder for it, and its reconstructions of clips it has never seen. Arguments go to train.py.
#   DATASETS=<folder> and OUTPUTS=<folder> choose where things are written.
EXTRAS="${EXTRAS:-}"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
DATASETS="${DATASETS:-datasets/quickstart}"
OUTPUTS="${OUTPUTS:-outputs}"

echo "== 1. Data: clips with captions and complete truth, as H.264 in tar shards"
"$PYTHON" -m data.prepare data=shapes "paths.data_root=$DATASETS" \
  data.source.num_train=4000 data.source.num_val=64 data.source.num_test=256 data.source.num_heldout=64

echo "== 2. stage=autoencoder: clips to latents and back"
"$PYTHON" train.py experiment=quickstart "paths.data_root=$DATASETS" "paths.output_root=$OUTPUTS" "$@"

echo "== 3. What it keeps of clips it has never seen"
"$PYTHON" evaluate.py protocol=reconstruction run=quickstart-autoencoder \
  "paths.data_root=$DATASETS" "paths.output_root=$OUTPUTS"
echo "Look at $OUTPUTS/quickstart-autoencoder/evaluation/reconstruction/sheet.png: original, and below it what came back."
