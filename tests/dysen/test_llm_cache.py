"""Answers on disk: asked once, whole or not at all, from many processes."""

import multiprocessing
import os
import signal
import sqlite3
import time

import pytest
from scripted_model import Scripted, planner

from dysen.imagination import Question
from dysen.llm.base import Answer
from dysen.llm.cache import FILE, AnswerFile, Cached, cached
from dysen.llm.replay import Recorder, Replay
from dysen.llm.rules import Rules
from dysen.replies import PlanReply, SceneReply
from vdm.errors import RunError


def question(text, reply=PlanReply):
    return Question(text, reply)


def echo(name="echo"):
    return Scripted(lambda asked: f"{asked.reply.__name__}: {asked.prompt}", name)


def test_nothing_is_asked_twice(tmp_path):
    llm = echo()
    model = Cached(llm=llm, folder=str(tmp_path))
    first = model.answer([question("a"), question("b"), question("a"), question("a", SceneReply)])
    assert [answer.text for answer in first] == ["PlanReply: a", "PlanReply: b", "PlanReply: a", "SceneReply: a"]
    assert len(llm.asked) == 3
    again = Cached(llm=llm, folder=str(tmp_path)).answer([question("b"), question("c"), question("a")])
    assert len(llm.asked) == 4
    assert [answer.cached for answer in again] == [True, False, True]
    assert again[0] == Answer("PlanReply: b", 100, 10, cached=True)
    assert model.answer([]) == []


def test_another_model_is_another_answer(tmp_path):
    Cached(llm=echo("one"), folder=str(tmp_path)).answer([question("a")])
    other = echo("two")
    Cached(llm=other, folder=str(tmp_path)).answer([question("a")])
    assert len(other.asked) == 1


def test_errors_are_never_kept(tmp_path):
    answers = iter([Answer("", error="busy"), Answer("fine")])
    model = Cached(llm=Scripted(lambda _: next(answers)), folder=str(tmp_path))
    assert model.answer([question("a")])[0].error == "busy"
    assert model.answer([question("a")])[0] == Answer("fine")
    assert model.answer([question("a")])[0] == Answer("fine", cached=True)


@pytest.mark.parametrize("text", ["", "\x00", "\ud800 lone", "🙂 日本", "x" * 200_000, '"\\n'])
def test_any_text_comes_back(tmp_path, text):
    model = Cached(llm=Scripted(lambda _: text), folder=str(tmp_path))
    assert model.answer([question(text)])[0].text == model.answer([question(text)])[0].text == text


def test_more_questions_than_a_look_up_holds(tmp_path):
    llm = echo()
    model = Cached(llm=llm, folder=str(tmp_path))
    asked = [question(str(i)) for i in range(2_100)]
    assert [a.text for a in model.answer(asked)] == [a.text for a in model.answer(asked)]
    assert len(llm.asked) == 2_100


# ---- damage


def test_a_damaged_entry_is_asked_again_and_mended(tmp_path):
    llm = echo()
    model = Cached(llm=llm, folder=str(tmp_path))
    model.answer([question("a"), question("b")])
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("UPDATE answers SET content = replace(content, 'PlanReply: a', 'PlanReply: z')")
    assert [a.cached for a in model.answer([question("a"), question("b")])] == [False, True]
    assert [a.text for a in model.answer([question("a")])] == ["PlanReply: a"]
    assert len(llm.asked) == 3


@pytest.mark.parametrize("damage", ["replaced", "cut", "scribbled"])
def test_a_damaged_file_is_put_aside(tmp_path, damage):
    model = Cached(llm=echo(), folder=str(tmp_path))
    model.answer([question(str(i)) for i in range(500)])
    model.close()
    content = (tmp_path / FILE).read_bytes()
    wrong = {
        "replaced": b"no database" * 100,
        "cut": content[:5000],
        "scribbled": content[:100] + b"\xff" * 4000 + content[4100:],
    }
    (tmp_path / FILE).write_bytes(wrong[damage])
    llm = echo()
    model = Cached(llm=llm, folder=str(tmp_path))
    assert model.answer([question("3")])[0].text == "PlanReply: 3"
    assert model.answer([question("3")])[0].cached
    assert len(llm.asked) == 1
    assert any("damaged" in name for name in os.listdir(tmp_path))


def test_no_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="paths.answers"):
        Cached(llm=echo(), folder=str(tmp_path / "file")).answer([question("a")])
    with pytest.raises(RunError, match="paths.answers"):
        Cached(llm=echo(), folder="/proc/answers").answer([question("a")])


def test_a_full_disk_is_said(tmp_path):
    answers = AnswerFile(str(tmp_path))
    answers.write({"a": Answer("x")})
    answers._connection.execute("PRAGMA max_page_count = 3")
    with pytest.raises(RunError, match="full"):
        answers.write({str(i): Answer("x" * 3_000) for i in range(50)})
    answers.close()
    assert AnswerFile(str(tmp_path)).read(["a"]) == {"a": Answer("x", cached=True)}


# ---- several processes


def write_many(folder, number):
    answers = AnswerFile(folder)
    for i in range(30):
        answers.write({f"{(number * 7 + i) % 50}": Answer(str((number * 7 + i) % 50))})
        assert answers.read(["0", "1", str(i)]) is not None


def test_many_processes_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=write_many, args=(str(tmp_path), number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    found = AnswerFile(str(tmp_path)).read([str(i) for i in range(50)])
    assert {key: answer.text for key, answer in found.items()} == {str(i): str(i) for i in range(50)}


def test_a_forked_process_opens_the_file_for_itself(tmp_path):
    answers = AnswerFile(str(tmp_path))
    answers.write({"a": Answer("x")})
    process = multiprocessing.get_context("fork").Process(target=lambda: answers.write({"b": Answer("y")}))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert set(answers.read(["a", "b"])) == {"a", "b"}


def write_for_ever(folder):
    answers = AnswerFile(folder)
    for i in range(10**9):
        answers.write({f"{i}-{j}": Answer("x" * 500) for j in range(20)})


def test_a_killed_writer_leaves_whole_batches(tmp_path):
    fork = multiprocessing.get_context("fork")
    for _ in range(3):
        process = fork.Process(target=write_for_ever, args=(str(tmp_path),))
        process.start()
        time.sleep(0.15)
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
    answers = AnswerFile(str(tmp_path))
    found = [answers.read([f"{i}-{j}" for j in range(20)]) for i in range(400)]
    assert {len(batch) for batch in found} <= {0, 20}
    assert len(found[0]) == 20
    answers.write({"after": Answer("fine")})


# ---- with the planner


def test_a_second_planning_asks_nothing(tmp_path):
    captions = ["A dog runs, then it barks.", "A man sings while a woman dances."]
    llm = Scripted(lambda asked: Rules(parser=None, details=None).answer([asked])[0])
    first = planner(Cached(llm=llm, folder=str(tmp_path))).plan(captions)
    count = len(llm.asked)
    second = planner(Cached(llm=llm, folder=str(tmp_path))).plan([*captions, "A cat sleeps."])
    assert [one.to_json() for one in second[:2]] == [one.to_json() for one in first]
    assert [one.cached for one in first] == [0, 0]
    assert [one.cached == one.calls for one in second] == [True, True, False]
    assert len(llm.asked) == count + second[2].calls


def test_a_retry_is_not_answered_from_the_failure(tmp_path):
    llm = Scripted(lambda asked: "(a, b, -, (0v, 1v))" if "could not be used" in asked.prompt else "no")
    model = Cached(llm=llm, folder=str(tmp_path))
    for _ in range(2):
        (planned,) = planner(model, imagination=None).plan(["a bee"])
        assert planned.source == "model"
    assert len(llm.asked) == 2


def test_cheap_models_and_no_folder_go_without_a_cache(tmp_path):
    rules, slow = Rules(parser=None, details=None), echo()
    assert cached(rules, str(tmp_path)) is rules
    assert cached(slow, None) is slow
    assert isinstance(cached(slow, str(tmp_path)), Cached)
    assert cached(slow, str(tmp_path)).fingerprint() == slow.fingerprint()


def test_recordings_replay(tmp_path):
    path = str(tmp_path / "deep" / "answers.jsonl")
    answers = iter([Answer("one", 3, 4), Answer("", error="no"), Answer("\ud800 🙂\n")])
    recorder = Recorder(llm=Scripted(lambda _: next(answers)), path=path)
    recorder.answer([question("a"), question("b")])
    recorder.answer([question("c", SceneReply)])
    replay = Replay(path=path)
    asked = [question("a"), question("c", SceneReply), question("b"), question("c")]
    texts = [(answer.text, answer.error is None) for answer in replay.answer(asked)]
    assert texts == [("one", True), ("\ud800 🙂\n", True), ("", False), ("", False)]
    assert replay.answer(asked[:1]) == [Answer("one", 3, 4)]
    assert replay.fingerprint() == Replay(path=path).fingerprint()
