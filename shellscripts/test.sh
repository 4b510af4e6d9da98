#!/usr/bin/env bash
# Makes .venv when there is none, then checks style and runs the tests. Arguments go to pytest: test.sh -m slow
#   PROCESSES=<number> of tests at once; 0: in this process.
EXTRAS=dev,clip,diffusers,wandb,deepspeed
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest -n "${PROCESSES:-2}" --dist loadfile "${@:--m not slow}"
