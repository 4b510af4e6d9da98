"""Where the files of a pretrained text encoder must lie; light, so that what is missing is said before anything is built."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdm.errors import ConfigError

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer_config.json")
PACKAGES = {
    "clip": ("transformers", "diffusers"),
    "t5": ("transformers", "diffusers"),
    "open_clip": ("open_clip", "clip"),
}


def encoders_are_there(*, condition: Mapping[str, Any]) -> None:
    """For every condition with a pretrained text encoder: its package, and its folder or file."""
    for name, settings in condition.items():
        encoder = (settings or {}).get("encoder") or {}
        family = str(encoder.get("_target_", "")).split(".")[-2:-1]
        if not family or family[0] not in PACKAGES:
            continue
        key = f"condition.{name}.encoder"
        package, extra = PACKAGES[family[0]]
        if importlib.util.find_spec(package) is None:
            raise package_is_absent(package, extra, key)
        if family[0] != "open_clip":
            text_folders(Path(encoder["folder"]), key)
        elif Path(encoder["weights"]).suffix and not Path(encoder["weights"]).is_file():
            raise ConfigError("this file is not there", key=f"{key}.weights", got=encoder["weights"])


def text_folders(folder: Path, key: str) -> tuple[Path, Path]:
    """Weights and tokenizer in a folder of transformers, or in a diffusers pipeline's `text_encoder` and `tokenizer`."""
    if (folder / "text_encoder").is_dir():
        weights, tokenizer = folder / "text_encoder", folder / "tokenizer"
    else:
        weights = tokenizer = folder
    for path, names in ((weights, ("config.json",)), (tokenizer, TOKENIZER_FILES)):
        if not any((path / name).is_file() for name in names):
            raise ConfigError(
                "no text encoder is found here, and nothing is downloaded",
                key=f"{key}.folder",
                got=f"{path} has no {' or '.join(names)}",
                remedy=f"put the model's folder at {folder} or name another one: {key}.folder=<folder>; "
                "a diffusers folder with text_encoder and tokenizer in it will do",
            )
    return weights, tokenizer


def package_is_absent(package: str, extra: str, key: str) -> ConfigError:
    remedy = f"pip install -e .[{extra}], or use condition=text, which needs nothing"
    return ConfigError(f"this text encoder needs the package {package}", key=key, remedy=remedy)
