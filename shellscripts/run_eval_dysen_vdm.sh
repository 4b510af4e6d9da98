#!/usr/bin/env bash
# FVD, KVD and IS of a run on UCF-101, zero-shot: run_eval_dysen_vdm.sh <data root> [overrides]
# Without run=<run> the newest one is measured; protocol=msrvtt, ucf101, activitynet for others: docs/evaluation.md
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -lt 1 ]; then
  echo "usage: run_eval_dysen_vdm.sh <data root> [key=value ...]" >&2
  exit 2
fi
DATA_ROOT="$1"
shift
exec "$PYTHON" evaluate.py protocol=ucf101_zero_shot "paths.data_root=$DATA_ROOT" "$@"
