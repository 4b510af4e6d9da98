#!/usr/bin/env bash
# Stage 2, text to video on your own WebVid files: run_train_vdm.sh <data root> [overrides]
# Starts from the newest autoencoder; conditions besides text, or other weights to begin with: docs/conditions.md, docs/export.md
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -lt 1 ]; then
  echo "usage: run_train_vdm.sh <data root> [key=value ...]" >&2
  exit 2
fi
DATA_ROOT="$1"
shift
exec "$PYTHON" train.py stage=vdm data=webvid "paths.data_root=$DATA_ROOT" "$@"
