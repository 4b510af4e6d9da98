#!/usr/bin/env bash
# Videos of a text, by the newest run that makes videos: run_sample_vdm_text2video.sh "<text>" [overrides]
# plan=true plans it first, where the run hears scene graphs; num, seed, guidance and files of texts: docs/sampling.md
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -lt 1 ]; then
  echo "usage: run_sample_vdm_text2video.sh \"<text>\" [key=value ...]" >&2
  exit 2
fi
PROMPT="$1"
shift
exec "$PYTHON" sample.py "prompt=$PROMPT" "$@"
