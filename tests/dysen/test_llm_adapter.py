"""Adapters: they begin as nothing, go to files and back, and fit one model."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("transformers")
pytest.importorskip("peft")

from dysen.llm.adapter import Adapter
from dysen.llm.local import digest, load
from tests.dysen.random_language_model import save
from tests.dysen.test_llm_log_probs import build, questions
from vdm import checkpoint
from vdm.errors import ConfigError, RunError
from vdm.launch import CONF
from vdm.runs import Run

IDS = torch.tensor([[5, 9, 300, 41, 7]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("language_model"))


def trained(folder, targets="all-linear", rank=2):
    """A model with an adapter that does something."""
    _, model = load(Path(folder), "cpu", "float32")
    plain = model(IDS).logits
    torch.manual_seed(0)
    adapter = Adapter(model=model, base=digest(Path(folder)), rank=rank, alpha=6.0, targets=targets)
    assert torch.equal(model(IDS).logits, plain)  # it begins as nothing
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, adapter, plain


def store(root, adapter, name="tuned", **changes):
    folder = root / name
    weights = {f"adapter.{key}": value for key, value in adapter.state_dict().items()}
    checkpoint.save(folder / "checkpoints" / "step-00000001", {"state_dict": weights}, step=1)
    node = {
        "_target_": "dysen.llm.adapter.Adapter",
        "_partial_": True,
        "rank": 2,
        "alpha": 6.0,
        "targets": "all-linear",
    }
    OmegaConf.save(OmegaConf.create({"stage": {"adapter": node | changes}}), folder / "config.yaml")
    Run(folder).update(stage="planner_grpo", state="complete", data="shapes", finished=time.time())
    return folder


def test_off_is_the_frozen_model(folder):
    model, adapter, plain = trained(folder)
    changed = model(IDS).logits
    assert (changed - plain).abs().max() > 0.01
    with adapter.off():
        assert torch.equal(model(IDS).logits, plain)
    assert torch.equal(model(IDS).logits, changed)
    own = {id(p) for p in adapter.parameters()}
    assert own == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in adapter.parameters())


def test_round_trips(folder, tmp_path):
    """Through a run, through a folder, and through peft itself."""
    from peft import PeftModel

    model, adapter, plain = trained(folder)
    expected = model(IDS).logits
    run = store(tmp_path, adapter)
    adapter.export(tmp_path / "adapter", model="any")
    assert {path.name for path in tmp_path.iterdir()} == {"tuned", "adapter"}
    of_run = build(folder, adapter="tuned", output_root=str(tmp_path))
    of_folder = build(folder, adapter=str(tmp_path / "adapter"))
    assert not any(p.requires_grad for p in of_run.model.parameters())
    for found in (of_run.model, of_folder.model):
        torch.testing.assert_close(found(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    theirs = PeftModel.from_pretrained(load(Path(folder), "cpu", "float32")[1], str(tmp_path / "adapter"))
    torch.testing.assert_close(theirs(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    without = build(folder)
    assert "adapter" not in without.fingerprint()
    assert of_run.fingerprint() == of_folder.fingerprint() != without.fingerprint()
    assert of_run.answer(questions(1)) == of_folder.answer(questions(1)) != without.answer(questions(1))
    assert {path.name for path in (run / "checkpoints" / "step-00000001" / "weights").iterdir()} == {
        "adapter.safetensors"
    }


def test_a_checkpoint_is_small_beside_the_model():
    """Weights, their average and two moments, at the default rank, of a model with 135 million weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    node = OmegaConf.load(CONF / "planner.tune" / "grpo.yaml").stage.adapter
    sizes = {"vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "intermediate_size": 1536, "tie_word_embeddings": True}  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
        whole = model.num_parameters()
        adapter = Adapter(model=model, base="", rank=node.rank, alpha=node.alpha, targets=node.targets)
    assert whole > 130e6
    assert 4 * sum(p.numel() for p in adapter.parameters()) < 0.05 * whole


def test_some_layers_only(folder):
    _, adapter, _ = trained(folder, targets=["q_proj", "v_proj"])
    assert {name.split("/")[-3] for name, _ in adapter.named_parameters()} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="targets"):
        trained(folder, targets=["no_such_layer"])


def test_an_adapter_fits_its_own_model_only(folder, tmp_path):
    _, adapter, _ = trained(folder)
    store(tmp_path, adapter)
    other = save(tmp_path / "other", initializer_range=0.1)
    with pytest.raises(RunError, match="another model"):
        build(other, adapter="tuned", output_root=str(tmp_path))
    larger = save(tmp_path / "larger", hidden_size=32)
    adapter.export(tmp_path / "adapter", model="any")
    with pytest.raises(RunError, match="another model"):
        build(larger, adapter=str(tmp_path / "adapter"))
    store(tmp_path, adapter, "odd", rank="${oc.env:HOME}")
    store(tmp_path, adapter, "zero", rank=0)
    for name in ("odd", "zero"):
        with pytest.raises((ConfigError, RunError)):
            build(folder, adapter=name, output_root=str(tmp_path))
    with pytest.raises(RunError, match="no such run"):
        build(folder, adapter="absent", output_root=str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 4}},
        {"modules_to_save": ["lm_head"]},
    ],
)
def test_other_kinds_of_adapters_are_refused(folder, tmp_path, change):
    _, adapter, _ = trained(folder)
    adapter.export(tmp_path / "adapter", model="any")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match="plain LoRA"):
        build(folder, adapter=str(tmp_path / "adapter"))


def test_a_damaged_folder(folder, tmp_path):
    _, adapter, _ = trained(folder)
    adapter.export(tmp_path / "adapter", model="any")
    for name, content in (("adapter_model.safetensors", b"x"), ("adapter_config.json", b"[]")):
        shutil.copytree(tmp_path / "adapter", tmp_path / name)
        (tmp_path / name / name).write_bytes(content)
        with pytest.raises(RunError, match="cannot be read"):
            build(folder, adapter=str(tmp_path / name))
