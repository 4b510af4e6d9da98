"""The video term of the reward: finite, in [0, 1], full for what is right and less for every error; from plans to numbers."""

import functools
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import hydra
import pytest
import torch
from hydra.errors import InstantiationException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sampling_runs import run_settings, write_run

from data.shapes.judge import judge
from data.shapes.motion import frame_times, trajectory
from data.shapes.render import paint
from data.shapes.script import Background, Placement, Script, Thing
from data.shapes.script import Event as ShapeEvent
from dysen.action_plan import Event, Plan
from dysen.icl.clip import Clip
from dysen.icl.rewards import Outcome
from dysen.icl.video_terms import CaptionLikeness, JudgedVideo, VideoLikeness
from dysen.icl.videos import PlanVideos, PooledPixels
from dysen.scene_graph import SceneGraph, SceneObject, event_to_dsg
from tests.dysen.random_language_model import save
from vdm import checkpoint, config, training
from vdm.errors import ConfigError, RunError
from vdm.launch import CONF
from vdm.runs import Run
from vdm.samplers.ddim import ddim
from vdm.video import to_float

ROOT = Path(__file__).resolve().parents[2]


def plan(*verbs):
    return Plan(tuple(Event("circle", verb, None, i, i + 1) for i, verb in enumerate(verbs)))


GOLD = plan("grow", "spin")


def outcome(caption="A circle grows.", made=GOLD, **more):
    return Outcome(caption, GOLD, made, **more)


class Made:
    """Stands for PlanVideos: gives the videos that it is told to."""

    def __init__(self, videos, right=None):
        self.videos, self.right, self.asked = videos, right, []

    def __call__(self, outcomes):
        self.asked.append([one.plan for one in outcomes])
        return self.videos[: len(outcomes)]

    def of_truth(self, outcomes):
        return [self.right] * len(outcomes)


def likeness(videos, **changes):
    given = {
        "weight": 1.0,
        "truth": "clip",
        "features": PooledPixels(frames=2, size=4),
        "measure": "distance",
        "scale": 0.5,
    }
    return VideoLikeness(sample=Made(videos, right=torch.zeros(3, 2, 4, 4)), **given | changes)


# ---- scores -----------------------------------------------------------------------------------------------------------


def noise(seed):
    return torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@given(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["clip", "plan"]))
@settings(max_examples=60, deadline=None)
def test_likeness_falls_with_the_error(seed, a, b, truth):
    true, error = torch.zeros(3, 2, 4, 4), noise(seed)
    some = [outcome(video=true)] * 3
    small, large = sorted((a, b))
    same, near, far = likeness([true, true + small * error, true + large * error], truth=truth).scores(some)
    assert same == 1
    assert 1 >= near >= far > 0
    if large - small > 1e-3:
        assert near > far


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.floats(0.1, 3))
@settings(max_examples=40, deadline=None)
def test_frechet_is_one_score_for_a_batch(seeds, shift):
    true = [noise(seed) for seed in seeds]
    some = [outcome(video=video) for video in true]
    same = likeness(true, measure="frechet").scores(some)
    far = likeness([video + shift for video in true], measure="frechet").scores(some)
    farther = likeness([video + 2 * shift for video in true], measure="frechet").scores(some)
    assert same == pytest.approx([1] * len(true), abs=1e-6)
    assert len(set(far)) == 1
    assert 1 > far[0] > farther[0] > 0


def test_likeness_by_hand_and_what_has_no_plan():
    true = torch.zeros(3, 2, 4, 4)
    some = [outcome(video=true), outcome(made=None, video=true), outcome(video=true)]
    term = likeness([true, true + 0.25])
    found = term.scores(some)
    assert found == [1, 0, pytest.approx(1 / (1 + 0.25 / 0.5))]  # the root of the mean square is 0.25
    assert term.sample.asked == [[GOLD, GOLD]]
    assert likeness([true * math.nan]).scores(some[:1]) == [0]
    assert likeness([]).scores([outcome(made=None)]) == [0]
    with pytest.raises(ConfigError, match="without their clips"):
        likeness([true]).scores([outcome()])
    with pytest.raises(ConfigError, match="another size"):
        likeness([true]).scores([outcome(video=torch.zeros(3, 2, 8, 8))])


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2))
@settings(max_examples=60, deadline=None)
def test_caption_likeness_rises_with_the_cosine(cosines):
    clip = types.SimpleNamespace(cosines=lambda videos, captions: torch.tensor([*cosines, 1.0 + 1e-6])[: len(captions)])
    term = CaptionLikeness(weight=1.0, sample=Made([torch.zeros(3, 2, 4, 4)] * 3), clip=clip)
    a, b, best = term.scores([outcome()] * 3)
    assert 0 <= a <= 1
    assert best == 1
    if abs(cosines[0] - cosines[1]) > 1e-6:  # below, both are one number in float32
        assert (a > b) == (cosines[0] > cosines[1])


def film(actions):
    """A clip in which a circle does this in turn, and its script."""
    events = tuple(ShapeEvent(0, action, None, 2 * i, 2 * i + 1) for i, action in enumerate(actions))
    thing, ground = Thing("red circle", "red", "circle", "medium"), Background("plain", "grey", 0, 0)
    script = Script((thing,), (Placement(0.5, 0.5, 0, 0),), events, ground, 7, 0)
    frames = paint(script, trajectory(script, frame_times(8, 7)), 32, 32).frames
    return to_float(torch.from_numpy(frames).permute(3, 0, 1, 2)), script


def test_the_oracle_prefers_what_was_asked_for():
    words = ["stage=planner", "stage/terms=video_oracle", "~texts"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        node = hydra.compose("train", overrides=words).stage.terms.video
    clips = [film(actions) for actions in (["grow", "move_left"], ["grow", "move_right"], ["move_left", "grow"], [])]
    sample = Made([video for video, _ in clips])
    term = JudgedVideo(weight=1.0, sample=sample, judge=judge, reads=node.reads, names=list(node.names))
    right, other, turned, still = term.scores([outcome(extras={"script": clips[0][1].to_json()})] * 4)
    assert right == 1
    assert 1 > other > still >= 0
    assert 1 > turned >= 0
    with pytest.raises(ConfigError, match="judge needs"):
        term.scores([outcome()])


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=3, max_size=3), st.integers(0, 2), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_judge_that_sees_less_gives_less(values, which, lower):
    def score(numbers):
        seen = dict(zip("abc", numbers, strict=True))
        term = JudgedVideo(
            weight=1.0, sample=Made([noise(0)]), judge=lambda clip, truth: seen, reads="x", names=list("abc")
        )
        return term.scores([outcome(extras={"x": None})])[0]

    assert 0 <= score(values) <= 1
    if values[which] is not None:
        worse = [min(lower, v) if i == which else v for i, v in enumerate(values)]
        assert score(worse) <= score(values)
    assert score([1.0, None, 1.0]) == score([None] * 3) == 1
    assert score([0.5, None, 1.0]) == 0.75


@pytest.fixture(scope="module")
def clip_files(tmp_path_factory):
    """A CLIP with random weights, as open_clip reads one."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("clip")
    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    name = f"local-dir:{folder}"
    network = open_clip.CLIP(**model)
    torch.save(network.state_dict(), folder / "weights.pt")
    return name, str(folder / "weights.pt"), network


def test_clip_from_files(clip_files):
    name, weights, network = clip_files
    clip = Clip(model=name, weights=weights, frames=2, device="cpu")
    videos, captions = [noise(0), noise(1), noise(0)], ["a red circle", "a dog", "a red circle"]
    found = clip.cosines(videos, captions)
    assert found[0] == pytest.approx(found[2].item(), abs=1e-6)
    assert found.abs().max() <= 1
    assert clip(torch.stack(videos)).shape == (3, 2 * 16)
    assert clip.pictures(videos).norm(dim=-1).sub(1).abs().max() < 1e-5
    # By hand: two pictures, made larger, in the colours of CLIP.
    pictures = torch.nn.functional.interpolate(
        noise(1).transpose(0, 1).add(1).div(2), size=(16, 16), mode="bicubic", antialias=True
    ).clamp(0, 1)
    colours = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in colours)
    with torch.no_grad():
        seen = torch.nn.functional.normalize(network.encode_image((pictures - mean) / std), dim=-1).mean(0)
        said = network.encode_text(clip._tokenizer(["a dog"]))[0]
    assert found[1].item() == pytest.approx(torch.cosine_similarity(seen, said, dim=0).item(), abs=1e-5)
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        Clip(model=name, weights="absent.pt", frames=2, device="cpu")
    with pytest.raises(ConfigError, match="cannot be read"):
        Clip(model="no-such-model", weights=weights, frames=2, device="cpu").cosines(videos, captions)


# ---- videos -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Untrained networks: one that hears scene graphs, and a newer one that does not."""
    root = tmp_path_factory.mktemp("outputs")
    settings = run_settings("v")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=["stage=vdm", "data=shapes", "condition=[text,scene_graph]",
                            "condition.scene_graph.encoder.width=16", "scene_encoder.width=16"])  # fmt: skip
    graphs = OmegaConf.to_container(cfg.condition, resolve=True)["scene_graph"]
    hearing = settings | {"condition": settings["condition"] | {"scene_graph": graphs}}
    write_run(root / "hearing", hearing, finished=2.0)
    write_run(root / "deaf", settings, finished=3.0)
    return root


def videos(root, **changes):
    sampler = functools.partial(ddim, num_steps=2, spacing="trailing", offset=0, end="clean", eta=0.0)
    given = {"run": "auto", "output_root": str(root), "sampler": sampler, "guidance": 2.0, "seed": 0, "batch_size": 2,
             "folder": None, "device": "cpu"}  # fmt: skip
    return PlanVideos(**given | changes)


def test_a_video_depends_on_caption_and_plan_and_on_nothing_beside_it(root, tmp_path):
    sample = videos(root)
    assert sample.run.name == "hearing"
    some = [outcome(), outcome(made=plan("shrink")), outcome("A dog runs."), outcome()]
    made = sample(some)
    assert [tuple(video.shape) for video in made] == [(3, 4, 16, 16)] * 4
    assert all(video.isfinite().all() and video.abs().max() <= 1 for video in made)
    assert torch.equal(made[0], made[3])
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(sample(some[1:2])[0], made[1])
    assert not torch.equal(videos(root, seed=1)(some[:1])[0], made[0])
    assert torch.equal(sample.of_truth(some[1:2])[0], made[0])
    # Imagined graphs are other graphs.
    rich = event_to_dsg(GOLD).graphs
    rich = type(event_to_dsg(GOLD))(
        (SceneGraph.build([*rich[0].objects, SceneObject("table")], rich[0].actions), *rich[1:])
    )
    assert not torch.equal(sample([outcome(dsg=rich)])[0], made[0])
    with pytest.raises(RunError, match="hears no scene graphs"):
        videos(root, run="deaf")
    with pytest.raises(RunError, match="there is none"):
        videos(tmp_path)


def test_videos_are_kept(root, tmp_path, monkeypatch):
    state = torch.random.get_rng_state()
    sample = videos(root, folder=str(tmp_path / "kept"))
    made = sample([outcome(), outcome(), outcome(made=plan("shrink"))])
    assert torch.equal(torch.random.get_rng_state(), state)
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == 2
    again = videos(root, folder=str(tmp_path / "kept"))
    monkeypatch.setattr(PlanVideos, "_made", lambda *_: pytest.fail("it was there"))
    assert torch.equal(again([outcome()])[0], made[0])
    monkeypatch.undo()
    for damage in (b"", kept[0].read_bytes()[:200], b"\x93NUMPY nonsense"):
        for path in kept:
            path.write_bytes(damage)
        assert torch.equal(videos(root, folder=str(tmp_path / "kept"))([outcome()])[0], made[0])


# ---- from captions to numbers -------------------------------------------------------------------------------------------


def train(root, *words):
    settings = [
        "stage=planner", "data=shapes", "trainer=cpu", "trainer.log_every_n_steps=1", f"paths.output_root={root}",
        "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=9", "callbacks.validation.every=1",
        "callbacks.samples.every=0", "callbacks.progress=null", "trainer.max_steps=2", *words,
    ]  # fmt: skip
    settings += [] if "planner.tune=grpo" in words else ["llm=rules"]
    if "~texts" not in words:
        settings += [
            "texts.source.num_train=4",
            "texts.source.num_val=2",
            "texts.source.num_pool=12",
            "texts.batch_size=2",
        ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=settings)
    config.check(cfg, set(cfg))
    training.train(cfg)


@pytest.mark.parametrize("terms", ["video", "video_frechet", "video_clip"])
def test_one_word_adds_the_term(root, clip_files, terms):
    words = [f"stage/terms={terms}", "stage.terms.video.sample.sampler.num_steps=2", f"run.id={terms}"]
    if terms == "video_clip":
        words += [f"stage.terms.video.clip.model='{clip_files[0]}'", f"stage.terms.video.clip.weights={clip_files[1]}"]
    train(root, *words)
    run = Run(root / terms)
    metrics = run.info["metrics"]
    assert run.state == "complete"
    assert 0 < metrics["val/video"] <= 1
    expected = (metrics["val/reliability"] + metrics["val/recall"] + metrics["val/video"]) / 3
    assert metrics["val/reward"] == pytest.approx(expected, abs=1e-6)
    assert list((root / "reward_videos").glob("*.npy"))


def test_a_run_that_continues_keeps_its_video_model(root):
    words = ["stage/terms=video", "stage.terms.video.sample.sampler.num_steps=2", "run.id=kept"]
    train(root, *words)
    settings = OmegaConf.to_container(OmegaConf.load(root / "hearing" / "config.yaml"))
    write_run(root / "newer", settings, finished=9.0)
    term = VideoLikeness(weight=1.0, sample=videos(root), truth="plan", features=PooledPixels(frames=2, size=4),
                         measure="distance", scale=0.1)  # fmt: skip
    assert term.sample.run.name == "newer"
    state = checkpoint.load(Run(root / "kept").last_checkpoint())["terms"]
    assert state == {"reliability": {}, "recall": {}, "video": {"run": "hearing"}}
    term.load_state(state["video"])
    assert term.sample.run.name == "hearing"
    term.load_state({})
    assert term.sample.run.name == "hearing"


@pytest.mark.slow
def test_a_language_model_is_tuned_with_it(root, tmp_path):
    pytest.importorskip("peft")
    train(
        root, "planner.tune=grpo", "llm=transformers", f"llm.model={save(tmp_path)}", "llm.max_tokens=48",
        "stage/terms=video", "stage.terms.video.sample.sampler.num_steps=2", "stage.group_size=3", "run.id=tuned",
    )  # fmt: skip
    metrics = Run(root / "tuned").info["metrics"]
    assert 0 < metrics["train/video"] <= 1
    assert 0 < metrics["val/frozen_video"] <= 1
    with pytest.raises(InstantiationException, match="beside another"):
        train(root, "planner.tune=grpo", "llm=transformers", f"llm.model={tmp_path}", "stage/terms=video_frechet",
              "run.id=no")  # fmt: skip


@pytest.mark.slow
def test_the_oracle_rewards_plans_of_clips(root, shapes_root, tmp_path):
    command = [sys.executable, "-m", "dysen.plan", "data=shapes", f"paths.data_root={shapes_root}", "write_pool=20",
               f"pool={tmp_path / 'pool.jsonl'}"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=200)
    train(
        root, "stage/terms=video_oracle", "stage.terms.video.sample.sampler.num_steps=2", "run.id=oracle", "~texts",
        f"paths.data_root={shapes_root}", f"stage.pool.path={tmp_path / 'pool.jsonl'}", "data.extras=[plan,script]",
        "data.batch_size=2", "data.val_clips=2", "data.num_workers=0",
    )  # fmt: skip
    metrics = Run(root / "oracle").info["metrics"]
    assert 0 <= metrics["val/video"] <= 1
