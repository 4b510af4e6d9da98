"""report.html: everything a result has is on it, nothing on it can break out or be fetched, and a browser shows it well."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser
from result_folder import HOSTILE, content, moving, write_results

from vdm.errors import DataError
from vdm.evaluation.report import write_report
from vdm.evaluation.report.bins import _place, breakdowns
from vdm.evaluation.report.markup import Markup, number, tag, text
from vdm.evaluation.report.numbers import paper
from vdm.evaluation.report.playing import playable
from vdm.evaluation.report.plots import Axis
from vdm.evaluation.report.reading import Case, Result, better, ranked, read_cases, read_lineage
from vdm.video import decode, encode_mp4

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """Elements, attributes and visible words of a page."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.addresses, self.words, self.open = [], [], [], []
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, name, attributes):
        self.elements.append(name)
        self.open.append(name)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "srcset", "poster", "action")]
        assert not [key for key, _ in attributes if key.startswith("on")], "no handlers"

    def handle_endtag(self, name):
        while self.open and self.open.pop() != name:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open[-1:]):
            self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def source(folder):
    return write_report(folder, run=folder.parents[1]).read_text(encoding="utf-8")


def without_clips(source):
    """x264 reads memory that it never wrote, so now and then a clip that is encoded again has other bits."""
    return re.sub(r"data:video/mp4;base64,[^\"]+", "clip", source)


def alone(tmp_path, **changed):
    """The text of the report of a result without cases."""
    (tmp_path / "metrics.json").write_text(json.dumps(changed))
    return Page(write_report(tmp_path, run=None).read_text(encoding="utf-8"))


def test_page_says_all_there_is(source):
    words = Page(source).text
    for wanted in (
        "activitynet-5f0c2a91", "dpm_solver", "7.5", "f93454bd84a90bad1cb11adb4b0acd4d4cd1ad950fb219d9", "step-00003000",
        "512.3", "481.6 to 543.0", "158.8", "625.0 (512 clips)",  # value, interval, floor, at the floor's count
        "inception-2015-12-05.pt is not there", "no frame can be read", "i3d_torchscript.pt",
        "vdm-activitynet (parent)", "633.1", "vdm-activitynet (ucf101)",
        "485.48", "protocol not known to be equal", "Fig. 5 a", "digitised by eye",
        "python train.py stage=dysen data=activitynet trainer.max_steps=3000", "python -m vdm.evaluation.report",
        "train/loss", "val/loss", "autoencoder-webvid", "worst 1", "best 6", "Lines of cases.jsonl that cannot be read: 1",
    ):  # fmt: skip
        assert wanted in words, wanted
    assert "444.0" not in words, "another protocol is not in the table"
    assert "325.42" not in words, "nor are rows of the paper that are of another one"


def test_captions_are_words_and_nothing_else(source, folder, tmp_path):
    page = Page(source)
    assert page.elements.count("script") == page.elements.count("main") == page.elements.count("style") == 1
    shown = [case.caption for case in read_cases(folder)[0] if case.caption in HOSTILE]
    assert set(shown) == set(HOSTILE)
    assert HOSTILE[0] in page.text
    assert "\u202e" in page.text
    assert not set(source) & set(map(chr, (0, 7, 0xD800)))
    for place in page.addresses:
        assert place.startswith(("data:", "#")), place[:80]
    assert "Content-Security-Policy" in source
    # The same page around harmless captions has the same elements.
    harmless = tmp_path / "harmless"
    shutil.copytree(folder, harmless)
    lines = [
        json.loads(line)
        for line in (harmless / "cases.jsonl").read_text().splitlines()
        if not line.startswith("{broken")
    ]
    rows = [line | {"caption": "x" * min(len(line["caption"]), 3000)} for line in lines]
    (harmless / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plain = Page(write_report(harmless, run=folder.parents[1]).read_text(encoding="utf-8"))
    assert plain.elements.count("article") == page.elements.count("article") == 12
    assert abs(len(plain.elements) - len(page.elements)) < 12  # a caption that is not folded


def test_same_files_same_page(folder, source):
    again = write_report(folder, run=folder.parents[1]).read_text(encoding="utf-8")
    assert without_clips(again) == without_clips(source)
    assert not list(folder.glob("*.partial*"))


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_in_a_browser(browser, folder, source, width, scheme):
    address = folder / "report.html"
    browser.open(address, width=width, scheme=scheme)
    assert browser.requests == [address.as_uri()], "nothing but the page itself"
    assert browser.value("document.title") == "dysen-activitynet, protocol activitynet"
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert browser.value(fits)
    browser.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.value(fits), "also with all folds open"
    plays = "[...document.querySelectorAll('video')].filter(v => v.readyState >= 2 && v.videoWidth >= 224).length"
    assert browser.value(plays) == 24
    drawn = "[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.value(drawn)
    dark = browser.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 60")
    assert dark == (scheme == "dark")
    small = "[...document.querySelectorAll('main *')].filter(e => e.innerText && !e.closest('svg') && parseFloat(getComputedStyle(e).fontSize) < 11).length"  # noqa: E501
    assert browser.value(small) == 0, "readable letters"
    assert browser.complaints == []


def test_without_scripts(browser, folder, source):
    browser.open(folder / "report.html", width=390, scripts=False)
    assert browser.complaints == []
    assert browser.value("document.querySelectorAll('button').length") == 0
    assert browser.value("document.querySelectorAll('article').length") == 12
    assert browser.value("document.querySelector('#numbers').innerText.includes('512.3')")


# ---- what is missing, what is too much --------------------------------------------------------------------------------


def test_results_of_before(tmp_path):
    """metrics.json without id, breakdowns or rejected, no cases.jsonl, some videos and a sheet."""
    result = content("vdm-shapes", 1.0, protocol="shapes")
    kept = ("protocol", "run", "checkpoint", "data", "reference", "metrics", "skipped", "measured")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a-clip.mp4").write_bytes(b"no video at all")
    (tmp_path / "captions.txt").write_text("A red circle.\n")
    page = alone(tmp_path, **{name: result[name] for name in kept} | {"reference": None})
    assert "none: made before results had one" in page.text
    assert "a-clip.mp4 cannot be shown" in page.text
    assert "python evaluate.py protocol=shapes run=vdm-shapes" in page.text


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"metrics": {}},
        {"metrics": {"fvd4_16f": float("nan"), "psnr": float("inf"), "clips": None, "x/low": 1}},
        {"metrics": [], "protocol": None, "skipped": "none", "rejected": [3], "breakdowns": {"events": "?"}, "weights": 5},
        {"breakdowns": {"events": [{"bin": 3, "metrics": {"fvd3_16f": None, "order": 0.5}}, {}, 7, {"bin": "x"}]}},
        {"breakdowns": {"events": [{"bin": "3", "clips": 1, "metrics": {"order": 0.0}}]}, "protocol": {"name": "activitynet"}},
        {"metrics": {"order": 0.5}, "protocol": {"name": "<b>", "sampler": "ddim", "list": [{"a": [1]}]}, "data": "shapes"},
    ],
)  # fmt: skip
def test_gaps_are_no_errors(tmp_path, changed):
    page = alone(tmp_path, **changed)
    assert page.elements.count("h1") == 1


def test_a_folder_of_videos(tmp_path):
    data = {"name": "somebodys", "videos": 20, "used": 16, "fingerprint": "abc", "sizes": ["32x32"]}
    (tmp_path / "rejected.csv").write_text("file,reason\n")
    page = alone(
        tmp_path, run=None, protocol={"name": "ucf101"}, data=data, rejected={"no video": 4}, metrics={"clips": 16}
    )
    assert "python evaluate.py protocol=ucf101 videos=somebodys" in page.text
    assert "videos somebodys" in page.text
    assert "4 videos were rejected" in page.text
    recorded = {
        "evaluated_by": {"command": "python evaluate.py protocol=ucf101 videos=/there"},
        "seconds": {"all": 12.5},
    }
    (tmp_path / "evaluated.json").write_text(json.dumps(recorded))
    again = Page(write_report(tmp_path, run=None).read_text(encoding="utf-8")).text
    assert "videos=/there" in again
    assert "without their further settings" not in again
    assert "seconds.all 12.5" in again
    assert "rejected.csv" in page.text


def test_no_result_is_said(tmp_path):
    with pytest.raises(DataError, match="no evaluation in this folder"):
        write_report(tmp_path, run=None)
    for broken in ("", "{", "[]", "3"):
        (tmp_path / "metrics.json").write_text(broken)
        with pytest.raises(DataError):
            write_report(tmp_path, run=None)
    assert not (tmp_path / "report.html").exists()


def test_page_is_bounded(folder, source):
    path = write_report(folder, run=None, most_megabytes=0.12)
    page = Page(path.read_text(encoding="utf-8"))
    videos = [place for place in page.addresses if place.startswith("data:video")]
    assert 0 < len(videos) < 24
    assert sum(map(len, page.addresses)) < 125_000
    assert "left out, the page is full. It is in videos/" in page.text
    assert "left out: the page has a bound of 120,000 bytes" in page.text
    order = page.text.index
    assert order("worst 1") < order("left out, the page is full"), "the ends of the list come first"
    write_report(folder, run=folder.parents[1])


def test_lineage_that_bites_its_tail(tmp_path):
    for name, parent in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(
            json.dumps({"stage": "vdm", "lineage": [{"run": parent}, {"run": "gone"}]})
        )
    names = [one.run.name for one in read_lineage(tmp_path / "a")]
    assert names == ["a", "b", "a", "gone", "gone"]
    (tmp_path / "a" / "run.json").write_text("{broken")
    assert read_lineage(tmp_path / "a")[0].info["unreadable"]


def test_small_and_odd_clips_play(folder, tmp_path):
    clip = moving(3, frames=5, height=33, width=31)
    (tmp_path / "odd.mp4").write_bytes(encode_mp4(clip, 8.0, pixel_format="yuv444p", crf=1))
    shown = decode(playable(tmp_path / "odd.mp4"))
    assert shown.shape[0] == 5
    assert min(shown.shape[1:3]) >= 224
    assert shown.shape[1] % 2 == shown.shape[2] % 2 == 0
    back = shown[:, 4:264:8, 4:248:8][:, :33, :31].astype(int)
    assert abs(back - clip[:, :33, :31]).mean() < 6, "pixels are enlarged as they are"
    large = encode_mp4(moving(1, 3, 240, 256), 8.0)
    (tmp_path / "large.mp4").write_bytes(large)
    assert playable(tmp_path / "large.mp4") == large, "what plays is not encoded again"


# ---- parts ------------------------------------------------------------------------------------------------------------


def test_escaping():
    assert text('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
    assert tag("p", "<", Markup("<b>"), title='"') == '<p title="&quot;">&lt;<b></p>'
    assert text("a\x00\ud800b") == "a\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("value", "said"),
    [(2048, "2,048"), (0.2931, "0.293"), (512.34, "512.3"), (12345.67, "12,345.7"), (0, "0"), (0.0, "0.000"),
     (1.5e-5, "1.5e-05"), (float("nan"), "not a number"), (-3.25, "-3.250"), (True, "yes"), (None, "none")],
)  # fmt: skip
def test_numbers(value, said):
    assert number(value) == said


def test_what_is_better():
    lower = (
        "fvd2048_16f",
        "kvd2048_16f",
        "fvd_videomae2048_16f",
        "fid2048",
        "warping_error_lk",
        "shapes_frechet_handmade256_8f",
    )
    higher = ("video_is2048_16f", "frame_is2048x1", "clipsim_ViT-B-32_16f", "psnr", "shape", "original/order", "size")
    assert {better(name) for name in lower} == {"lower"}
    assert {better(name) for name in higher} == {"higher"}
    assert better("flow_lk") is better("dynamic_degree_lk") is better("anything") is None


def test_ranks():
    def case(key, **scores):
        return Case(key, "", scores, {})

    cases = [
        case("a", order=1.0, fvd=9.0),
        case("b", order=0.0, fvd=10.0),
        case("c", order=1.0, fvd=1.0),
        case("d", flow=1.0),
    ]
    ordered, names = ranked(cases)
    assert [one.key for one in ordered] == ["b", "a", "c"], "a clip without such scores has no rank"
    assert names == ["fvd", "order"]
    assert ranked([case("x"), case("y")])[1] == []
    scaled = [Case(c.key, "", {n: 100 * v - 7 for n, v in c.scores.items()}, {}) for c in cases]
    assert [one.key for one in ranked(scaled)[0]] == ["b", "a", "c"], "the scale of a score does not matter"


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.14, 0.9), (1e-6, 2.0), (-3, 5), (7, 7), (0, 0), (300, 1750), (1e9, 3e9)]
)
def test_axis_holds_its_values(low, high):
    axis = Axis(low, high)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.ticks) <= 12
    assert all(-1e-9 <= axis.share(tick) <= 1 + 1e-9 for tick in axis.ticks)


def test_figures_of_the_paper():
    """Golden values, and rows as long as their columns."""
    tables = {(one["name"], one["protocol"]): one for one in paper()["tables"]}
    assert all(len(row) == 1 + len(one["measures"]) for one in tables.values() for row in one["rows"])
    for figure in paper()["figures"]:
        assert {len(values) for values in figure["series"].values()} == {len(figure["bins"])}

    def ours(name, protocol):
        return next(row[1:] for row in tables[name, protocol]["rows"] if row[0] == "Dysen-VDM")

    assert ours("T1", "ucf101_zero_shot") == ["35.57", "325.42"]
    assert ours("T1", "msrvtt") == ["12.64", "0.3204"]
    assert ours("T2", "ucf101") == ["95.23", "255.42"]
    assert (ours("T4", "ucf101"), ours("T4", "activitynet")) == (["255.42"], ["485.48"])


def test_command(folder, source, tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "vdm.evaluation.report", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    (folder / "report.html").unlink()
    assert run(f"folder={folder}").returncode == 0
    again = (folder / "report.html").read_text(encoding="utf-8")
    assert without_clips(again) == without_clips(source), "the run is the one above the folder"
    for wrong in ([f"folder={tmp_path}"], [], [f"folder={folder}", "each=0"], [f"folder={folder}", f"run={tmp_path}"]):
        done = run(*wrong)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "key:" in done.stderr


@pytest.mark.parametrize(
    "bins",
    [
        ["<3", "3", "4", ">=5", "unknown"],
        ["<=10", "11-20", "21-30", ">30"],
        ["128", "256", "1024"],
        ["\u226410", "10 \u2013 20", "20+"],
    ],
)
def test_bins_are_in_order(bins):
    assert sorted(reversed(bins), key=_place) == bins


def test_bins_of_the_paper_are_ours():
    rows = [
        {"bin": name, "clips": 9, "metrics": {f"fvd{9 + i}_16f": i}} for i, name in enumerate(["<=10", "11-20", ">50"])
    ]
    result = Result(Path(), {"protocol": {"name": "activitynet"}, "breakdowns": {"words": rows}})
    page = Page(breakdowns(result))
    assert page.elements.count("svg") - page.elements.count("span") / 2 == 1, "one plot for all counts of clips"
    labels = [word for word in page.words if word in ("\u226410", "11-20", "10-20", "20-30", ">50")]
    assert labels[:4] == ["\u226410", "11-20", "20-30", ">50"]
    frames = [{"bin": str(n), "metrics": {f"fvd30_{n}f": 1.0 * n, "flow_lk": 0.1}} for n in (128, 256)]
    result = Result(Path(), {"protocol": {"name": "activitynet"}, "breakdowns": {"frames": frames}})
    titles = [name for name in Page(breakdowns(result)).words if name in ("fvd", "flow_lk", "fvd_128f")]
    assert titles == ["fvd", "flow_lk"]


def test_files_of_pages_are_packaged():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for name in ("report", "study"):
        files = [p for p in (ROOT / "vdm" / "evaluation" / name).iterdir() if p.is_file() and p.suffix != ".py"]
        assert files
        assert all(any(p.match(kind) for kind in declared[f"vdm.evaluation.{name}"]) for p in files)
