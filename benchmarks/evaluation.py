"""FVD beside the code path of the package cd-fvd, with the same network and clips, and what a whole evaluation costs.

    pip install --no-deps --target elsewhere cd-fvd
    PYTHONPATH=elsewhere python benchmarks/evaluation.py --turns 5

Maths: from features to the distance. Features: from 8-bit clips to the 400 logits of its I3D, with random weights, because only
the time matters; ours reads the same network as TorchScript, which resizes inside as the published file does. Both take turns in
one process, and ratios of medians are printed, in wall and in processor time. Without cd-fvd only the costs are measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "evaluation"))

import hydra
import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor, nn

from vdm import config
from vdm.evaluation.distances import frechet_distance
from vdm.evaluation.networks import TorchScript
from vdm.evaluation.report import write_report
from vdm.launch import CONF

THEIR_BATCH = 16
PARTS = ("shapes_frechet_handmade", "motion", "warping_error", "flicker")


def take_turns(title: str, ours: Callable, theirs: Callable, turns: int) -> None:
    """One turn of each is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    values = {}
    for turn in range(turns + 1):
        for name, call in (("ours", ours), ("theirs", theirs)):
            wall, processor = time.perf_counter(), time.process_time()
            values[name] = call()
            spent = (time.perf_counter() - wall, time.process_time() - processor)
            seconds[name] += [spent] if turn else []
    wall, processor = ({n: statistics.median(s[i] for s in seconds[n]) for n in seconds} for i in (0, 1))
    apart = np.abs(np.asarray(values["ours"], float) - np.asarray(values["theirs"], float)).max()
    size = np.abs(np.asarray(values["theirs"], float)).max()
    for kind, found in (("wall", wall), ("processor", processor)):
        ratio = found["theirs"] / found["ours"]
        print(f"{title:<34} {kind:<10} ours {found['ours']:8.3f} s  theirs {found['theirs']:8.3f} s  ratio {ratio:.2f}")
    print(f"{'':<34} results differ by {apart:.2e} where the largest is {size:.2e}", flush=True)


def features_of(count: int, width: int, seed: int) -> Tensor:
    """Correlated, as features are: a few directions hold most of the variance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(9)) * (
        torch.arange(1, width + 1) ** -0.7
    )
    return torch.randn(count, width, generator=generator) @ mixing.T + 0.1 * seed


def maths(count: int, width: int, turns: int) -> None:
    from cdfvd.fvd import cdfvd
    from cdfvd.utils.metric_utils import FeatureStats

    real, made = features_of(count, width, 0), features_of(count, width, 1)

    def theirs() -> float:
        stats = []
        for side in (made, real):
            one = FeatureStats(max_items=None, capture_mean_cov=True)
            for part in side.split(THEIR_BATCH):
                one.append_torch(part, num_gpus=1, rank=0)
            stats.append(one)
        return float(cdfvd.compute_fvd_from_stats(object.__new__(cdfvd), *stats))

    take_turns(f"maths, {count} x {width}", lambda: frechet_distance(real, made), theirs, turns)


class Published(nn.Module):
    """Called as the published TorchScript file is: 8-bit clips of any size in, logits out."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        b, c, t, h, w = x.shape
        x = x.float()
        if resize:
            frames = F.interpolate(
                x.transpose(1, 2).flatten(0, 1), size=(224, 224), mode="bilinear", align_corners=False
            )
            x = frames.unflatten(0, (b, t)).transpose(1, 2)
        if rescale:
            x = 2 * x / 255 - 1
        return self.network(x)


def extraction(count: int, size: int, turns: int) -> None:
    from cdfvd.fvd import get_i3d_logits
    from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d
    from cdfvd.utils.metric_utils import FeatureStats

    torch.manual_seed(0)
    network = InceptionI3d(400, in_channels=3).eval()
    clips = np.random.default_rng(0).integers(0, 256, (count, 16, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "i3d.pt"
        traced = torch.jit.trace(network, torch.zeros(2, 3, 16, 224, 224), check_trace=False)
        torch.jit.script(Published(traced)).save(str(path))
        ours = TorchScript(
            file=str(path), sha256=None, origin="", licence="", resize="", batch_size=8,
            arguments={"rescale": True, "resize": True, "return_features": True},
        )  # fmt: skip

        def theirs() -> np.ndarray:
            stats = FeatureStats(max_items=None, capture_mean_cov=True, capture_all=True)
            get_i3d_logits(stats, network, clips, batchsize=THEIR_BATCH, device="cpu")
            return stats.get_all()

        pictures = torch.from_numpy(clips).permute(0, 4, 1, 2, 3)
        take_turns(f"features, {count} clips {size}x{size}", lambda: ours(pictures).numpy(), theirs, turns)


# ---- what an evaluation costs -----------------------------------------------------------------------------------------


def costs(count: int) -> None:
    """Metrics of so many clips of 8 x 32 x 32 without sampling and without networks, and the page about them."""
    from moving_clips import batch, clips

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("evaluate", overrides=["protocol=shapes", f"metric=[{','.join(PARTS)}]"])
    nodes = config.resolve(cfg)["metric"]
    kinds = [clips(1, frames=8, size=32, seed=seed)[0] for seed in range(32)]
    total = 0.0
    for name in PARTS:
        metric = instantiate(nodes[name], _convert_="all")
        began = time.process_time()
        for start in range(0, count, 16):
            numbers = range(start, min(start + 16, count))
            video = torch.stack([kinds[n % 32].roll(n % 7, -1) for n in numbers])
            metric.update(video, batch(video, keys=[f"clip-{n}" for n in numbers]))
        seen = time.process_time()
        metric.compute()
        done = time.process_time()
        total += done - began
        print(
            f"{name:<34} {count} clips: {seen - began:7.1f} s to look at them, {done - seen:6.1f} s for the numbers",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as folder:
        spent = page(Path(folder), count)
    print(f"{'report.html':<34} {count} cases: {spent:7.1f} s")
    print(f"{'all of it':<34} {total + spent:.1f} s of processor time")


def page(root: Path, count: int) -> float:
    """The report of a result with so many cases, 16 of them with videos and drawings."""
    import json

    from result_folder import write_results

    folder = write_results(root, cases=16)
    rows = [
        json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines() if not line.startswith("{broken")
    ]
    nothing = dict.fromkeys(("video", "original", "plan", "timeline", "graph"))
    rows += [rows[n % 16] | nothing | {"key": f"more-{n}"} for n in range(count - 16)]
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    began = time.process_time()
    write_report(folder, run=folder.parents[1])
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--count", type=int, default=2048, help="clips of maths and costs")
    parser.add_argument("--clips", type=int, default=4, help="clips of a turn of the features")
    parser.add_argument("--size", type=int, default=128, help="of these clips")
    parser.add_argument("--parts", nargs="*", default=["maths", "features", "costs"])
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # of tracing, and of scipy about an argument that cd-fvd gives
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        import cdfvd  # noqa: F401
    except ImportError as error:
        print(
            f"cd-fvd is not beside this ({error}): pip install --no-deps --target elsewhere cd-fvd, and PYTHONPATH=elsewhere"
        )
        given.parts = [part for part in given.parts if part == "costs"]
    if "maths" in given.parts:
        for width in (400, 1408):  # I3D, and the VideoMAE of cd-fvd
            maths(given.count, width, given.turns)
    if "features" in given.parts:
        extraction(given.clips, given.size, given.turns)
    if "costs" in given.parts:
        costs(given.count)


if __name__ == "__main__":
    main()
