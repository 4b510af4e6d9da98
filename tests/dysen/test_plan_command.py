"""`python -m dysen.plan`: prompts, whole datasets, what happens when it is killed, and how it says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scripted_model import Scripted, planner

from data.captions import CaptionCorpus
from dysen.action_plan import Plan
from dysen.condition import scenes_of
from dysen.demonstrations import load_pool
from dysen.drawing import read
from dysen.llm.base import Answer
from dysen.llm.rules import Rules
from dysen.plan import main
from dysen.planning_corpus import CorpusPlanner, PlannedGraphs
from dysen.scene_graph import event_to_dsg
from vdm import config
from vdm.errors import ConfigError, DataError, PlanError, RunError
from vdm.launch import CONF, plain_errors

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*overrides):
    return [sys.executable, "-m", "dysen.plan", *overrides]


def run(folder, *overrides):
    done = subprocess.run(
        command(*overrides), cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def compose(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("plan", overrides=list(overrides))


# ---- one prompt


def test_a_prompt_becomes_json_and_a_drawing(tmp_path):
    prompt = 'A dog runs to a red ball, then it "barks", and ${leaves}.'
    done = run(tmp_path, f"prompt={prompt}", "out=deep/plan.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "deep" / "plan.json").read_text())
    assert content["caption"] == prompt
    assert content["plan"][:2] == [["dog", "run to", "ball", [0, 1]], ["dog", "bark", None, [1, 2]]]
    plan, dsg, caption = read(tmp_path / "deep" / "plan.json")
    assert (caption, plan.to_json()) == (prompt, content["plan"])
    assert dsg.planned() == event_to_dsg(plan)
    assert dsg[0].objects[1].attributes == ("red",)
    assert scenes_of(content) == dsg, "what a condition reads"
    assert (tmp_path / "deep" / "plan.svg").read_text().startswith("<svg")
    assert os.listdir(tmp_path) == ["deep"], "nothing else is left behind"


def test_a_prompt_is_printed(capsys):
    main(compose("prompt='A man sings, then he leaves.'", "planner=plain"))
    assert capsys.readouterr().out == (
        "(man, sing, -, (0v, 1v)), (man, leave, -, (1v, 2v))\n\n"
        "0v: *(man, sing, -)\n1v: *(man, leave, -)\n2v: *(man, leave, -)\n"
    )
    main(compose("prompt='!'", "planner.fallback=caption"))
    said = capsys.readouterr()
    assert said.out == "no plan: the caption stands for itself\n"
    assert "the rules find nothing" in said.err


@pytest.mark.parametrize(
    "overrides", [["paths.data_root=nowhere"], ["prompt=a dog barks", "out=/proc/plan.json"]], ids=str
)
def test_one_clear_message_and_no_traceback(tmp_path, overrides):
    done = run(tmp_path, *overrides)
    assert done.returncode == 2
    assert done.stderr.startswith("DataError: ")
    assert "key: " in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir()), "no half file"


@pytest.mark.parametrize(
    ("overrides", "error", "said"),
    [
        (["prompt=a dog barks", "out=plan.txt"], ConfigError, "out=plan.json"),
        (["prompt=a dog barks", "llm=replay", "llm.path=none.jsonl"], DataError, "record="),
        (["prompt='1'", "planner.fallback=error"], PlanError, "the rules find nothing"),
        (["prompt=a dog barks", "planner.max_tick=99"], ConfigError, "planner.max_tick"),
        (["prompt=a dog barks", "selector=random", "pool=none.jsonl"], DataError, "write_pool="),
        (["split=nope", "paths.data_root=nowhere"], DataError, "data.prepare"),
        (["batch=0"], ConfigError, "batch"),
        (["limit=true"], ConfigError, "limit"),
        (["max_fallbacks=2"], ConfigError, "max_fallbacks"),
        (["captions=some"], ConfigError, "captions"),
        (["split=[train,val]"], ConfigError, "split"),
        (["out=plan.json"], ConfigError, "output="),
    ],
    ids=str,
)
def test_wrong_settings(tmp_path, monkeypatch, overrides, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said), plain_errors():
        main(compose(*overrides))
    assert not list(tmp_path.iterdir()), "no half file"


# ---- a dataset


def test_a_dataset(shapes_root, tmp_path, monkeypatch, capsys):
    """Plans of all captions, their reader, a report, and the same command again that has nothing to do."""
    root = f"paths.data_root={shapes_root}"
    done = run(tmp_path, root, "split=val", "planner=fast", "llm=rules_shapes", "record=answers.jsonl")
    assert done.returncode == 0, done.stderr
    assert "48 captions in" in done.stdout
    (folder,) = (shapes_root / "shapes" / "val" / "plans").iterdir()
    graphs = PlannedGraphs(str(folder))
    corpus = CaptionCorpus(name="shapes", root=f"{shapes_root}/shapes", split="val", cache=None)
    clips = list(corpus.read(0))
    assert len(graphs) == len(clips) == 12
    assert set(graphs) == {key for key, _, _ in clips}
    agree = 0
    for key, captions, extras in clips:
        assert key in graphs
        assert graphs[key]["caption"] == captions[0]
        for caption in captions:
            row = graphs.get(key, caption)
            assert row["source"] == "model"
            assert scenes_of(row).planned() == event_to_dsg(Plan.from_json(row["plan"]))
            agree += sorted(e[:3] for e in row["plan"]) == sorted(e[:3] for e in extras["plan"])
        assert graphs.get(key, "another text") is None
    assert agree == 48
    report = json.loads((folder / "report.json").read_text())
    assert (report["captions"], report["calls"], report["fallbacks"]) == (48, 96, 0.0)
    assert report["sources"] == {"model": 48}
    assert report["events_per_caption"] == sum(int(n) * count for n, count in report["events"].items()) / 48
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}
    main(compose(root, "split=val", "planner=fast", "llm=rules_shapes"))
    assert "were there already" in capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}

    replayed = run(
        tmp_path, root, "split=val", "planner=fast", "llm=replay", "llm.path=answers.jsonl", "output=replayed"
    )
    assert replayed.returncode == 0, replayed.stderr
    assert (tmp_path / "replayed" / "shard-000000.jsonl").read_bytes() == before["shard-000000.jsonl"]
    with pytest.raises(RunError, match="another planner"), plain_errors():
        main(compose(root, "split=val", "planner=plain", f"output={folder}"))


def test_a_pool_of_demonstrations(shapes_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(compose(f"paths.data_root={shapes_root}", "split=train", "write_pool=20", "pool=pool.jsonl"))
    assert capsys.readouterr().out == "pool.jsonl: 20 demonstrations\n"
    pool = load_pool(str(tmp_path / "pool.jsonl"))
    assert len(pool) == 20
    assert all(one.dsg is not None and one.additions for one in pool)
    main(compose("prompt=A dog runs.", "selector=random", "pool=pool.jsonl", "out=plan.json"))
    shown = json.loads((tmp_path / "plan.json").read_text())["shown"]
    assert set(shown) < {one.id for one in pool}
    assert len(shown) == len(set(shown)) > 1


# ---- killed

SLOW = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from data.captions import CaptionCorpus
    from dysen.llm.cache import Cached
    from dysen.llm.rules import Rules
    from dysen.planning_corpus import CorpusPlanner
    from scripted_model import Scripted, planner

    def respond(question):
        with open({log!r}, "a") as file:
            file.write(str(hash_of(question)) + "\\n")
        time.sleep({pause})
        return Rules(parser=None, details=None).answer([question])[0]

    def hash_of(question):
        import hashlib
        return hashlib.sha256(question.prompt.encode()).hexdigest()

    corpus = CaptionCorpus(name="shapes", root={root!r}, split="train", cache=None)
    llm = Cached(llm=Scripted(respond), folder={cache!r})
    task = CorpusPlanner(
        planner=planner(llm, imagination=None), folder=Path({folder!r}), captions="first", batch=4, max_fallbacks=1.0
    )
    task.run(corpus, limit=None, rank=0, world_size=1, on_progress=lambda done, tally: None)
""")


def test_killed_and_continued_equals_undisturbed(shapes_root, tmp_path):
    """Finished shards stay as they are, and of an unfinished one nothing is asked again but the batch that was under way."""

    def script(name, pause):
        values = {"tests": str(ROOT / "tests" / "dysen"), "log": str(tmp_path / f"{name}.log"), "pause": pause,
                  "root": f"{shapes_root}/shapes", "cache": str(tmp_path / f"{name}-cache"),
                  "folder": str(tmp_path / name)}  # fmt: skip
        return [sys.executable, "-c", SLOW.format(**values)]

    log = tmp_path / "killed.log"
    process = subprocess.Popen(script("killed", 0.03), cwd=ROOT, env=ENVIRONMENT)
    while not log.exists() or log.read_text().count("\n") < 46:  # in the second shard of 32 clips
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    files = {path.name for path in (tmp_path / "killed").iterdir()}
    assert {"shard-000000.jsonl", "shard-000000.tally.json", "planner.json"} <= files
    assert "shard-000001.jsonl" not in files
    first = (tmp_path / "killed" / "shard-000000.jsonl").stat().st_mtime_ns
    subprocess.run(script("killed", 0.0), cwd=ROOT, check=True, timeout=60, env=ENVIRONMENT)
    subprocess.run(script("whole", 0.0), cwd=ROOT, check=True, timeout=60, env=ENVIRONMENT)
    assert (tmp_path / "killed" / "shard-000000.jsonl").stat().st_mtime_ns == first
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.jsonl")}
    assert len(whole) == 3
    assert whole == {path.name: path.read_bytes() for path in (tmp_path / "killed").glob("*.jsonl")}
    asked = log.read_text().split()
    assert len(asked) - len(set(asked)) <= 4
    assert len(set(asked)) == len((tmp_path / "whole.log").read_text().split())


def test_the_command_killed_and_continued(shapes_root, tmp_path, monkeypatch):
    overrides = [f"paths.data_root={shapes_root}", "split=train", "batch=4", "captions=first", "planner=fast"]
    process = subprocess.Popen(
        command(*overrides, "output=killed"), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "killed" / "shard-000000.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not (tmp_path / "killed" / "shard-000002.jsonl").exists()
    assert not (tmp_path / "killed" / "report.json").exists()
    assert run(tmp_path, *overrides, "output=killed").returncode == 0
    monkeypatch.chdir(tmp_path)
    main(compose(*overrides, "output=whole"))
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    for name in names:
        one, other = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "killed"))
        if name == "report.json":
            one, other = ({**json.loads(content), "this_run": None} for content in (one, other))
        assert one == other, name


# ---- in process


class Texts:
    """A corpus without shards."""

    folder, fingerprint = "nowhere", "texts"

    def __init__(self, *sizes):
        self.shards = [(f"shard-{i}", size) for i, size in enumerate(sizes)]

    def read(self, shard):
        for i in range(self.shards[shard][1]):
            yield f"clip-{shard}-{i}", [f"A dog barks {i} times, then it eats.", "A cat sleeps."], {}


def corpus_planner(folder, llm=None, **changes):
    settings = {"captions": "all", "batch": 8, "max_fallbacks": 0.5}
    chosen = planner(llm or Rules(parser=None, details=None), imagination=None)
    return CorpusPlanner(planner=chosen, folder=folder, **(settings | changes))


def plan_all(task, corpus, limit=None, rank=0, world_size=1):
    heard = []
    tally = task.run(
        corpus, limit=limit, rank=rank, world_size=world_size, on_progress=lambda done, _: heard.append(done)
    )
    return tally, heard


def test_processes_share_the_shards(tmp_path):
    corpus = Texts(5, 5, 5)
    first, second = corpus_planner(tmp_path), corpus_planner(tmp_path)
    plan_all(first, corpus, rank=0, world_size=2)
    assert first.report(corpus, None) is None
    plan_all(second, corpus, rank=1, world_size=2)
    whole = second.report(corpus, None)
    assert (whole.captions, whole.calls, whole.sources) == (30, 30, {"model": 30})
    assert len(PlannedGraphs(str(tmp_path))) == 15
    assert plan_all(first, corpus)[0].captions == 0


def test_a_limit_and_first_captions(tmp_path):
    task = corpus_planner(tmp_path, captions="first")
    tally, heard = plan_all(task, Texts(5, 5, 5), limit=7)
    assert (tally.captions, heard[-1]) == (7, 7)
    assert heard == sorted(heard)
    assert task.report(Texts(5, 5, 5), 7).captions == 7
    assert not (tmp_path / "shard-2.jsonl").exists()


def test_a_model_that_only_fails_stops_the_run(tmp_path):
    llm = Scripted(lambda _: Answer("", error="connection refused"))
    with pytest.raises(RunError, match="connection refused"):
        plan_all(corpus_planner(tmp_path, llm), Texts(100))
    assert not list(tmp_path.glob("*.jsonl*")), "no half shard"
    assert len(llm.asked) < 40
    tally, _ = plan_all(corpus_planner(tmp_path, llm, max_fallbacks=1.0), Texts(20))
    assert (tally.errors, tally.sources, tally.failures) == (40, {"rules": 40}, {"no answer": 40})


def test_an_interrupted_shard_leaves_nothing(tmp_path):
    asked = []

    def respond(question):
        asked.append(question)
        if len(asked) > 12:
            raise KeyboardInterrupt
        return Rules(parser=None, details=None).answer([question])[0]

    with pytest.raises(KeyboardInterrupt):
        plan_all(corpus_planner(tmp_path, Scripted(respond)), Texts(20))
    assert [path.name for path in tmp_path.iterdir()] == ["planner.json"]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dysen.planning_corpus.os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        plan_all(corpus_planner(tmp_path), Texts(5))
    assert not list(tmp_path.iterdir())


def test_the_reader_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="no plans"):
        PlannedGraphs(str(tmp_path))
    plan_all(corpus_planner(tmp_path), Texts(3))
    with pytest.raises(KeyError):
        PlannedGraphs(str(tmp_path))["nobody"]
    (tmp_path / "shard-9.jsonl").write_text('{"key": "a", "numb')
    with pytest.raises(DataError, match="shard-9"):
        PlannedGraphs(str(tmp_path))


# ---- settings


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF / "planner").glob("*.yaml")))
@pytest.mark.parametrize("llm", ["rules", "rules_shapes"])
def test_planners_compose_and_plan(choice, llm):
    cfg = compose(f"planner={choice}", f"llm={llm}", "paths.answers=null")
    config.check(cfg, set(cfg))
    built = instantiate(cfg.planner, _convert_="all")
    (planned,) = built.plan(["A red circle grows, then it moves up."])
    assert [event.start for event in planned.plan.events] == [0, 1]
    assert planned.calls == {"default": 1 + 3 + 1, "fast": 2, "plain": 1}[choice]


@pytest.mark.parametrize(
    "wrong", ["planner.imagination.calls=all", "planner.imagination.window=-1", "planner.form=xml", "planner.retries=-1",
              "planner.imagination.polish=3", "planner.fallback=none", "llm.parser=3", "planner.imagination.form=json5"],
)  # fmt: skip
def test_wrong_settings_are_found_before_anything_is_built(wrong):
    cfg = compose(wrong)
    with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
        config.check(cfg, set(cfg))


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF / "llm").glob("*.yaml")))
def test_every_language_model_composes(choice):
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "llm" / f"{choice}.yaml"), resolve=False)
    for overrides in ([], ["selector=random"]):
        cfg = compose(
            f"llm={choice}", *overrides, *[f"llm.{key}=x" for key, value in settings.items() if value == "???"]
        )
        config.check(cfg, set(cfg))


def test_switches_of_imagination():
    for overrides, calls in ((["planner.imagination=null"], 1), (["planner.imagination.calls=batched"], 3)):
        built = instantiate(compose(*overrides).planner, _convert_="all")
        assert built.plan(["A red circle grows, then it moves up."])[0].calls == calls
