"""Text transformers of open_clip, by any of its model names, with weights from a file.

ViT-H-14 with laion2b_s32b_b79k, read before its last layer, is the encoder of Stable Diffusion 2 and of ModelScope's
text-to-video. Only the text half is built and read.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vdm.checkpoint import load_weights
from vdm.conditions.encoders.base import DTYPES, Dtype, TextEncoder, TextTokens
from vdm.conditions.encoders.local import KEY, check_dtype, open_clip_module
from vdm.errors import ConfigError, suggest

LOCAL = "local-dir:"
PARTS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "cls_emb")
# The smallest picture half: a model is built of two, and only the other one is kept.
NO_VISION = {"layers": 1, "width": 32, "head_width": 32, "patch_size": 16, "image_size": 16}


class OpenClipEncoder(TextEncoder):
    """Every token is seen, padding as well.

    Args:
        model: a name of open_clip, or `local-dir:<folder>` with open_clip_config.json in it.
        weights: a checkpoint file, or the name open_clip has for published weights; these are looked for in `folder`
            and in the cache of Hugging Face.
        folder: where published weights lie.
        layer: last, or the one before, in both cases with the final norm.
    """

    def __init__(
        self,
        *,
        model: str,
        weights: str,
        folder: str,
        layer: Literal["last", "penultimate"],
        dtype: Dtype,
        is_trained: bool,
    ):
        open_clip = open_clip_module()
        check_dtype(dtype, is_trained)
        config = _config(open_clip, model)
        text = config["text_cfg"]
        published = {} if model.startswith(LOCAL) else open_clip.get_pretrained_cfg(model, weights)
        file = _find(open_clip, model, weights, folder, published)
        super().__init__(width=text["width"], length=text.get("context_length", 77), is_trained=is_trained)
        self.model, self.layer, self.dtype = model, layer, dtype
        quick_gelu = config.get("quick_gelu", False) or published.get("quick_gelu", False)
        network = open_clip.CustomTextCLIP(
            embed_dim=config["embed_dim"], vision_cfg=NO_VISION, text_cfg=text, quick_gelu=quick_gelu
        ).text
        network.text_projection = None  # of the pooled vector, which nobody reads
        load_weights(network, _text_half(file), source=f"{KEY}.weights")
        if layer == "penultimate":
            network.transformer.resblocks = network.transformer.resblocks[:-1]
        self.words = open_clip.SimpleTokenizer(context_length=self.length, **text.get("tokenizer_kwargs", {}))
        self.network = network.to(DTYPES[dtype])

    def to_ids(self, captions: Sequence[str]) -> TextTokens:
        ids = self.words(list(captions), context_length=self.length)
        return TextTokens(ids, None, tuple(i for i, caption in enumerate(captions) if self._is_cut(ids[i], caption)))

    def embed(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        x = self.network.token_embedding(ids) + self.network.positional_embedding
        return self.network.ln_final(self.network.transformer(x, attn_mask=self.network.attn_mask))  # b n d

    def settings(self) -> dict[str, Any]:
        return {"model": self.model, "layer": self.layer, "dtype": self.dtype}

    def _is_cut(self, ids: Tensor, caption: str) -> bool:
        """A full row, of which the text has more than fits between start and end."""
        return bool(ids[-1] != 0) and len(self.words.encode(caption)) > self.length - 2


def _config(open_clip: Any, model: str) -> dict[str, Any]:
    if model.startswith(LOCAL):
        file = Path(model.removeprefix(LOCAL)) / "open_clip_config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            config = config.get("model_cfg", config)
            config["text_cfg"]["width"], config["embed_dim"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                "this is no configuration of open_clip", key=f"{KEY}.model", got=f"{file}: {error!r}"
            ) from None
    elif model in open_clip.list_models():
        config = open_clip.get_model_config(model)
    else:
        names = open_clip.list_models()
        raise ConfigError(
            "open_clip has no such model",
            key=f"{KEY}.model",
            got=model,
            allowed=f"{len(names)} names (open_clip.list_models()), or {LOCAL}<folder>",
            remedy=suggest(model, names) or "ViT-L-14 and ViT-H-14 are the usual ones",
        )
    text = config["text_cfg"]
    foreign = [name for name in ("hf_model_name", "hf_tokenizer_name", "embed_cls") if text.get(name)]
    if foreign or "siglip" in model.lower():
        raise ConfigError(
            "the text half of this model is not read here",
            key=f"{KEY}.model",
            got=f"{model}, with {foreign[0] if foreign else 'a tokenizer of its own'}",
            allowed="models with CLIP's tokenizer and transformer",
            remedy="use another model, or condition=text_clip_l or text_t5 with a local folder",
        )
    return config


def _find(open_clip: Any, model: str, weights: str, folder: str, published: dict[str, Any]) -> Path:
    """The file with the weights, on this machine."""
    if Path(weights).is_file():
        return Path(weights)
    wanted = [Path(folder) / f"{model}_{weights}{suffix}" for suffix in (".safetensors", ".bin", ".pt")]
    if not published:
        raise ConfigError(
            "these weights are neither a file nor a name that open_clip has for this model",
            key=f"{KEY}.weights",
            got=weights,
            allowed=["a path", *open_clip.list_pretrained_tags_by_model(model)],
        )
    found = next((path for path in (*wanted, *_cached(published)) if path.is_file()), None)
    if found is None:
        origin = published.get("hf_hub", "").strip("/") or published.get("url", "")
        raise ConfigError(
            "the weights of the text encoder are not on this machine, and nothing is downloaded",
            key=f"{KEY}.weights",
            got=weights,
            remedy=f"put the checkpoint of {origin} at {wanted[0]} (or .bin), or name a file: {KEY}.weights=<file>",
        )
    return found


def _cached(published: dict[str, Any]) -> list[Path]:
    """Where a download of Hugging Face would have left them."""
    repository, file = os.path.split(published.get("hf_hub", ""))
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return []
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    found = [try_to_load_from_cache(repository, name) for name in names] if repository else []
    return [Path(path) for path in found if isinstance(path, str)]


def _text_half(path: Path) -> dict[str, Tensor]:
    """The tensors of the text transformer in either layout of open_clip."""
    try:
        tensors = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        AttributeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).strip().splitlines()[0][:200]
        remedy = "it must be a state dict of open_clip, safetensors or of torch.save; not a TorchScript archive"
        raise ConfigError(
            "this checkpoint cannot be read", key=f"{KEY}.weights", got=f"{path}: {reason}", remedy=remedy
        ) from None
    return tensors


def _text_name(name: str) -> str | None:
    name = name.removeprefix("module.").removeprefix("text.")
    return name if name.startswith(PARTS) else None


def _safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {own: file.get_tensor(name) for name in file.keys() if (own := _text_name(name))}  # noqa: SIM118


def _torch_file(path: Path) -> dict[str, Tensor]:
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    stored = stored.get("state_dict", stored)
    return {own: tensor for name, tensor in stored.items() if (own := _text_name(name))}
