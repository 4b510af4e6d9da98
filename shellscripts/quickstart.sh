#!/usr/bin/env bash
# The whole chain on a laptop, no GPU: makes .venv when there is none, a small world of moving shapes, a video
# autoencoder for it, a text-to-video model on its latents, and videos of captions it has never seen, judged by a
# program that reads pixels. Then Dysen: a language model that plans, and a video model that follows its scene graphs.
# Arguments go to the training of the text-to-video model.
#   DATASETS=<folder> and OUTPUTS=<folder> choose where things are written; SHORT=1 leaves out Dysen, the second half.
EXTRAS="${EXTRAS:-}"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
DATASETS="${DATASETS:-datasets/quickstart}"
OUTPUTS="${OUTPUTS:-outputs}"

SHORT="${SHORT:-}"

PATHS=("paths.data_root=$DATASETS" "paths.output_root=$OUTPUTS")

# Two threads that wait for each other awake: layers this small gain nothing from more, and from sleep they lose half of
# their time. Where other programs need the same cores, OMP_WAIT_POLICY=PASSIVE is faster.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-ACTIVE}"

echo "== 1. Data: clips with captions and complete truth, as H.264 in tar shards"
"$PYTHON" -m data.prepare data=shapes_calm "${PATHS[@]}"

echo "== 2. stage=autoencoder: clips to latents and back"
"$PYTHON" train.py experiment=quickstart "${PATHS[@]}"
"$PYTHON" evaluate.py protocol=reconstruction run=quickstart-autoencoder "${PATHS[@]}"

echo "== 3. stage=vdm: captions to latents, which are encoded once"
"$PYTHON" -m data.precompute data=shapes_calm "run=$OUTPUTS/quickstart-autoencoder" "${PATHS[@]}"
"$PYTHON" train.py experiment=quickstart_vdm "${PATHS[@]}" "$@"

echo "== 4. What it shows for captions of clips it has never seen"
"$PYTHON" evaluate.py protocol=shapes run=quickstart-vdm "${PATHS[@]}"
"$PYTHON" sample.py run=quickstart-vdm prompt="A large red square vanishes." num=4 guidance=2.5 "${PATHS[@]}"
echo "Open $OUTPUTS/quickstart-vdm/evaluation/shapes/report.html. Beside it, sheet.png has the clip of each caption, and below it"
echo "the sample; $OUTPUTS/quickstart-autoencoder/evaluation/reconstruction/sheet.png has clips and their reconstructions."
[ -z "$SHORT" ] || exit 0

echo "== 5. Dysen: a small language model that plans, and a policy that chooses what it is shown"
"$PYTHON" train.py experiment=quickstart_language "${PATHS[@]}"
"$PYTHON" train.py experiment=quickstart_planner "${PATHS[@]}"

echo "== 6. A video model that hears scene graphs, on stories told in words that only demonstrations explain"
"$PYTHON" -m data.prepare data=shapes_new_verbs "${PATHS[@]}"
"$PYTHON" -m data.precompute data=shapes_new_verbs "run=$OUTPUTS/quickstart-autoencoder" "${PATHS[@]}"
"$PYTHON" train.py experiment=quickstart_graphs init.autoencoder=quickstart-autoencoder \
  init.backbone=quickstart-vdm init.conditions=quickstart-vdm "${PATHS[@]}"

echo "== 7. It goes on training on planned graphs, and plans what it is asked for"
"$PYTHON" -m dysen.plan data=shapes_new_verbs split=train captions=all limit=1000 "output=$OUTPUTS/quickstart-plans" \
  llm=tiny selector=policy planner=plain planner.ticks=7 "${PATHS[@]}"
"$PYTHON" train.py experiment=quickstart_dysen init.vdm=quickstart-graphs "stage.planned.folder=$OUTPUTS/quickstart-plans" "${PATHS[@]}"
"$PYTHON" sample.py run=quickstart-dysen plan=true llm=tiny selector=policy planner=plain planner.ticks=7 guidance=1.5 num=2 \
  prompt="A large red square wilkets, but first it krompets." "${PATHS[@]}"

echo "== 8. (a) captions alone, (b) true graphs, (c) graphs planned with chosen demonstrations, (d) with random ones; one seed"
"$PYTHON" benchmarks/claim.py --outputs "$OUTPUTS" --datasets "$DATASETS" --seeds 0 --clips 128 --graphs quickstart-graphs
echo "Drawings of plans are beside the videos in $OUTPUTS/quickstart-dysen/generated."
