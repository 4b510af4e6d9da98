"""Each metric: perfect clips are best and noise makes them worse; what is missing is said and never becomes a number."""

import hashlib
import json
import logging
import math
import os
import pickle
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import instantiate
from moving_clips import Classes, ClipNetwork, FrameNetwork, batch, clips, noisy, script
from omegaconf import OmegaConf

from vdm import config
from vdm.evaluation.clip import OpenClip
from vdm.evaluation.handmade import HandmadeFeatures
from vdm.evaluation.metrics.clip_consistency import ClipConsistency
from vdm.evaluation.metrics.clipsim import CLIPSIM
from vdm.evaluation.metrics.fid import FID
from vdm.evaluation.metrics.flicker import Flicker
from vdm.evaluation.metrics.fvd import FVD
from vdm.evaluation.metrics.inception_score import FrameInceptionScore, VideoInceptionScore
from vdm.evaluation.metrics.motion import Motion
from vdm.evaluation.metrics.psnr import PSNR
from vdm.evaluation.metrics.warping_error import WarpingError
from vdm.evaluation.videomae import VideoMAE
from vdm.launch import CONF

ROOT = Path(__file__).resolve().parents[2]
REAL = clips(24)
SIGMAS = (0, 6, 20, 60)


def measured(metric, made, real=REAL, **given):
    metric.update(made, batch(real, **given))
    return metric.compute()


def fvd(network, **changed):
    given = {"label": "fvd", "kernel_label": "kvd", "frames": 5, "stride": 1, "draws": 0, "seed": 0}
    return FVD(network=network, **(given | changed))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    made = {"clip": ClipNetwork(), "frame": FrameNetwork(), "classes": Classes()}
    return {name: script(network, folder / f"{name}.pt") for name, network in made.items()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP with random weights, as open_clip reads one."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip") / "small"
    folder.mkdir()
    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 24, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    network = open_clip.CLIP(**model)
    torch.save(network.state_dict(), folder / "weights.pt")
    given = {"sha256": None, "origin": "a test", "licence": "none", "batch_size": 7}
    return OpenClip(model=f"local-dir:{folder}", weights=str(folder / "weights.pt"), **given), network


def worse_with_noise(make, name, *, lower_is_better, video=REAL):
    found = [measured(make(), noisy(video, sigma), video)[name] for sigma in SIGMAS]
    ordered = found if lower_is_better else found[::-1]
    assert all(a < b for a, b in zip(ordered, ordered[1:], strict=False)), found
    return found


@pytest.mark.parametrize("name", ["fvd24_5f", "kvd24_5f"])
def test_fvd_and_kvd(networks, name):
    best = worse_with_noise(lambda: fvd(networks["clip"]), name, lower_is_better=True)[0]
    assert best == pytest.approx(0, abs=1e-9) if name.startswith("fvd") else best < 0


def test_fid(networks):
    make = lambda: FID(label="fid", network=networks["frame"], frames=2, draws=0, seed=0)  # noqa: E731
    assert worse_with_noise(make, "fid48", lower_is_better=True)[0] == pytest.approx(0, abs=1e-9)


def test_inception_scores(networks):
    networks = networks["classes"]
    video = lambda: VideoInceptionScore(label="vis", network=networks, frames=4, stride=1, splits=2)  # noqa: E731
    frames = lambda: FrameInceptionScore(label="fis", network=networks, frames=3, splits=2)  # noqa: E731
    assert worse_with_noise(video, "vis24_4f", lower_is_better=False)[0] <= 8
    worse_with_noise(frames, "fis24x3", lower_is_better=False)


def test_per_clip_metrics():
    still = REAL[:, :, :1].expand(-1, -1, 6, -1, -1).contiguous()
    assert worse_with_noise(Flicker, "flicker", lower_is_better=True, video=still)[0] == 0
    still_error = worse_with_noise(WarpingError, "warping_error_lk", lower_is_better=True, video=still[:6])[0]
    assert still_error == pytest.approx(0, abs=1e-9)
    worse_with_noise(WarpingError, "warping_error_lk", lower_is_better=True, video=REAL[:6])
    assert worse_with_noise(PSNR, "psnr", lower_is_better=False)[0] == pytest.approx(10 * math.log10(255**2 * 1e10))
    black_and_white = torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8)
    black_and_white[:, :, ::2] = 255
    assert measured(Flicker(), black_and_white, black_and_white) == {"flicker": 1.0}


def test_motion_measures_speed():
    make = lambda: Motion(share=0.05, threshold=0.3)  # noqa: E731
    found = {speed: measured(make(), c, c) for speed in (0, 1, 2) for c in [clips(6, size=32, speed=speed)]}
    assert found[0] == {"flow_lk": pytest.approx(0, abs=1e-5), "dynamic_degree_lk": 0.0}
    assert found[1]["flow_lk"] == pytest.approx(8 * 1 / 32, rel=0.15)  # 8 frames a second, 32 pixels
    assert found[2]["flow_lk"] == pytest.approx(8 * 2 / 32, rel=0.15)
    assert found[2]["dynamic_degree_lk"] == 1
    # Moved clips differ from frame to frame, and the flow explains nearly all of it.
    video = clips(6, size=32, speed=2)
    difference = (video[:, :, 1:].double() - video[:, :, :-1].double()).square().mean() / 255**2
    assert measured(WarpingError(), video, video)["warping_error_lk"] < 0.1 * difference
    one = REAL[:3, :, :1]
    metric = make()
    assert measured(metric, one, one) == {}
    assert "long enough" in metric.skipped


def test_handmade_features():
    make = lambda: fvd(HandmadeFeatures(), label="hand", kernel_label=None, frames=None)  # noqa: E731
    best = worse_with_noise(make, "hand24_6f", lower_is_better=True)[0]
    assert best == pytest.approx(0, abs=1e-9)
    shuffled = REAL[:, :, [3, 0, 5, 1, 4, 2]]
    assert measured(make(), shuffled)["hand24_6f"] > 1e-3, "the order of frames is seen"
    for frames in (1, 2):
        assert torch.isfinite(HandmadeFeatures()(REAL[:2, :, :frames])).all()
    assert HandmadeFeatures()(REAL).shape == (24, 78)


def test_clip_metrics(clip):
    clip, network = clip
    captions = [f"number {i}" for i in range(4)]
    found = measured(CLIPSIM(clip=clip, frames=2), REAL[:4], REAL[:4], captions=captions)
    # By hand: 24 x 24 is what this CLIP sees, so nothing is resized. Frames 1 and 4 of 6.
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    pictures = (REAL[:4, :, [1, 4]].transpose(1, 2).float() / 255 - mean) / std
    network.eval()
    with torch.no_grad():
        seen = torch.nn.functional.normalize(network.encode_image(pictures.flatten(0, 1)), dim=-1).unflatten(0, (4, 2))
        said = torch.nn.functional.normalize(network.encode_text(clip._clip().tokenizer(captions)), dim=-1)
    expected = (seen * said[:, None]).sum(-1).mean().item()
    assert found == {"clipsim_small_2f": pytest.approx(expected, abs=1e-5)}

    still = REAL[:6, :, :1].expand(-1, -1, 6, -1, -1).contiguous()
    make = lambda: ClipConsistency(clip=clip)  # noqa: E731
    found = [measured(make(), noisy(still, s), still)["clip_consistency_small"] for s in (0, 10, 60)]
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[0] > found[1] > found[2]
    wide = clips(2, size=40)[:, :, :, :24]  # cut in the middle, not squashed
    same = measured(make(), wide, wide)
    assert same == pytest.approx(measured(make(), *[wide[..., 8:32]] * 2), abs=1e-6)


def test_clipsim_falls_with_noise(clip, monkeypatch):
    clip, _ = clip
    clean = clip.pictures(REAL[:6]).mean(1)
    monkeypatch.setattr(clip, "captions", lambda texts: torch.nn.functional.normalize(clean, dim=-1))
    make = lambda: CLIPSIM(clip=clip, frames=None)  # noqa: E731
    worse_with_noise(make, "clipsim_small_6f", lower_is_better=False, video=REAL[:6])


def test_metrics_can_be_copied_and_pickled(networks):
    metric = fvd(networks["clip"])
    metric.update(noisy(REAL[:12], 9), batch(REAL[:12]))
    for other in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        other.update(noisy(REAL[12:], 9), batch(REAL[12:], keys=[f"late-{i}" for i in range(12)]))
        assert "fvd24_5f" in other.compute()
    assert "fvd12_5f" in metric.compute()


def test_what_is_missing_is_said(networks, tmp_path, caplog):
    absent = script(ClipNetwork(), tmp_path / "i3d.pt", origin="I3D from somewhere", licence="MIT")
    absent.file.unlink()
    metric = fvd(absent)
    assert measured(metric, REAL) == {}
    for part in (str(absent.file), "I3D from somewhere", "MIT", "nothing is downloaded"):
        assert part in metric.skipped
    other = script(ClipNetwork(), tmp_path / "other.pt", sha256="0" * 64)
    metric = fvd(other)
    assert measured(metric, REAL) == {}
    assert hashlib.sha256(other.file.read_bytes()).hexdigest() in metric.skipped
    assert measured(fvd(script(ClipNetwork(), tmp_path / "ok.pt")), REAL)
    right = hashlib.sha256((tmp_path / "ok.pt").read_bytes()).hexdigest()
    metric = fvd(script(ClipNetwork(), tmp_path / "same.pt", sha256=right))
    metric.network.file = tmp_path / "ok.pt"
    assert measured(metric, REAL)
    assert metric.facts()["sha256"] == right
    (tmp_path / "text.pt").write_text("not a network")
    garbage = script(ClipNetwork(), tmp_path / "g.pt")
    garbage.file = tmp_path / "text.pt"
    cases = {
        "cannot be read": fvd(garbage),
        "clips have 6 frames, and 16 are needed": fvd(networks["clip"], frames=16),
        "does not take inputs": fvd(networks["clip"], frames=3),
        "do not add up to 1": VideoInceptionScore(label="v", network=networks["clip"], frames=6, stride=1, splits=2),
        "cannot be split into 30": VideoInceptionScore(
            label="v", network=networks["classes"], frames=6, stride=1, splits=30
        ),
        "of which 9 cannot be chosen": FID(label="fid", network=networks["frame"], frames=9, draws=0, seed=0),
    }
    for reason, metric in cases.items():
        assert measured(metric, REAL) == {}, reason
        assert reason in metric.skipped
    metric = fvd(networks["clip"])
    metric.update(REAL[..., :20], batch(REAL))
    assert metric.compute() == {}
    assert "made clips are 5 frames of 24x20, real ones 5 frames of 24x24" in metric.skipped
    caplog.set_level(logging.WARNING)
    measured(fvd(networks["clip"]), REAL)
    assert "fvd24_5f: 24 clips" in caplog.text
    assert "kvd24" not in caplog.text, "it has no bias"
    assert "share a key" not in caplog.text
    mixed = Flicker()
    mixed.update(REAL[:2], batch(REAL[:2], keys=["a", "b"]))
    mixed.update(noisy(REAL[:2], 30), batch(REAL[:2], keys=["b", "c"]))
    mixed.compute()
    assert "1 clips share a key" in caplog.text


def test_clip_without_weights_or_with_others(clip, tmp_path):
    clip, _ = clip
    given = {"sha256": None, "origin": "a checkpoint", "licence": "MIT", "batch_size": 4}
    for weights, reason in (
        (tmp_path / "no.pt", "is not there"),
        (clip.weights.with_name("open_clip_config.json"), "cannot be read"),
    ):
        metric = CLIPSIM(clip=OpenClip(model=clip.model, weights=str(weights), **given), frames=1)
        assert measured(metric, REAL[:2], REAL[:2]) == {}
        assert reason in metric.skipped


def test_videomae_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=6, tubelet_size=2, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.VideoMAEForVideoClassification(settings).eval()
    network.save_pretrained(tmp_path)
    given = {"sha256": None, "origin": "a hub", "licence": "none", "batch_size": 5}
    make = lambda: fvd(VideoMAE(folder=str(tmp_path), **given), label="mae", kernel_label=None, frames=6)  # noqa: E731
    assert worse_with_noise(make, "mae24_6f", lower_is_better=True)[0] == pytest.approx(0, abs=1e-9)
    small = clips(3, size=16)  # nothing is resized
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (small.transpose(1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        expected = network.fc_norm(network.videomae(pixels).last_hidden_state.mean(1))
    torch.testing.assert_close(VideoMAE(folder=str(tmp_path), **given)(small), expected, rtol=1e-4, atol=1e-5)
    metric = fvd(VideoMAE(folder=str(tmp_path), **given), frames=5)
    assert measured(metric, REAL) == {}
    assert "takes 6" in metric.skipped


def test_a_reference_of_its_own(networks):
    reference = clips(50, seed=3)
    metric = fvd(networks["clip"], draws=3)
    metric.begin_reference()
    metric.refer(reference[:30], [f"r{i}" for i in range(30)])
    metric.refer(reference[20:], [f"r{i}" for i in range(20, 50)])
    found = measured(metric, noisy(REAL, 5))
    assert metric.counts == {"made": 24, "real": 50}
    assert found["fvd24_5f/floor_clips"] == 24
    assert found["fvd24_5f/low"] < found["fvd24_5f"] < found["fvd24_5f/high"]
    apart = fvd(networks["clip"])
    apart.update(noisy(REAL, 5), batch(REAL))
    assert apart.compute()["fvd24_5f"] != pytest.approx(found["fvd24_5f"])
    strided = fvd(networks["clip"], frames=None, stride=1)
    assert set(measured(strided, REAL)) >= {"fvd24_6f"}
    assert "fvd24_8f_subsample2f" in measured(fvd(networks["clip"], frames=4, stride=2), *[clips(24, frames=8)] * 2)


CHOICES = sorted(path.stem for path in (CONF / "metric").glob("[!_]*.yaml"))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_makes_a_metric_that_a_missing_file_does_not_break(choice, tmp_path):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(
            "evaluate", overrides=["protocol=shapes", f"metric=[{choice}]", f"paths.weights={tmp_path}"]
        )
    config.check(cfg, set(cfg))
    assert list(cfg.metric) == [choice]
    metric = instantiate(cfg.metric[choice], _convert_="all")
    if choice == "shapes_oracle":
        return
    found = measured(metric, REAL[:3], REAL[:3])
    if "paths.weights" in OmegaConf.to_yaml(cfg.metric[choice]):
        assert not found
        assert f"{tmp_path}" in metric.skipped or "clips have 6 frames" in metric.skipped
    else:
        assert found
        assert metric.skipped is None
    json.dumps(metric.facts())


def test_published_self_check_of_i3d():
    """Eight black against eight white clips of 30 frames of 64 x 64 give 151.26."""
    folder = Path(os.environ.get("WEIGHTS", ROOT / "weights"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("evaluate", overrides=["metric=[fvd]", f"paths.weights={folder}"])
    network = instantiate(cfg.metric.fvd.network, _convert_="all")
    if not network.file.is_file():
        pytest.skip(f"{network.file} is not there: {network.origin}")
    black = torch.zeros(8, 3, 30, 64, 64, dtype=torch.uint8)
    metric = fvd(network, frames=30)
    assert measured(metric, black + 255, black)["fvd8_30f"] == pytest.approx(151.26, rel=0.005), metric.skipped
