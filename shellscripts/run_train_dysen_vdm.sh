#!/usr/bin/env bash
# Stage 3, on planned scene graphs of your own WebVid files: run_train_dysen_vdm.sh <data root> [overrides]
# Goes on from the newest run with scene graphs: run_train_vdm.sh <data root> 'condition=[text,scene_graph]'
# Needs plans: python -m dysen.plan data=webvid split=train paths.data_root=<data root>
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -lt 1 ]; then
  echo "usage: run_train_dysen_vdm.sh <data root> [key=value ...]" >&2
  exit 2
fi
DATA_ROOT="$1"
shift
exec "$PYTHON" train.py stage=dysen data=webvid "paths.data_root=$DATA_ROOT" "$@"
