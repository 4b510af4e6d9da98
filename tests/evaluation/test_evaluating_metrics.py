"""evaluate.py with metrics that compare sets: what is skipped has its reason in metrics.json, numbers their facts."""

import json
import logging

import pytest
from moving_clips import ClipNetwork, script
from test_generation import ask, root  # noqa: F401  # a run with random weights

FRECHET = "shapes_frechet_handmade"


@pytest.fixture(scope="module")
def results(root, shapes_root):  # noqa: F811
    def run(*overrides):
        numbers = ask(root, shapes_root, "protocol.shown=0", *overrides)
        return numbers, json.loads((root / "model" / "evaluation" / "shapes" / "metrics.json").read_text())

    return run


def test_numbers_skipped_and_facts(results, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    chosen = f"metric=[{FRECHET},fvd,clipsim,flicker,psnr,shapes_oracle]"
    numbers, result = results(chosen, f"paths.weights={tmp_path}")
    name = f"{FRECHET}6_8f"
    assert numbers[name] > 1, "noise is not what the real clips are"
    assert numbers[f"{name}/low"] < numbers[name] < numbers[f"{name}/high"]
    assert numbers[f"{name}/floor_clips"] == 3
    assert numbers["flicker"] > numbers["original/flicker"] > 0
    assert "original/psnr" not in numbers
    assert numbers["original/colour"] == 1
    assert result["metrics"] == numbers
    assert set(result["skipped"]) == {"fvd", "clipsim"}
    assert "16 are needed" in result["skipped"]["fvd"]
    assert str(tmp_path) in result["skipped"]["clipsim"]
    assert not [key for key in numbers if "fvd" in key or "clipsim" in key]
    assert "clipsim" in caplog.text
    assert "clipsim will be skipped" in caplog.text, "said before anything is sampled"
    assert caplog.text.index("will be skipped") < caplog.text.index("6 clips. Published")
    assert result["measured"][FRECHET]["clips"] == result["measured"][FRECHET]["real_clips"] == 6
    assert result["reference"] is None
    assert results(chosen, f"paths.weights={tmp_path}")[1] == result

    network = script(ClipNetwork(), tmp_path / "i3d.pt").file
    given = [f"metric.fvd.network.file={network}", "metric.fvd.network.sha256=null", "metric.fvd.frames=8"]
    reference = ["protocol.reference_split=train", "protocol.reference_clips=40"]
    _, other = results(f"metric=[{FRECHET},fvd]", *given, *reference)
    assert other["skipped"] == {}
    assert other["metrics"]["fvd6_8f"] > 0
    assert other["measured"]["fvd"]["network"] == "i3d.pt"
    assert other["measured"]["fvd"]["frames"] == 8
    assert other["reference"]["split"] == "train"
    assert other["measured"][FRECHET]["real_clips"] == 40
    assert other["metrics"][f"{name}/floor_clips"] == 6
    assert other["metrics"][name] != pytest.approx(numbers[name])
