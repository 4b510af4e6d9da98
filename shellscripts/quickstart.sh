#!/usr/bin/env bash
# The whole chain on a laptop, no GPU: makes .venv when there is none, a small world of moving shapes, a video
# autoencoder for it, a text-to-video model on its latents, and videos of captions it has never seen, judged by a
# program that reads pixels. Arguments go to the training of the text-to-video model.
#   DATASETS=<folder> and OUTPUTS=<folder> choose where things are written.
EXTRAS="${EXTRAS:-}"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
DATASETS="${DATASETS:-datasets/quickstart}"
OUTPUTS="${OUTPUTS:-outputs}"

PATHS=("paths.data_root=$DATASETS" "paths.output_root=$OUTPUTS")

echo "== 1. Data: clips with captions and complete truth, as H.264 in tar shards"
"$PYTHON" -m data.prepare data=shapes_calm "${PATHS[@]}"

echo "== 2. stage=autoencoder: clips to latents and back"
"$PYTHON" train.py experiment=quickstart "${PATHS[@]}"
"$PYTHON" evaluate.py protocol=reconstruction run=quickstart-autoencoder "${PATHS[@]}"

echo "== 3. stage=vdm: captions to latents, which are encoded once"
"$PYTHON" -m data.precompute data=shapes_calm "run=$OUTPUTS/quickstart-autoencoder" "${PATHS[@]}"
# Two processes of one thread each: layers this small gain nothing from a second thread.
OMP_NUM_THREADS=1 "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node=2 train.py experiment=quickstart_vdm \
  trainer=ddp trainer.accelerator=cpu trainer.devices=2 trainer.strategy=ddp trainer.precision=bf16-mixed data.batch_size=8 \
  "${PATHS[@]}" "$@"

echo "== 4. What it shows for captions of clips it has never seen"
"$PYTHON" evaluate.py protocol=shapes run=quickstart-vdm "${PATHS[@]}"
"$PYTHON" sample.py run=quickstart-vdm prompt="A large red square vanishes." num=4 guidance=3 "${PATHS[@]}"
echo "Look at $OUTPUTS/quickstart-vdm/evaluation/shapes/sheet.png (the clip of each caption, and below it the sample) and"
echo "$OUTPUTS/quickstart-autoencoder/evaluation/reconstruction/sheet.png."
