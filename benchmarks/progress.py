"""One picture of what a run of stage=vdm had learned when: a clip of the validation set, and below it its samples by step.

python benchmarks/progress.py outputs/quickstart-vdm progress.png [--clips 4] [--scale 2]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--scale", type=int, default=2)
    given = parser.parse_args()

    import torch

    from vdm.video import decode, save_png, sheet, to_float

    steps = sorted((given.run / "samples").glob("step-*"))
    if not steps:
        sys.exit(f"{given.run} has no samples of its training (callbacks.samples.every)")
    rows = []
    for video in sorted(steps[-1].glob("*.mp4"))[: given.clips]:
        for number, step in enumerate(steps):
            both = to_float(torch.from_numpy(decode(step / video.name)).permute(3, 0, 1, 2))  # 3 T H 2W
            clip, sample = both.chunk(2, dim=-1)
            rows += [clip, sample] if number == 0 else [sample]
    save_png(given.picture, sheet(rows, scale=given.scale))
    print(f"{given.picture}: of each clip the original, then after " + ", ".join(str(int(s.name[5:])) for s in steps))


if __name__ == "__main__":
    main()
