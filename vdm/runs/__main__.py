"""python -m vdm.runs: the runs of an output folder with their lineage, state and best value."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vdm.runs.listing import STATES, as_json, chosen, rows, table


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vdm.runs", description=__doc__)
    parser.add_argument("folder", nargs="?", default="outputs", help="paths.output_root of the runs; default: outputs")
    parser.add_argument("--stage", action="append", default=[], help="only runs of this stage; may be repeated")
    parser.add_argument("--data", action="append", default=[], help="only runs on this data; may be repeated")
    parser.add_argument("--state", action="append", default=[], choices=STATES, help="only runs in this state")
    parser.add_argument("--name", default="", help="only runs with this in their name")
    parser.add_argument("--json", action="store_true", help="everything that is known, for a program")
    given = parser.parse_args(words)
    folder = Path(given.folder)
    if not folder.is_dir():
        sys.stderr.write(
            f"RunError: there is no such folder\n  got:     {folder}\n  remedy:  python -m vdm.runs <folder>\n"
        )
        return 2
    found = chosen(rows(folder), stage=given.stage, data=given.data, state=given.state, name=given.name)
    text = as_json(found) if given.json else table(found) if found else f"no such runs in {folder}"
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        sys.exit(0)
