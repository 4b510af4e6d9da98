"""One process, two and three give the same numbers: clips are told apart by key, whoever saw them and how often."""

import json
import multiprocessing
import random

import pytest
import torch
import torch.distributed as distributed
from moving_clips import Classes, ClipNetwork, FrameNetwork, batch, clips, noisy, script

from vdm.evaluation.handmade import HandmadeFeatures
from vdm.evaluation.keyed import digests
from vdm.evaluation.metrics.fid import FID
from vdm.evaluation.metrics.flicker import Flicker
from vdm.evaluation.metrics.fvd import FVD
from vdm.evaluation.metrics.inception_score import FrameInceptionScore, VideoInceptionScore
from vdm.evaluation.metrics.judged import Judged
from vdm.evaluation.metrics.motion import Motion
from vdm.evaluation.metrics.psnr import PSNR
from vdm.evaluation.metrics.warping_error import WarpingError

COUNT = 23  # divided by neither 2 nor 3


def judge(clip, truth):
    return {"light": float(clip.mean()), "odd": float(clip.std()) if truth % 2 else None}


def every_metric(folder):
    """By name, each new."""
    networks = {n: script(c(), folder / f"{n}.pt") for n, c in
                (("clip", ClipNetwork), ("frame", FrameNetwork), ("classes", Classes))}  # fmt: skip
    distance = {"stride": 1, "draws": 4, "seed": 0}
    return lambda: {
        "fvd": FVD(label="fvd", kernel_label="kvd", network=networks["clip"], frames=5, **distance),
        "handmade": FVD(label="hand", kernel_label=None, network=HandmadeFeatures(), frames=None, **distance),
        "fid": FID(label="fid", network=networks["frame"], frames=2, draws=4, seed=0),
        "video_is": VideoInceptionScore(label="vis", network=networks["classes"], frames=5, stride=1, splits=4),
        "frame_is": FrameInceptionScore(label="fis", network=networks["classes"], frames=2, splits=4),
        "flicker": Flicker(),
        "motion": Motion(share=0.05, threshold=0.2),
        "warping_error": WarpingError(),
        "psnr": PSNR(),
        "judged": Judged(judge=judge, reads="number", names=["light", "odd"]),
    }


def feed(metrics, order, size):
    """Clips in this order, in batches of this size; made clips are noisy."""
    real = clips(COUNT, frames=5, size=20)
    made = noisy(real, 12)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        one = batch(real[chosen], keys=[f"clip-{i}" for i in chosen]) | {"extras": {"number": list(chosen)}}
        for metric in metrics.values():
            metric.update(made[chosen], one)


def numbers_of(metrics):
    return {name: metric.compute() for name, metric in metrics.items()}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name] == pytest.approx(expected, rel=1e-6, abs=1e-6), name


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    return every_metric(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def alone(make):
    metrics = make()
    feed(metrics, list(range(COUNT)), 4)
    found = numbers_of(metrics)
    assert all(found.values()), {name: metric.skipped for name, metric in metrics.items()}
    assert {"fvd23_5f", "kvd23_5f", "fvd23_5f/floor", "fvd23_5f/low"} <= found["fvd"].keys()
    assert "fid46" in found["fid"]
    assert metrics["fvd"].facts() | {"clips": 23, "real_clips": 23, "frames": 5} == metrics["fvd"].facts()
    return found


@pytest.mark.parametrize("size", [1, 7, COUNT])
def test_order_batches_and_repeats_do_not_matter(make, alone, size):
    metrics = make()
    order = list(range(COUNT))
    random.Random(size).shuffle(order)
    feed(metrics, order + order[:5], size)
    same(numbers_of(metrics), alone)
    for metric in metrics.values():
        metric.reset()
    feed(metrics, [3, 5, 7, 8], 2)
    assert metrics["flicker"].compute() != pytest.approx(alone["flicker"], rel=1e-9)


def process(rank, ranks, folder, make, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    metrics = make()
    padded = [i % COUNT for i in range(-(-COUNT // ranks) * ranks)]  # as DistributedSampler repeats the first clips
    feed(metrics, padded[rank::ranks], 3 + rank)
    late = {"flicker": Flicker(), "fvd": make()["fvd"], "absent": make()["fvd"]}
    if rank == 0:  # the others saw nothing
        feed({"flicker": late["flicker"], "fvd": late["fvd"]}, list(range(COUNT)), 8)
        late["absent"].network.file = folder / "nowhere.pt"
    feed({"absent": late["absent"]}, list(range(COUNT))[rank::ranks], 8)
    found = {"even": numbers_of(metrics), "late": numbers_of(late), "reason": late["absent"].skipped}
    (results / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_agree(ranks, make, alone, tmp_path):
    forked = multiprocessing.get_context("fork")
    running = [forked.Process(target=process, args=(rank, ranks, tmp_path, make, tmp_path)) for rank in range(ranks)]
    for one in running:
        one.start()
    for one in running:
        one.join(120)
        if one.is_alive():
            one.terminate()
    assert [one.exitcode for one in running] == [0] * ranks
    for rank in range(ranks):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        same(found["even"], alone)
        same(found["late"], {"flicker": alone["flicker"], "fvd": alone["fvd"], "absent": {}})
        assert ("nowhere.pt" if rank == 0 else "another process") in found["reason"]


def test_keys_of_any_kind_are_told_apart():
    keys = ["", "a", "b", "a ", "ä", "\udcff", "x" * 5000, "1", "01"]
    assert len({tuple(row) for row in digests(keys).tolist()}) == len(keys)
    assert digests(["a"]).tolist() == digests(["b", "a"])[1:].tolist()
    assert digests([]).shape == (0, 2)
