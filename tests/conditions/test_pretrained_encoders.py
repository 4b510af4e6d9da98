"""CLIP, OpenCLIP and T5 from files: equal to the libraries they come from, and clear about what is missing."""

import builtins
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from vdm import config
from vdm.conditions.encoders.clip import ClipEncoder
from vdm.conditions.encoders.open_clip import OpenClipEncoder
from vdm.conditions.encoders.t5 import T5Encoder
from vdm.conditions.presence import encoders_are_there
from vdm.conditions.text import TextCondition
from vdm.errors import ConfigError, RunError
from vdm.types import LatentShape

transformers = pytest.importorskip("transformers")
CONDITIONS = sorted((Path(__file__).parents[2] / "conf" / "condition").glob("text*.yaml"))
CAPTIONS = ["a red circle", "", "🦉 ok", "one two three four five six seven eight nine ten " * 4]
LENGTH = 20
SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def byte_letters():
    """CLIP's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def clip_tokenizer(folder):
    letters = byte_letters()
    merges = [("r", "e"), ("re", "d</w>"), ("o", "k</w>")]
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary


def clip_config(vocabulary, **changes):
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1, "pad_token_id": 1}
    settings = SMALL | {"vocab_size": len(vocabulary), "max_position_embeddings": LENGTH} | ends
    return transformers.CLIPTextConfig(**(settings | changes))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    network = transformers.CLIPTextModel(clip_config(clip_tokenizer(folder)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "▁", *(chr(i) for i in range(97, 123)), "▁red", "▁circle"]
    tokenizer = Tokenizer(models.Unigram([(word, -2.0 - (len(word) == 1)) for word in words], unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    ends = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)
    torch.manual_seed(0)
    settings = {"vocab_size": len(words), "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    transformers.T5EncoderModel(transformers.T5Config(**settings)).save_pretrained(folder)
    return folder


def clip(folder, **changes):
    settings = {"folder": str(folder), "layer": "last", "length": LENGTH, "dtype": "float32", "is_trained": False}
    return ClipEncoder(**(settings | changes))


def t5(folder, **changes):
    settings = {"folder": str(folder), "length": 12, "dtype": "float32", "is_trained": False}
    return T5Encoder(**(settings | changes))


# ---- CLIP of transformers ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_clip_equals_transformers(clip_folder, layer):
    encoder = clip(clip_folder, layer=layer)
    values, mask = encoder(CAPTIONS)
    theirs = transformers.CLIPTextModel.from_pretrained(clip_folder)
    words = transformers.CLIPTokenizer.from_pretrained(clip_folder)
    read = words(CAPTIONS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    out = theirs(read.input_ids, output_hidden_states=True)
    expected = out.last_hidden_state
    if layer == "penultimate":
        expected = getattr(theirs, "text_model", theirs).final_layer_norm(out.hidden_states[-2])
        assert not torch.allclose(expected, out.last_hidden_state, atol=1e-2), "the layers differ"
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)
    assert mask is None
    assert values.shape == (4, LENGTH, 24)
    assert encoder.width == 24


@torch.no_grad()
def test_clip_reads_the_text_encoder_of_a_diffusers_folder(clip_folder, tmp_path):
    transformers.CLIPTextModel.from_pretrained(clip_folder).save_pretrained(tmp_path / "text_encoder")
    clip_tokenizer(tmp_path / "tokenizer")
    assert clip(tmp_path)(CAPTIONS)[0].equal(clip(clip_folder)(CAPTIONS)[0])


@torch.no_grad()
def test_clip_reads_the_names_of_older_versions_and_leaves_the_image_half(clip_folder, tmp_path):
    clip_tokenizer(tmp_path)
    tensors = load_file(clip_folder / "model.safetensors")
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    tensors["vision_model.embeddings.class_embedding"] = torch.zeros(24)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    text = json.loads((clip_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": text, "projection_dim": 8}))
    assert clip(tmp_path)(CAPTIONS)[0].equal(clip(clip_folder)(CAPTIONS)[0])


def test_clip_can_be_trained_and_then_belongs_to_checkpoints(clip_folder):
    text = TextCondition(encoder=clip(clip_folder, layer="penultimate", is_trained=True), pooled=False, drop_prob=0.1)
    text.say(CAPTIONS).tokens["text"].values.square().sum().backward()
    assert all(parameter.grad is not None for parameter in text.parameters()), "nothing idle: DDP would wait for it"
    assert len(list(text.state_dict())) > 20


# ---- T5 -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_t5_equals_transformers_and_hides_padding(t5_folder):
    captions = ["red circle", "", "a b c d e f g h i j k l m", "🦉"]
    values, mask = t5(t5_folder)(captions)
    theirs = transformers.T5EncoderModel.from_pretrained(t5_folder)
    words = transformers.AutoTokenizer.from_pretrained(t5_folder)
    for row, caption in enumerate(captions):
        read = words(caption, truncation=True, max_length=12, return_tensors="pt")
        n = read.input_ids.shape[1]
        assert mask[row].sum() == n
        torch.testing.assert_close(
            values[row, :n], theirs(read.input_ids, read.attention_mask).last_hidden_state[0], rtol=0, atol=1e-5
        )
    assert mask[1].sum() == 1, "of the empty caption the end is seen"


def test_kinds_are_not_confused(clip_folder, t5_folder):
    with pytest.raises(ConfigError, match=r"clip_text_model(.|\n)*allowed: t5"):
        t5(clip_folder)
    with pytest.raises(ConfigError, match=r"t5(.|\n)*allowed: clip"):
        clip(t5_folder)


# ---- folders that are not what they should be -----------------------------------------------------------------------


def test_missing_folders_say_what_to_put_there(tmp_path, clip_folder):
    with pytest.raises(ConfigError, match=r"nowhere has no config.json(.|\n)*put the model's folder at .*nowhere"):
        clip(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(ConfigError, match="tokenizer.json"):
        clip(tmp_path)
    clip_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        clip(tmp_path)  # no weights
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ConfigError, match="cannot be read"):
        clip(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        clip(tmp_path)


def test_incomplete_weights_are_not_filled_up_with_random_ones(clip_folder, tmp_path):
    clip_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    tensors = load_file(clip_folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight")))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"1 missing, such as .*fc1"):
        clip(tmp_path)


def test_settings_of_an_encoder_are_checked(clip_folder):
    with pytest.raises(ConfigError, match=f"1 to {LENGTH}"):
        clip(clip_folder, length=LENGTH + 1)
    with pytest.raises(ConfigError, match="float32"):
        clip(clip_folder, dtype="bfloat16", is_trained=True)
    assert clip(clip_folder, dtype="bfloat16")(["a"])[0].dtype == torch.bfloat16


# ---- open_clip --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory):
    module = pytest.importorskip("open_clip")
    vision = {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": LENGTH, "vocab_size": 49408, "width": 24, "heads": 4, "layers": 3}
    folder = tmp_path_factory.mktemp("models")
    for name, extra in (("tiny-text", {}), ("tiny-text-quickgelu", {"quick_gelu": True})):
        settings = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text} | extra
        (folder / f"{name}.json").write_text(json.dumps(settings))
    module.add_model_config(folder)
    return module


def write_open_clip(open_clip, path, model="tiny-text", custom=False):
    torch.manual_seed(0)
    network = open_clip.create_model(model, force_custom_text=custom).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tensors = network.state_dict()
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    return network


def from_open_clip(file, **changes):
    settings = {"model": "tiny-text", "weights": str(file), "folder": "nowhere", "layer": "last", "dtype": "float32"}
    return OpenClipEncoder(**(settings | {"is_trained": False} | changes))


@torch.no_grad()
@pytest.mark.parametrize("model", ["tiny-text", "tiny-text-quickgelu"])
@pytest.mark.parametrize("custom", [False, True], ids=["plain", "custom"])
@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
def test_open_clip_equals_its_own_text_path(open_clip, tmp_path, model, custom, file):
    theirs = write_open_clip(open_clip, tmp_path / file, model, custom)
    encoder = from_open_clip(tmp_path / file, model=model)
    values, mask = encoder(CAPTIONS)
    ids = open_clip.get_tokenizer(model)(CAPTIONS)
    assert encoder.tokenize(CAPTIONS).ids.equal(ids)
    end = values[torch.arange(4), ids.argmax(1)]
    projection = theirs.text.text_projection if custom else theirs.text_projection
    torch.testing.assert_close(end @ projection, theirs.encode_text(ids), rtol=0, atol=1e-4)
    assert mask is None
    assert encoder.width == 24


@torch.no_grad()
@pytest.mark.parametrize("layer", ["last", "penultimate"])
def test_open_clip_layers(open_clip, tmp_path, layer):
    theirs = write_open_clip(open_clip, tmp_path / "w.safetensors", custom=True).text
    heard = {}
    for i, block in enumerate(theirs.transformer.resblocks):
        block.register_forward_hook(lambda module, given, out, i=i: heard.update({i: out}))
    theirs(open_clip.get_tokenizer("tiny-text")(CAPTIONS))
    expected = theirs.ln_final(heard[2 if layer == "last" else 1])
    values, _ = from_open_clip(tmp_path / "w.safetensors", layer=layer)(CAPTIONS)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_open_clip_trained_has_nothing_idle(open_clip, tmp_path):
    write_open_clip(open_clip, tmp_path / "w.pt")
    encoder = from_open_clip(tmp_path / "w.pt", layer="penultimate", is_trained=True)
    encoder(CAPTIONS)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_published_weights_are_found_by_name_and_never_downloaded(open_clip, tmp_path, monkeypatch):
    for name in ("download_pretrained", "download_pretrained_from_hf", "download_pretrained_from_url"):
        monkeypatch.setattr(f"open_clip.pretrained.{name}", lambda *a, **k: pytest.fail("a download"))
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *a, **k: pytest.fail("a download"))
    settings = {"model": "ViT-H-14", "weights": "laion2b_s32b_b79k", "folder": str(tmp_path), "layer": "penultimate"}
    with pytest.raises(
        ConfigError, match=r"CLIP-ViT-H-14-laion2B-s32B-b79K at .*ViT-H-14_laion2b_s32b_b79k\.safetensors"
    ):
        from_open_clip("", **settings)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-text", {"fitted": {"hf_hub": "some/where/"}})
    write_open_clip(open_clip, tmp_path / "tiny-text_fitted.safetensors")
    found = from_open_clip("fitted", folder=str(tmp_path))
    assert found.fingerprint() == from_open_clip(tmp_path / "tiny-text_fitted.safetensors").fingerprint()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: str(tmp_path / "cached.pt"))
    write_open_clip(open_clip, tmp_path / "cached.pt")
    assert from_open_clip("fitted", folder="nowhere").fingerprint() == found.fingerprint()


def test_published_weights_bring_their_activation(open_clip, tmp_path, monkeypatch):
    tag = {"hf_hub": "some/where/", "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-text", {"fitted": tag})
    write_open_clip(open_clip, tmp_path / "tiny-text_fitted.safetensors")
    named = from_open_clip("fitted", folder=str(tmp_path))(CAPTIONS)[0]
    file = tmp_path / "tiny-text_fitted.safetensors"
    assert named.equal(from_open_clip(file, model="tiny-text-quickgelu")(CAPTIONS)[0])
    assert not torch.allclose(named, from_open_clip(file)(CAPTIONS)[0])


def test_open_clip_mistakes(open_clip, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'ViT-H-14'"):
        from_open_clip("x", model="ViT-H14")
    with pytest.raises(ConfigError, match=r"neither a file nor a name(.|\n)*laion2b_s32b_b79k"):
        from_open_clip("laion9b", model="ViT-H-14")
    for model in ("roberta-ViT-B-32", "coca_ViT-B-32", "ViT-B-16-SigLIP"):
        with pytest.raises(ConfigError, match="not read here"):
            from_open_clip("x", model=model)
    with pytest.raises(ConfigError, match="open_clip_config.json"):
        from_open_clip("x", model="local-dir:nowhere")
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(ConfigError, match="cannot be read"):
            from_open_clip(tmp_path / name)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_open_clip(tmp_path / "pickled.pt")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="0 matched"):
        from_open_clip(tmp_path / "other.safetensors")


def test_open_clip_from_its_own_folder(open_clip, tmp_path):
    for content in ("{", "[]", '{"model_cfg": {"text_cfg": {}}}'):
        (tmp_path / "open_clip_config.json").write_text(content)
        with pytest.raises(ConfigError, match="no configuration of open_clip"):
            from_open_clip("x", model=f"local-dir:{tmp_path}")
    settings = open_clip.get_model_config("tiny-text")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    write_open_clip(open_clip, tmp_path / "w.safetensors")
    local = from_open_clip(tmp_path / "w.safetensors", model=f"local-dir:{tmp_path}")
    assert local(CAPTIONS)[0].equal(from_open_clip(tmp_path / "w.safetensors")(CAPTIONS)[0])


# ---- all of them ----------------------------------------------------------------------------------------------------


@pytest.fixture
def encoders(clip_folder, t5_folder, open_clip, tmp_path):
    write_open_clip(open_clip, tmp_path / "w.safetensors")
    return [clip(clip_folder), t5(t5_folder), from_open_clip(tmp_path / "w.safetensors")]


@torch.no_grad()
def test_any_prompt_is_read_by_every_encoder(encoders, caplog):
    odd = ["", "x" * 10_000, "word " * 2_000, "🦉\ud83e\x00", "移动的红色圆圈", "<|endoftext|>"]
    for encoder in encoders:
        with caplog.at_level(logging.WARNING):
            values, _ = encoder(odd)
            encoder(odd)
        assert values.isfinite().all()
        assert values.shape[:2] == (6, encoder.length)
        said = [record for record in caplog.records if "its end is not heard" in record.message]
        assert len(said) == 1, type(encoder).__name__
        caplog.clear()
        encoder._has_warned = False
        encoder(["a", "", "red"])
        assert not caplog.records, "what fits is not reported"


def test_frozen_ones_are_in_no_checkpoint_and_say_one_null(encoders):
    for encoder in encoders:
        text = TextCondition(encoder=encoder, pooled=False, drop_prob=0.1)
        assert text.state_dict() == {}
        null = text.null(2, LatentShape(4, 2, 2, 2)).tokens["text"]
        assert null.values.equal(encoder([""])[0].expand(2, -1, -1))
        assert not null.values.requires_grad
        assert encoder.fingerprint() == encoder.fingerprint()


def test_an_absent_package_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] in ("open_clip", "transformers"):
            raise ImportError(name)
        return real(name, *rest)

    for name in ("open_clip", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"open_clip(.|\n)*pip install -e \.\[clip\]"):
        from_open_clip("x")
    with pytest.raises(ConfigError, match=r"transformers(.|\n)*pip install -e \.\[diffusers\]"):
        clip(tmp_path)


@pytest.mark.parametrize("path", CONDITIONS, ids=lambda p: p.stem)
def test_every_choice_passes_the_checks_and_is_built_or_says_what_is_missing(path, tmp_path):
    cfg = OmegaConf.create({"paths": {"weights": str(tmp_path)}, "condition": OmegaConf.load(path)})
    resolved = config.resolve(cfg)
    config.check_resolved(resolved)
    assert set(resolved["condition"]) == {path.stem.split("_")[0]}, "variants keep the name of their condition"
    if path.stem == "text":
        settings = {"_target_": "vdm.conditions.base.ConditionSet", "members": "${condition}"}
        cfg.conditions = settings | {"joint_drop_prob": 0.0, "joint_keep_prob": 0.0}
        config.check_resolved({"conditions": config.resolve(cfg)["conditions"]})
        conditions = instantiate(cfg.conditions, _convert_="all")
        said = conditions.members["text"].say(["a red circle"])
        assert said.tokens["text"].values.shape == (1, 16, conditions.streams["text"])
        return
    with pytest.raises(InstantiationException) as caught:
        instantiate(cfg.condition.text, _convert_="all")
    assert isinstance(caught.value.__cause__, ConfigError)
    assert str(tmp_path) in str(caught.value)


def check_files(**encoder):
    family = encoder.pop("family")
    encoders_are_there(condition={"text": {"encoder": {"_target_": f"vdm.conditions.encoders.{family}.X", **encoder}}})


def test_missing_files_are_known_before_anything_is_built(clip_folder, tmp_path, monkeypatch):
    check_files(family="clip", folder=str(clip_folder))
    check_files(family="open_clip", weights="laion2b_s32b_b79k")
    check_files(family="small")
    encoders_are_there(condition={"depth": {"_target_": "vdm.conditions.structure.X"}, "pace": None})
    with pytest.raises(ConfigError, match=r"condition.text.encoder.folder"):
        check_files(family="t5", folder=str(tmp_path))
    with pytest.raises(ConfigError, match=r"condition.text.encoder.weights"):
        check_files(family="open_clip", weights=str(tmp_path / "absent.pt"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e \.\[clip\]"):
        check_files(family="open_clip", weights="laion2b_s32b_b79k")


def test_that_check_is_light():
    code = "import sys, vdm.conditions.presence; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
