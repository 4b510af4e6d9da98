"""The fine-tuned rows of the paper: what each says of itself, and that it composes with either dataset."""

import pytest
from test_finetune import composed

from vdm import config

ROWS = {"without_dysen": None, "without_imagination": "without_imagination", "without_window": "without_window",
        "random_examples": "random_examples", "rgnn": "dysen"}  # fmt: skip


def resolved(*names):
    settings = config.resolve(composed(f"experiment=[{','.join(names)}]"))
    for name in ("data", "devices", "encoders", "plans"):  # ask for shards, GPUs and files
        settings["checks"].pop(name, None)
    config.check_resolved(settings)
    return settings


@pytest.mark.parametrize("data", ["ucf101", "activitynet"])
def test_rows_of_a_table_differ_in_what_they_say(data):
    base = resolved(f"finetune_{data}")
    assert (base["run"]["id"], base["data"]["name"]) == (f"{data}-dysen", data)
    seen = {base["run"]["id"]}
    for row, plans in ROWS.items():
        settings = resolved(f"finetune_{data}", row)
        assert settings["run"]["id"] == f"{data}-{row.replace('_', '-')}"
        seen.add(settings["run"]["id"])
        root = settings["data"]["root"]
        for key, split in (("planned", "train"), ("planned_val", "val")):
            folder = (settings["stage"][key] or {}).get("folder")
            assert folder == (f"{root}/{split}/plans/{plans}" if plans else None)
        for group in ("trainer", "callbacks"):
            assert settings[group] == base[group], "equal budgets"
        assert {k: v for k, v in settings["data"].items()} == base["data"]
        assert settings["stage"]["optimizer"] == base["stage"]["optimizer"]
    assert len(seen) == 1 + len(ROWS)


def test_from_scratch_has_no_parent():
    settings = resolved("ucf101_from_scratch")
    assert [name for name, wanted in settings["init"].items() if wanted is not None] == ["autoencoder"]
    assert set(settings["condition"]) == {"text", "scene_graph"}
    assert settings["stage"]["planned"]["folder"].endswith("plans/dysen")
