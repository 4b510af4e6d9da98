"""The human study: a page that gives nothing away and keeps answers, and a table whose numbers are those of the literature."""

import json
import random
import sys
from itertools import islice

import numpy as np
import pytest
from browser import Browser
from result_folder import HOSTILE, PLAIN, moving

from vdm.errors import DataError
from vdm.evaluation.study import main
from vdm.evaluation.study.agreement import bootstrap, krippendorff_alpha
from vdm.evaluation.study.counting import count, table
from vdm.evaluation.study.making import matched_by, mixed, read_samples
from vdm.evaluation.study.request import titles_of
from vdm.video import decode, encode_mp4

QUESTIONS = ("action_faithfulness", "scene_richness", "movement_fluency")
SYSTEMS = ("dysen-secret", "baseline-secret", "third-secret")

# ---- maths ------------------------------------------------------------------------------------------------------------

# Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, example of four observers and twelve units.
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
# The other example in wide use: three coders, fifteen units.
CODERS = (". . . . . 3 4 1 2 1 1 3 3 . 3", "1 . 2 1 3 3 4 3 . . . . . . .", ". . 2 1 3 4 4 . 2 1 1 3 3 . 4")


def units(rows):
    return [[float(value) for value in column if value != "."] for column in zip(*map(str.split, rows), strict=True)]


def test_alpha_of_the_literature():
    assert krippendorff_alpha(units(OBSERVERS), scale="ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(units(OBSERVERS), scale="interval") == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(units(CODERS), scale="interval") == pytest.approx(0.811, abs=5e-4)


@pytest.mark.parametrize("scale", ["ordinal", "interval"])
def test_alpha_behaves(scale):
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 6, 400)
    perfect = krippendorff_alpha([[v, v, v] for v in truth], scale=scale)
    near = krippendorff_alpha([[v, v, min(5, v + 1)] for v in truth], scale=scale)
    chance = krippendorff_alpha(rng.integers(1, 6, (400, 3)).tolist(), scale=scale)
    assert perfect == 1
    assert 0.6 < near < 1
    assert abs(chance) < 0.06
    assert krippendorff_alpha([[1, 5], [5, 1]], scale=scale) < 0, "worse than chance"
    shuffled = [random.Random(i).sample(unit, len(unit)) for i, unit in enumerate(units(OBSERVERS))]
    assert krippendorff_alpha(shuffled, scale=scale) == pytest.approx(krippendorff_alpha(units(OBSERVERS), scale=scale))
    assert krippendorff_alpha([[1], [2], []], scale=scale) is None
    assert krippendorff_alpha([[3, 3], [3, 3]], scale=scale) is None


def test_interval_covers_the_mean():
    """In about 95 of 100 studies of 30 items the interval holds the true mean."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        items = rng.normal(50, 20, 30)
        low, high = bootstrap(lambda chosen, items=items: float(items[chosen].mean()), 30, draws=300, seed=0)
        hits += low <= 50 <= high
    assert 0.88 <= hits / 200 <= 0.98
    assert bootstrap(lambda chosen: 1.0, 1, draws=10, seed=0) is None


# ---- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Samples as sample.py leaves them, an evaluation with cases, and plain files named by their prompts."""
    root = tmp_path_factory.mktemp("samples")
    prompts = [*PLAIN[:4], HOSTILE[0], HOSTILE[3]]
    for s, system in enumerate(SYSTEMS):
        (root / system).mkdir()
        for i, prompt in enumerate(prompts):
            place = root / system / f"{i:04d}.mp4"
            place.write_bytes(encode_mp4(moving(10 * s + i, 4, 32, 32), 8.0))
            place.with_suffix(".json").write_text(json.dumps({"prompt": prompt, "key": f"key-{i}", "run": system}))
    (root / SYSTEMS[1] / "0002.mp4").write_bytes(b"not a video")
    (root / SYSTEMS[0] / "extra.mp4").write_bytes(encode_mp4(moving(99, 4, 32, 32), 8.0))
    return [root / system for system in SYSTEMS]


@pytest.fixture(scope="module")
def study(folders, tmp_path_factory):
    place = tmp_path_factory.mktemp("made") / "study"
    given = f"samples=[{','.join(map(str, folders))}]"
    assert main(["make", given, f"to={place}", "items=null", "seed=5"]) == 0
    return place


def test_page_gives_nothing_away(study, folders):
    key = json.loads((study / "key.json").read_text())
    assert len(key["items"]) == 5, "one has a clip that cannot be read, one is in one folder only"
    assert {tuple(item["places"]) for item in key["items"]} == {("A", "B", "C")}
    orders = {tuple(item["places"].values()) for item in key["items"]}
    assert len(orders) > 1, "the order differs from item to item"
    assert all(sorted(order) == sorted(SYSTEMS) for order in orders)
    for path in (study / "page").rglob("*"):
        assert "secret" not in path.name
        assert path.is_dir() or b"secret" not in path.read_bytes()
        assert path.is_dir() or str(folders[0].parent).encode() not in path.read_bytes()
    source = (study / "page" / "index.html").read_text(encoding="utf-8")
    assert source.count("<script") == source.count("</script>") == 2, "captions open none"
    assert "http:" not in source
    assert "https:" not in source
    # Every clip is that of its prompt and system.
    for item in key["items"]:
        row = int(item["key"].removeprefix("key-"))
        for letter, system in item["places"].items():
            shown = decode(study / "page" / "media" / f"{item['name']}-{letter}.mp4")[:, 3::7, 3::7].astype(int)
            wanted = moving(10 * SYSTEMS.index(system) + row, 4, 32, 32)
            assert abs(shown - wanted).mean() < 8


def test_same_seed_same_study(study, folders, tmp_path):
    given = f"samples=[{','.join(map(str, folders))}]"
    assert main(["make", given, f"to={tmp_path / 'same'}", "items=null", "seed=5"]) == 0
    for name in ("key.json", "page/index.html"):
        assert (tmp_path / "same" / name).read_bytes() == (study / name).read_bytes()
    assert main(["make", given, f"to={tmp_path / 'other'}", "items=2", "seed=6", "points=7", "lowest=bad"]) == 0
    other = json.loads((tmp_path / "other" / "key.json").read_text())
    assert other["study"] != json.loads((study / "key.json").read_text())["study"]
    assert len(other["items"]) == 2
    assert (tmp_path / "other" / "page" / "index.html").read_text().count('type="radio"') == 2 * 3 * 3 * 7
    assert not list(tmp_path.glob("*.partial*"))


def test_page_in_a_browser(study, tmp_path):
    """Rate one item, come back later, and save: the file is what `count` reads."""
    address = study / "page" / "index.html"
    with Browser() as browser:
        for width in (390, 1280):
            browser.open(address, width=width)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        seen = "[...document.querySelectorAll('.step')].filter(s => !s.hidden).length"
        assert browser.value(seen) == 1
        browser.value("document.getElementById('next').click()")
        assert "who you are" in browser.value("document.getElementById('trouble').textContent")
        browser.value(
            "{const r = document.getElementById('rater'); r.value = 'Zoë 1'; r.dispatchEvent(new Event('input'));}"
        )
        browser.value("document.getElementById('next').click()")
        assert browser.value("document.querySelectorAll('.step:not([hidden]) video').length") == 3
        fits = "document.documentElement.scrollWidth <= innerWidth"
        assert browser.value(fits)
        wait = "new Promise(r => setTimeout(() => r([...document.querySelectorAll('.step:not([hidden]) video')].every(v => v.videoWidth >= 224)), 800))"  # noqa: E501
        assert browser.value(wait), "the clips play from disk"
        browser.value("document.querySelectorAll('.step:not([hidden]) input[value=\"4\"]').forEach(b => b.click())")
        browser.picture(tmp_path / "item.png")
        browser.open(address, width=390)
        where = "document.getElementById('where').textContent"
        assert browser.value(where) == "1 of 5, answered (1 done)", "kept after closing"
        assert browser.value(fits)
        for _ in range(5):
            browser.value("document.getElementById('next').click()")
        assert "36 answers are missing" in browser.value("document.getElementById('missing').textContent")
        saved = browser.value("document.getElementById('copy').value")
        assert browser.complaints == []
        assert all(one.startswith("file:") for one in browser.requests)
    (tmp_path / "saved.json").write_text(saved, encoding="utf-8")
    found, _ = count(study / "key.json", str(tmp_path / "saved.json"), draws=20, seed=0, out=tmp_path / "out.json")
    assert found["raters"] == {"Zoë 1": 9}
    assert {one["mean"] for q in QUESTIONS for one in found["means"][q].values()} == {75.0}


def test_every_system_is_everywhere_equally_often():
    orders = list(islice(mixed(3, 0), 30))
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert {(place, system): sum(o[place] == system for o in orders) for place in range(3) for system in range(3)} == {
        (place, system): 10 for place in range(3) for system in range(3)
    }
    assert len({tuple(order) for order in orders}) > 3
    assert orders == list(islice(mixed(3, 0), 30)) != list(islice(mixed(3, 1), 30))


def test_matching(tmp_path):
    def folder(name, *rows):
        (tmp_path / name).mkdir()
        for stem, record in rows:
            (tmp_path / name / f"{stem}.mp4").write_bytes(b"")
            if record is not None:
                (tmp_path / name / f"{stem}.json").write_text(record)
        return read_samples(tmp_path / name)

    def record(prompt, key):
        return json.dumps({"prompt": prompt, "key": key})

    a = folder(
        "a", ("0000", record("A dog runs.", "k0")), ("0001", record("A cat.", "k1")), ("0002", record("A cat.", "k2"))
    )
    b = folder("b", ("0000", record("a  dog runs.", "k0")), ("0001", record("A bird.", "k1")))
    c = folder("c", ("A cat.-0", None), ("A_dog runs.-0", "{broken"), ("A cat.-1", "[]"))
    assert [[s.key for s in row] for row in matched_by([a, b], "auto")] == [["k0", "k0"]], "one key has two prompts"
    assert [[s.key for s in row] for row in matched_by([a, c], "auto")] == [
        ["k0", "A_dog runs.-0"], ["k1", "A cat.-0"], ["k2", "A cat.-1"]
    ]  # fmt: skip
    with pytest.raises(DataError, match="share no clips"):
        matched_by([b, c], "key")
    assert titles_of(["x/run-a/generated", "x/run-b/generated"]) == ["run-a/generated", "run-b/generated"]


def test_wrong_requests(folders, study, tmp_path, capfd):
    two = f"samples=[{folders[0]},{folders[1]}]"
    wrong = (
        [], ["mak"], ["make"], ["make", f"samples=[{folders[0]}]"], ["make", f"samples=[{folders[0]},{tmp_path / 'none'}]"],
        ["make", two, f"to={study}"], ["make", two, "names=[a,a]"], ["make", two, "points=1"], ["make", two, "itms=3"],
        ["make", two, f"to={tmp_path / 'x'}", "match=nothing"], ["count"], ["count", f"key={tmp_path}", "ratings=x"],
        ["count", f"key={study / 'key.json'}", f"ratings={tmp_path / 'none'}"],
        ["count", f"key={study / 'page' / 'index.html'}", f"ratings={tmp_path}"],
        ["count", f"key={study / 'key.json'}", f"ratings={tmp_path}"],
    )  # fmt: skip
    for arguments in wrong:
        assert main(arguments) == 2, arguments
        said = capfd.readouterr()
        assert "Error" in said.err, arguments
        assert "Traceback" not in said.err
    assert main(["--help"]) == 0
    assert not (tmp_path / "x").exists()


# ---- counting ---------------------------------------------------------------------------------------------------------

KEY = {
    "study": "abc", "systems": ["ours", "base"], "points": 5, "questions": dict.fromkeys(QUESTIONS, "?"),
    "items": [
        {"name": f"{i:03d}", "key": str(i), "prompt": "?", "places": {"AB"[1 - i % 2]: "ours", "AB"[i % 2]: "base"}}
        for i in range(1, 7)
    ],
}  # fmt: skip


def rated(rater, ours, base, **changed):
    """Ratings of one person: `ours` and `base` give a value for an item's number, or None."""
    answers = {}
    for item in KEY["items"]:
        for place, system in item["places"].items():
            value = (ours if system == "ours" else base)(int(item["name"]))
            if value is not None:
                answers.setdefault(item["name"], {})[place] = dict.fromkeys(QUESTIONS, value)
    return {"study": "abc", "rater": rater, "exported": "2026-01-01T00:00:00Z", "answers": answers} | changed


@pytest.fixture
def counted(tmp_path):
    (tmp_path / "key.json").write_text(json.dumps(KEY))

    def run(*files):
        (tmp_path / "ratings").mkdir()
        for i, one in enumerate(files):
            text = one if isinstance(one, str) else json.dumps(one)
            (tmp_path / "ratings" / f"{i}.json").write_text(text, encoding="utf-8")
        return count(tmp_path / "key.json", str(tmp_path / "ratings"), draws=200, seed=0, out=None)[0]

    return run


def test_table(counted, tmp_path):
    """Means by hand: 5 is 100, 1 is 0; the places of both systems change from item to item."""
    found = counted(
        rated("Ada", lambda i: 5, lambda i: 1 + i % 2),
        rated("Ben", lambda i: 4, lambda i: 1),
        rated("Cy", lambda i: 5 if i < 4 else None, lambda i: None),
    )
    means = found["means"]["scene_richness"]
    first, second = 100 * np.mean([1, 0.75, 1]), 100 * np.mean([1, 0.75])
    assert means["ours"]["mean"] == pytest.approx((3 * first + 3 * second) / 6)
    assert means["base"]["mean"] == pytest.approx(np.mean([12.5, 0, 12.5, 0, 12.5, 0]))
    assert means["base"]["low"] < means["base"]["mean"] < means["base"]["high"]
    difference = found["differences"]["scene_richness"]["ours - base"]
    assert difference["mean"] == pytest.approx(means["ours"]["mean"] - means["base"]["mean"])
    assert difference["low"] > 70
    assert found["agreement"]["scene_richness"]["rated_twice"] == 12
    assert 0.8 < found["agreement"]["scene_richness"]["interval"] < 1
    assert found["problems"] == ["2.json: 27 of 36 answers of Cy are missing"]
    written = table(found)
    assert "ours - base" in written
    assert "3 raters, 6 items" in written
    assert json.loads((tmp_path / "results.json").read_text()) == found


def test_bad_files_are_said_and_left_out(counted):
    good = rated("Ada", lambda i: 5, lambda i: 1)
    later = rated("ada ", lambda i: 3, lambda i: 3, exported="2026-02-01T00:00:00Z")
    odd = rated("Ben", lambda i: 4, lambda i: 2)
    odd["answers"]["001"]["A"] = {"scene_richness": 6, "action_faithfulness": "5", "movement_fluency": True, "else": 1}
    odd["answers"]["099"] = {"A": {"scene_richness": 3}}
    odd["answers"]["002"]["Z"] = 7
    odd["answers"]["003"] = None
    found = counted(
        good, later, odd, "{broken", "[1]", "", "[" * 100_000, good | {"study": "xyz"}, good | {"rater": " "},
        good | {"rater": 3}, good | {"answers": [1]}, "\ufeff" + json.dumps(rated("Bom", lambda i: 3, lambda i: 3)),
    )  # fmt: skip
    assert found["raters"] == {"ada": 36, "Ben": 27, "Bom": 36}
    said = "\n".join(found["problems"])
    for wanted in (
        "0.json: ada has a later file, 1.json", "3.json: cannot be read", "4.json: holds no ratings", "5.json: cannot be read",
        "6.json: cannot be read", "7.json: is of another study: xyz", "8.json: does not say who", "9.json: does not say who",
        "10.json: holds no ratings", "2.json: 7 answers are not of this study", "2.json: 9 of 36 answers of Ben are missing",
    ):  # fmt: skip
        assert wanted in said, wanted
    assert len(found["problems"]) == 11


def test_what_cannot_be_said_has_a_reason(counted):
    found = counted(rated("Ada", lambda i: 3 if i == 1 else None, lambda i: None))
    assert found["agreement"]["scene_richness"]["undefined"] == "no video was rated by two people"
    assert found["means"]["scene_richness"]["base"]["mean"] is None
    assert "not rated" in table(found)
    assert "one item: no interval" in table(found)


def test_nothing_to_count(counted):
    with pytest.raises(DataError, match="no ratings can be counted"):
        counted("{", {"study": "other", "answers": {}})


def test_command_of_count(study, tmp_path, capfd):
    key = json.loads((study / "key.json").read_text())
    answers = {
        item["name"]: {place: dict.fromkeys(QUESTIONS, 5 if "dysen" in s else 2) for place, s in item["places"].items()}
        for item in key["items"]
    }
    for name in ("a", "b"):
        content = {"study": key["study"], "rater": name, "exported": "", "answers": answers}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "c.json").write_text("nothing")
    before = list(sys.argv)
    given = [
        "count",
        f"key={study / 'key.json'}",
        f"ratings={tmp_path}",
        f"out={tmp_path / 'out' / 'table.json'}",
        "draws=50",
    ]
    assert main(given) == 0
    assert sys.argv == before
    said = capfd.readouterr()
    assert "100.0" in said.out
    assert "25.0" in said.out
    assert "1.000" in said.out
    assert "c.json: cannot be read" in said.err
    assert (
        json.loads((tmp_path / "out" / "table.json").read_text())["means"]["scene_richness"][SYSTEMS[0]]["mean"] == 100
    )
