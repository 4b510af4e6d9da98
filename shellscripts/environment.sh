# Sourced by the other scripts: makes .venv on first use and leaves $PYTHON pointing into it.
# VENV=<folder> uses another place, PYTHON=<interpreter> uses that one and installs nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
  VENV="${VENV:-.venv}"
  EXTRAS="${EXTRAS:-}"
  if [ ! -x "$VENV/bin/python" ]; then
    base=""
    for candidate in python3.12 python3.11 python3.13 python3 python; do
      if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        base="$candidate"
        break
      fi
    done
    if [ -z "$base" ]; then
      echo "Python 3.11, 3.12 or 3.13 is needed; none of them is on the PATH." >&2
      exit 2
    fi
    "$base" -m venv "$VENV"
  fi
  # Installed again only when what is to be installed has changed.
  stamp="$VENV/.installed-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)-${EXTRAS//,/-}"
  if [ ! -e "$stamp" ]; then
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
    touch "$stamp"
  fi
  PYTHON="$VENV/bin/python"
fi
export PYTHON
