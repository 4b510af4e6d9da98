"""Pretrained networks from files of the user: nothing is downloaded, and what is missing is named.

A folder is one of transformers, or a diffusers pipeline with `text_encoder` and `tokenizer` in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vdm.conditions.encoders.base import DTYPES, Dtype
from vdm.conditions.presence import package_is_absent, text_folders
from vdm.errors import ConfigError, RunError

KEY = "condition.text.encoder"


def from_folder(folder: str, dtype: Dtype, is_trained: bool) -> tuple[Any, nn.Module]:
    """Tokenizer and text encoder."""
    check_dtype(dtype, is_trained)
    try:
        from transformers import AutoConfig, AutoModelForTextEncoding, AutoTokenizer, CLIPTextModel
        from transformers import logging as its_logging
    except ImportError:
        raise package_is_absent("transformers", "diffusers", KEY) from None
    weights, tokenizer = text_folders(Path(folder), KEY)
    verbosity = its_logging.get_verbosity()
    its_logging.set_verbosity_error()  # it reports the image half of CLIP as a problem; what matters is checked below
    try:
        kind = AutoConfig.from_pretrained(weights, local_files_only=True).model_type
        model = CLIPTextModel if kind in ("clip", "clip_text_model") else AutoModelForTextEncoding
        network, report = model.from_pretrained(
            weights, local_files_only=True, dtype=DTYPES[dtype], output_loading_info=True
        )
        words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except Exception as error:  # a damaged folder makes these libraries raise nearly anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "copy the whole folder again: config.json, the weights (model.safetensors) and the tokenizer's files"
        raise ConfigError(
            "this folder cannot be read", key=f"{KEY}.folder", got=f"{folder}: {reason}", remedy=remedy
        ) from error
    finally:
        its_logging.set_verbosity(verbosity)
    missing = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if missing:
        got = f"{len(missing)} missing, such as {', '.join(missing[:3])}"
        raise RunError("the weights are not those of this encoder", key=f"{KEY}.folder", got=f"{folder}: {got}")
    return words, network


def checked_kind(network: nn.Module, folder: str, kinds: tuple[str, ...]) -> None:
    if network.config.model_type not in kinds:
        raise ConfigError(
            "this folder holds another kind of text encoder",
            key=f"{KEY}.folder",
            got=f"{folder}: {network.config.model_type}",
            allowed=kinds,
        )


def check_dtype(dtype: Dtype, is_trained: bool) -> None:
    if is_trained and dtype != "float32":
        remedy = "set dtype=float32; trainer.precision decides what training computes in"
        raise ConfigError(
            "the weights of an encoder that is trained are float32", key=f"{KEY}.dtype", got=dtype, remedy=remedy
        )


def checked_length(length: int, longest: int) -> int:
    if length > longest:
        raise ConfigError("this encoder reads fewer tokens", key=f"{KEY}.length", got=length, allowed=f"1 to {longest}")
    return length


def padded_ids(words: Any, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Ids and mask `b n` of a tokenizer of transformers, and which captions were cut."""
    read = words(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    mask = read["attention_mask"].bool()
    full = [i for i, row in enumerate(mask) if row.all()]
    cut = tuple(i for i in full if len(words(captions[i], verbose=False)["input_ids"]) > length)
    return read["input_ids"], mask, cut


def open_clip_module() -> Any:
    try:
        import open_clip
    except ImportError:
        raise package_is_absent("open_clip", "clip", KEY) from None
    return open_clip
