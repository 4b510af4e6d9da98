"""A LoRA (Hu et al., 2022) in a local language model: small matrices beside its own, which stay as they are.

With the matrices switched off the model is the one it was, so nobody needs a second copy. peft puts them in, and its format
is one that other programs read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vdm import checkpoint, restore, runs
from vdm.bounds import PositiveFloat, PositiveInt
from vdm.errors import ConfigError, RunError

STAGE = "planner_grpo"  # whose runs hold one
NAME = "default"  # as peft calls the only one
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of all names in files of peft
KNOWN = {"r", "lora_alpha", "target_modules", "use_rslora"}  # what is read of the settings of others
INERT = {"lora_dropout", "init_lora_weights", "inference_mode", "peft_type", "task_type", "base_model_name_or_path",
         "revision", "peft_version", "auto_mapping", "megatron_core", "loftq_config", "fan_in_fan_out"}  # fmt: skip


class Adapter(nn.Module):
    """The matrices of a model as parameters of a module of their own; the model is no part of it.

    Args:
        model: of transformers; the matrices are put into it, and begin as a change by nothing.
        base: what the weights of the model are told by; an adapter fits no others.
        rank: of the matrices.
        alpha: their product counts alpha / rank times.
        targets: names of layers, or their ends; all-linear: all but the one that gives the outputs.
    """

    def __init__(
        self, *, model: Any, base: str, rank: PositiveInt, alpha: PositiveFloat, targets: list[str] | str
    ):  # fmt: skip
        super().__init__()
        self.settings = {"r": rank, "lora_alpha": alpha, "target_modules": targets}
        _inject(model, self.settings, key="stage.adapter.targets")
        self._layers = _layers(model)
        self.settings["target_modules"] = sorted(name for name, module in model.named_modules() if _is_layer(module))
        for name, parameter in _matrices(model).items():
            self.register_parameter(name.replace(".", "/"), parameter)
        self.register_buffer("base", torch.tensor(list(base.encode()), dtype=torch.uint8))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within this block the model is the one it was."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)
            self.requires_grad_(True)  # switching off freezes as well

    def export(self, folder: Path, *, model: str) -> None:
        """As peft would have written it; whole or not at all."""
        partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
        settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": model, "bias": "none",
                    "lora_dropout": 0.0, "inference_mode": True, **self.settings}  # fmt: skip
        tensors = {
            PREFIX + name.replace("/", "."): p.detach().cpu().contiguous() for name, p in self.named_parameters()
        }
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(tensors, partial / WEIGHTS)
            (partial / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError as error:
            raise RunError("the adapter could not be written", got=f"{folder}: {error}") from error


def put_in(model: Any, source: str, *, base: str, output_root: str) -> str:
    """Puts a trained adapter into a model, frozen; returns a hash of what decides what it does."""
    settings, tensors = _of_folder(Path(source)) if (Path(source) / SETTINGS).is_file() else _of_run(
        source, base=base, output_root=output_root
    )  # fmt: skip
    _inject(model, settings, key="llm.adapter")
    own = _matrices(model)
    wrong = sorted(own.keys() ^ tensors.keys()) or sorted(n for n in own if own[n].shape != tensors[n].shape)
    if wrong:
        got = f"{source}: {len(wrong)} matrices missing, too many or of another size, such as {wrong[0]}"
        raise RunError("this adapter is of another model", key="llm.adapter", got=got)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])
            parameter.requires_grad_(False)
    numbers = {name: settings.get(name) for name in ("r", "lora_alpha", "use_rslora")}
    return f"{checkpoint.digest(tensors)[:16]} {json.dumps(numbers, sort_keys=True)}"


def _of_run(source: str, *, base: str, output_root: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    run = runs.find(output_root, source, key="llm.adapter", stage=STAGE)
    stage = restore.settings_of(run, needs=("stage",))["stage"]
    node = stage.get("adapter") if isinstance(stage, dict) else None
    if not isinstance(node, dict) or not {"rank", "alpha", "targets"} <= node.keys():
        raise RunError("the configuration of the run names no adapter", key="llm.adapter", got=str(run.folder))
    restore.checked({"adapter": node}, "adapter", run)  # values in their ranges, and no references
    tensors = checkpoint.network_weights(run.last_checkpoint(), "adapter")
    trained_on = bytes(tensors.pop("base", torch.zeros(0, dtype=torch.uint8)).tolist()).decode("ascii", "replace")
    if trained_on != base:
        raise RunError("this adapter was trained on another model, or on another version of it", key="llm.adapter",
                       got=run.name, remedy="set llm.model to the model of that run")  # fmt: skip
    settings = {"r": node["rank"], "lora_alpha": node["alpha"], "target_modules": node["targets"]}
    return settings, {name.replace("/", "."): tensor for name, tensor in tensors.items()}


def _of_folder(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        is_lora = settings["peft_type"] == "LORA"
        others = {name: value for name, value in settings.items() if name not in KNOWN | INERT and value}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError("this adapter cannot be read", key="llm.adapter", got=f"{folder}: {error}") from None
    odd = {name: value for name, value in others.items() if (name, value) != ("bias", "none")}
    if not is_lora or odd or settings.get("fan_in_fan_out"):
        got = f"{folder}: {settings['peft_type']}, {', '.join(f'{name}={value}' for name, value in odd.items())}"
        raise RunError("only plain LoRA adapters are read", key="llm.adapter", got=got[:300])
    found = {name: settings[name] for name in KNOWN if name in settings}
    return found, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def _inject(model: Any, settings: dict[str, Any], *, key: str) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("an adapter needs the package peft", key=key, remedy="pip install peft") from None
    if _layers(model):
        raise ConfigError("this model has an adapter already", key="llm.adapter", remedy="set llm.adapter=null")
    try:
        config = LoraConfig(**settings, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
        inject_adapter_in_model(config, model, adapter_name=NAME)
    except (ValueError, TypeError, KeyError) as error:
        got = str(error).strip().splitlines()[0][:300]
        raise ConfigError("this adapter does not go into this model", key=key, got=got) from None
    for parameter in _matrices(model).values():
        parameter.data = parameter.data.float()  # small steps would be lost in half precision
    model.eval()


def _is_layer(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def _layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if _is_layer(module)]


def _matrices(model: Any) -> dict[str, nn.Parameter]:
    """By the names that files have for them."""
    return {name.replace(f".{NAME}.", "."): p for name, p in model.named_parameters() if ".lora_" in name}
