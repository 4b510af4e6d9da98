"""The protocols of the paper on tiny shards: what is chosen, what the id is made of, parts of the clips, and comparing."""

import hashlib
import json
import zlib
from types import SimpleNamespace

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from sampling_runs import run_settings, write_run
from strange_files import good, pictures, write

from data.shards import ShardWriter, shard_name, write_index
from vdm import checkpoint, config
from vdm.errors import ConfigError, DataError, RunError
from vdm.evaluating import compare, subjects
from vdm.evaluating.command import evaluate
from vdm.evaluating.gallery import file_name
from vdm.evaluating.stored import ChosenPlan, data_node
from vdm.evaluation.breakdowns import Events, Words
from vdm.evaluation.identity import differences, identity, settings_of_metric
from vdm.evaluation.metrics.flicker import Flicker
from vdm.launch import CONF
from vdm.video import encode_mp4

FRECHET = "shapes_frechet_handmade"
SMALL = ["data.store.height=16", "data.store.width=16", "data.clip.frames=4", "data.clip.frame_stride=1"]
EVENTS = [["man", "run", None, [0, 2]], ["man", "sit", None, [2, 4]], ["dog", "bark", None, [3, 4]]]


def sample(key, seed, caption, **extras):
    video = encode_mp4(pictures(seed, 4, 16, 16), 8.0, crf=10, pixel_format="yuv444p")
    facts = {
        "key": key,
        "caption": caption,
        "fps": 8.0,
        "frames": 4,
        "height": 16,
        "width": 16,
        "crc32": zlib.crc32(video),
    }
    return {"mp4": video, "json": json.dumps(facts | {"source": {}, "extras": extras}).encode()}


def write_split(folder, name, clips):
    writer = ShardWriter(folder / shard_name(0))
    for key, members in clips.items():
        writer.add(key, members)
    store = {"frames": 4, "height": 16, "width": 16, "min_frames": 4}
    write_index(folder, name=name, split=folder.name, settings={"store": store}, shards=[writer.close()])


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    for split, count in (("train", 4), ("test", 5)):
        clips = {
            f"v_{split}{i}": sample(f"v_{split}{i}", i + 10 * count, f"A person does {'abc'[i % 3]}.")
            for i in range(count)
        }
        write_split(root / "ucf101" / "split1" / split, "ucf101", clips)
    told = {f"v_{i}": sample(f"v_{i}", i, "A man runs. " * (i + 1), plan=EVENTS * i or None) for i in range(4)}
    write_split(root / "activitynet" / "video" / "val", "activitynet", told)
    return root


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A run written before some settings existed, and a younger one."""
    root = tmp_path_factory.mktemp("outputs")
    settings = run_settings("v")
    old = json.loads(json.dumps(settings))
    for name in ("scatter", "new_verbs", "tilted"):
        del old["data"]["source"][name]
    for name in ("buckets", "backend", "prefetch"):
        del old["data"][name]
    write_run(root / "old", old, finished=1.0)
    write_run(root / "young", settings, finished=2.0)
    return root


def ask(outputs, datasets, protocol, *overrides):
    given = [f"paths.output_root={outputs}", f"paths.data_root={datasets}", f"protocol={protocol}", "num_workers=0"]
    given += ["protocol.sampler.num_steps=1", "protocol.shown=0", "report=false"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("evaluate", overrides=[*given, *overrides])
    config.check(cfg, set(cfg))
    return evaluate(cfg)


def result_of(outputs, run, name):
    return json.loads((outputs / run / "evaluation" / name / "metrics.json").read_text())


@pytest.fixture(scope="module")
def zero_shot(outputs, datasets):
    """Both runs by one protocol: 8 samples of the prompts of 5 clips."""
    metrics = [f"metric=[{FRECHET},flicker]", f"metric.{FRECHET}.draws=0"]
    counts = ["protocol.clips=8", "protocol.reference_clips=5"]
    both = [
        ask(outputs, datasets, "ucf101_zero_shot", f"run={run}", *SMALL, *metrics, *counts) for run in ("old", "young")
    ]
    return both, [result_of(outputs, run, "ucf101_zero_shot") for run in ("old", "young")]


def test_a_run_of_other_data_is_measured_zero_shot(zero_shot, outputs, datasets):
    (numbers, _), (result, other) = zero_shot
    assert result["data"]["name"] == "ucf101"
    assert numbers["clips"] == 8
    assert f"{FRECHET}8_4f" in numbers
    assert result["measured"][FRECHET]["real_clips"] == 5
    cases = [
        json.loads(line) for line in (outputs / "old/evaluation/ucf101_zero_shot/cases.jsonl").read_text().splitlines()
    ]
    # Every prompt once, then three of them, evenly over the split, with other noise.
    assert [case["key"] for case in cases] == [*(f"v_test{i}" for i in range(5)), "v_test0~1", "v_test1~1", "v_test3~1"]
    assert cases[5]["caption"] == cases[0]["caption"] == "A person does a."
    assert cases[5]["scores"] != cases[0]["scores"]
    assert result["id"] == other["id"], "runs and machines are no part of a protocol"
    assert result["id"].startswith("ucf101_zero_shot-")
    tuned = [f"metric=[{FRECHET}]", f"metric.{FRECHET}.draws=0", "protocol.clips=3", "protocol.reference_clips=null"]
    ask(outputs, datasets, "ucf101", "run=young", *SMALL, *tuned)
    both = result_of(outputs, "young", "ucf101")
    assert both["reference"]["split"] == "train+test"
    assert both["reference"]["clips"] == both["measured"][FRECHET]["real_clips"] == 9
    assert set(both["decided"]["reference"]["splits"]) == {"train", "test"}


@pytest.mark.parametrize("run", ["old", "young"])
def test_the_data_of_a_run_is_found_again(outputs, shapes_root, run):
    """Also where the source that made it has got settings since; only the split that is measured is read."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("evaluate", overrides=[f"paths.output_root={outputs}", f"paths.data_root={shapes_root}", f"run={run}",
                            "protocol=reconstruction", "protocol.clips=6", "protocol.shown=4", "metric=[psnr,flicker]",
                            "num_workers=0", "report=false"])  # fmt: skip
    config.check(cfg, set(cfg))
    numbers = evaluate(cfg)
    assert numbers["clips"] == 6
    assert numbers["psnr"] > 0
    assert numbers["original/flicker"] > 0
    assert "original/psnr" not in numbers
    folder = outputs / run / "evaluation" / "reconstruction"
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    ranked = sorted(cases, key=lambda case: case["scores"]["psnr"])
    shown = [case for case in cases if case["video"]]
    assert len(shown) == 4
    assert ranked[0] in shown, "the worst"
    assert ranked[-1] in shown, "the best"
    assert all((folder / case[side]).is_file() for case in shown for side in ("video", "original"))


def test_a_class_is_heard_beside_its_prompt(tmp_path):
    """The labels of clips are said to conditions that read them, and another label is another sample."""
    calls = []

    class Model:
        heard = ("text",)
        conditions = SimpleNamespace(
            fingerprint=dict, members={"text": None, "class_label": SimpleNamespace(reads="class")}
        )

        def latents(self, captions, keys, *, extras, guidance, **how):
            calls.append((list(keys), list(extras), guidance.full))
            return torch.zeros(len(keys), 1)

        def latent_shape(self, *size):
            return size

        def frames(self, latent):
            return torch.zeros(2, 4, 4, 3, dtype=torch.uint8)

    checkpoint.save(tmp_path / "step-00000001", {"state_dict": {}}, step=1)
    protocol = SimpleNamespace(guidance=3.0, guidance_rescale=0.0, guidance_interval=(0.0, 1.0), seed=0, sampler=None)
    labels = subjects.labels_of(Model())
    assert labels == {"class_label": "class"}
    make = subjects.Samples(
        model=Model(), last=tmp_path / "step-00000001", protocol=protocol, graphs=None, labels=labels, folder=tmp_path,
        settings=dict.fromkeys(subjects.DECIDES_SAMPLES),
    )  # fmt: skip
    batch = {
        "key": ["a", "b"],
        "caption": ["x", "y"],
        "fps": torch.tensor([8.0, 25.0]),
        "video": torch.zeros(2, 3, 2, 4, 4),
    }
    assert make(batch | {"extras": {"class": [7, None]}}).shape == (2, 3, 2, 4, 4)
    assert calls == [
        (["a"], [{"class": 7}], {"text", "class_label"}),
        (["b"], [{"class": None}], {"text", "class_label"}),
    ]
    make(batch | {"extras": {"class": [7, 1]}})
    assert [keys for keys, _, _ in calls[2:]] == [["b"]], "each at its own frame rate"


def test_videos_against_the_data_of_the_protocol(tmp_path, datasets):
    videos = tmp_path / "made"
    write(
        videos,
        {f"{i}.mp4": good(i) for i in range(4)} | {"captions.txt": "".join(f"{i}: a\n" for i in range(4)).encode()},
    )
    counts = ["protocol.clips=4", "protocol.reference_clips=3", f"metric=[{FRECHET},flicker,psnr]"]
    given = [*SMALL, *counts, f"videos={videos}", f"metric.{FRECHET}.draws=0"]
    numbers = ask(tmp_path, datasets, "ucf101", *given)
    folder = next((tmp_path / "evaluation").iterdir())
    result = json.loads((folder / "metrics.json").read_text())
    assert numbers[f"{FRECHET}4_4f"] > 0
    assert result["reference"] | {"name": "ucf101", "split": "train+test", "clips": 3} == result["reference"]
    assert result["data"]["captions"]
    assert result["data"]["sizes"] == ["24x24"]
    assert list(result["skipped"]) == ["psnr"]
    assert "original/flicker" not in numbers
    ask(tmp_path, datasets, "ucf101", *given, "protocol.shown=2", "report=true")
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    assert sum(case["video"] is not None for case in cases) == 2
    assert {case["original"] for case in cases} == {None}
    assert (folder / "report.html").is_file()
    with pytest.raises(ConfigError, match="resized twice"):
        ask(tmp_path, datasets, "ucf101", *given, "data.clip.height=8")


def test_counts_that_cannot_be(outputs, datasets):
    with pytest.raises(DataError, match="fewer clips than the protocol counts") as error:
        ask(outputs, datasets, "ucf101_zero_shot", *SMALL, "protocol.repeat=false", "metric=[flicker]")
    assert "protocol.clips=5" in error.value.remedy
    with pytest.raises(ConfigError, match="more than once"):
        ask(outputs, datasets, "ucf101_zero_shot", *SMALL, "protocol.clips=6", "protocol.reference_split=null",
            f"metric=[{FRECHET}]")  # fmt: skip
    with pytest.raises(DataError, match=r"python -m data\.prepare data=msrvtt"):
        ask(outputs, datasets, "msrvtt")


def test_parts_of_the_clips(outputs, datasets):
    counts = [
        "protocol.clips=4",
        "protocol.breakdowns.frames.counts=[2,4,8]",
        f"protocol.breakdowns.frames.metrics=[{FRECHET}]",
    ]
    ask(outputs, datasets, "activitynet", "run=young", *SMALL, f"metric=[{FRECHET},flicker]", *counts)
    result = result_of(outputs, "young", "activitynet")
    parts = result["breakdowns"]
    assert {row["bin"]: row["clips"] for row in parts["events"]} == {
        "3": 1,
        "4": 0,
        "5": 0,
        "6": 1,
        ">=7": 1,
        "unknown": 1,
    }
    assert {row["bin"]: row["clips"] for row in parts["words"]} == {
        "<=10": 3, "11-20": 1, "21-30": 0, "31-40": 0, "41-50": 0, ">50": 0
    }  # fmt: skip
    assert [(row["bin"], row["clips"], list(row["metrics"])) for row in parts["frames"]] == [
        ("2", 4, [FRECHET]), ("4", 4, [FRECHET]), ("8", 0, [])
    ]  # fmt: skip
    whole = result["metrics"][f"{FRECHET}4_4f"]
    assert parts["frames"][1]["metrics"][FRECHET] == pytest.approx(whole)
    assert parts["frames"][0]["metrics"][FRECHET] != pytest.approx(whole)
    lines = (outputs / "young/evaluation/activitynet/cases.jsonl").read_text().splitlines()
    scores = [json.loads(line)["scores"]["flicker"] for line in lines]
    assert parts["words"][0]["metrics"]["flicker"] == pytest.approx(sum(scores[:3]) / 3)
    assert FRECHET in parts["words"][0]["metrics"]
    assert FRECHET not in parts["words"][1]["metrics"], "one clip is no distribution"
    assert result["measured"][FRECHET]["clips"] == 4


def test_bins():
    events = Events(reads="plan", counts=[3, 5])
    batch = {
        "key": list("abcdef"),
        "caption": [""] * 6,
        "extras": {"plan": [[1] * n for n in (0, 2, 3, 4, 9)] + [None]},
    }
    assert events.bins_of(batch) == ["<3", "<3", "3", "3", ">=5", "unknown"]
    words = Words(edges=[2, 4])
    assert words.bins == ["<=2", "3-4", ">4"]
    assert words.bins_of({"caption": ["", "a b", "a b c", "a  b c d", "a b c d e"]}) == [
        "<=2",
        "<=2",
        "3-4",
        "3-4",
        ">4",
    ]
    with pytest.raises(ConfigError, match="increasing"):
        Words(edges=[4, 4])


def test_a_part_is_what_its_clips_alone_give():
    video = torch.randint(0, 255, (6, 3, 4, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"key": list("abcdef"), "caption": [""] * 6, "fps": torch.ones(6)}
    metric, alone = Flicker(), Flicker()
    metric.update(video, batch)
    whole = metric.compute()
    alone.update(video[1:3], batch | {"key": ["b", "c"]})
    assert metric.numbers_of_parts([["c", "b"], [], ["f"]])[:2] == [alone.compute(), {}]
    assert metric.scores(["b", "nobody"]) == [
        {"flicker": pytest.approx(metric.numbers_of_parts([["b"]])[0]["flicker"])},
        {},
    ]
    assert metric.facts()["clips"] == 6
    assert metric.numbers() == whole


def test_what_an_id_is_made_of(tmp_path):
    network = tmp_path / "net.pt"
    node = {
        "frames": 16,
        "network": {"file": str(network), "sha256": None, "batch_size": 8, "origin": "x", "licence": "y"},
    }
    absent = settings_of_metric(node)
    assert absent == {"frames": 16, "network": {"file": "net.pt", "sha256": None}}
    network.write_bytes(b"weights")
    known = settings_of_metric(node)
    assert known["network"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    moved = json.loads(json.dumps(node).replace(str(network), str(tmp_path / "elsewhere" / "net.pt")))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "net.pt").write_bytes(b"weights")
    assert settings_of_metric(moved) == known
    assert identity("a", {"x": known}) == identity("a", {"x": settings_of_metric(moved)})
    assert identity("a", {"x": known}) != identity("a", {"x": absent})
    assert differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1]}, "d": {}}) == {
        "a.b": (1, 2), "d": ("(nothing)", {})
    }  # fmt: skip


def test_compare(zero_shot, outputs, datasets, capsys):
    given = ["--outputs", str(outputs), "--protocol", "ucf101_zero_shot"]
    assert compare.main(["old", str(outputs / "young"), *given]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[1:] == ["old", "young"]
    row = next(line.split() for line in said if line.startswith("flicker"))
    assert row[1:] == [f"{numbers['flicker']:.4f}" for numbers in zero_shot[0]]
    metrics = [
        f"metric=[{FRECHET},flicker]",
        f"metric.{FRECHET}.draws=0",
        "protocol.clips=8",
        "protocol.reference_clips=5",
    ]
    other = outputs / "other"
    ask(outputs, datasets, "ucf101_zero_shot", "run=old", *SMALL, *metrics, "protocol.guidance=2", f"output={other}")
    assert compare.main(["old", str(other), *given]) == 2
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert "subject.guidance: 7.5 | 2.0" in lines or "subject.guidance: 7.5 | 2" in lines
    assert not [line for line in lines if "metrics." in line or "clips." in line], "nothing else differs"
    renamed = json.loads((outputs / "old/evaluation/ucf101_zero_shot/metrics.json").read_text())
    (outputs / "renamed.json").write_text(json.dumps(renamed | {"id": renamed["id"].replace("ucf101", "ours")}))
    assert compare.main(["old", str(outputs / "renamed.json"), *given]) == 0, "a name is for readers"
    assert compare.main(["old", "--outputs", str(outputs)]) == 2
    assert compare.main(["old", "nobody", "--outputs", str(outputs)]) == 2
    with pytest.raises(RunError, match="several protocols"):
        compare.read("young", str(outputs), None)
    (other / "metrics.json").write_text('{"metrics": {}}')
    assert compare.main([str(other), str(other)]) == 2
    assert "no id" in capsys.readouterr().err


def test_shards_of_a_run_are_found_again():
    reader = {"_target_": "x", "seed": 0}
    data = {"name": "ucf101", "root": "/there/sets/ucf101/split1", "clip": {"frames": 4}, "source": {"gone": 1}}
    node = data_node(None, {"data": data, "paths": {"data_root": "/there/sets/"}}, reader, "here")
    assert node == reader | {"name": "ucf101", "root": "here/ucf101/split1", "clip": {"frames": 4}}
    assert data_node(None, {"data": data}, reader, "here")["root"] == "here/ucf101"
    apart = data_node(None, {"data": data, "paths": {"data_root": "/there/set"}}, reader, "here")
    assert apart["root"] == "/there/sets/ucf101/split1", "it was never below the data root"
    assert data_node({"name": "other"}, {"data": data}, reader, "here") == {"name": "other"}
    assert data_node(None, None, reader, "here") is None
    with pytest.raises(ConfigError, match="what it was trained on"):
        data_node(None, {"data": {"name": "x"}}, reader, "here")


def test_a_broken_clip_is_replaced_by_one_that_nobody_chose():
    class Stored:
        stored = 6

        def locate(self, position):
            return position

    plan = ChosenPlan(Stored(), [1, 4], frozenset({1, 2, 4}))
    assert [plan.locate(0), plan.locate(1)] == [1, 4]
    assert [plan.locate(plan.substitute(0, attempt)) for attempt in (1, 2, 3, 4)] == [3, 5, 0, 3]
    assert plan.locate(plan.substitute(1, 1)) == 5
    with pytest.raises(DataError, match="all others are measured"):
        ChosenPlan(Stored(), [0], frozenset(range(6))).substitute(0, 1)


def test_file_names_of_keys():
    assert file_name("v_Archery_g01_c01~1") == "v_Archery_g01_c01~1"
    names = {file_name(key) for key in ("a/b", "a_b", "a#b", "ä", "../x", "a" * 300)}
    assert len(names) == 6
    assert not [name for name in names if "/" in name or len(name) > 120]


def test_protocols_say_what_they_are():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = {n: hydra.compose("evaluate", overrides=[f"protocol={n}"]) for n in
                    ("shapes", "ucf101_zero_shot", "ucf101", "msrvtt", "activitynet", "reconstruction")}  # fmt: skip
    for name, cfg in composed.items():
        resolved = OmegaConf.to_container(cfg, resolve=True)
        config.check_resolved(resolved)
        assert cfg.protocol.name == name
    assert set(composed["ucf101_zero_shot"].metric) == {"video_is", "fvd"}
    assert set(composed["msrvtt"].metric) == {"fid", "clipsim"}
    assert set(composed["activitynet"].protocol.breakdowns) == {"events", "words", "frames"}
    assert composed["shapes"].data is None
