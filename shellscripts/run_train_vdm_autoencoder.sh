#!/usr/bin/env bash
# Stage 1 on your own WebVid files: run_train_vdm_autoencoder.sh <data root> [overrides]
# Needs shards: python -m data.prepare data=webvid paths.data_root=<data root> data.source.csv=... data.source.videos=...
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -lt 1 ]; then
  echo "usage: run_train_vdm_autoencoder.sh <data root> [key=value ...]" >&2
  exit 2
fi
DATA_ROOT="$1"
shift
exec "$PYTHON" train.py stage=autoencoder data=webvid "paths.data_root=$DATA_ROOT" "$@"
