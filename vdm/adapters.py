"""Checkpoints that hold only what a run has trained, most of it low-rank matrices (LoRA, Hu et al., 2022), and name the run
that all the rest comes from. Whoever asks for the weights of such a run gets whole ones: W + scale B A in the place of W.

    weights/adapter.json      the parent, SHA-256 of its weights, the scale
    weights/<network>.safetensors, ema/<network>.safetensors      the trained tensors, under the names that peft gives them
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdm.errors import RunError

FILE = "weights/adapter.json"
FORMAT = 1
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"


def record(parent: Path, files: Mapping[str, Mapping[str, Any]], *, run_folder: Path, scale: float) -> dict[str, Any]:
    """What `adapter.json` says. A parent that is no neighbour of the run is found again where it is now."""
    run = parent.resolve().parents[1]
    where = {"run": run.name, "checkpoint": parent.name}
    if run.parent != run_folder.resolve().parent:
        where["folder"] = str(run)
    return {"format": FORMAT, "scale": scale, "parent": where, "files": weights_of(files)}


def weights_of(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """SHA-256 of everything in a checkpoint that decides its networks."""
    return {name: fact["sha256"] for name, fact in files.items() if name.startswith(("weights/", "ema/"))}


def parent_folder(folder: Path, content: Mapping[str, Any]) -> Path:
    """The checkpoint that an adapter in `folder` belongs to; it is looked for beside its run first."""
    where = content["parent"]
    runs = [folder.resolve().parents[2] / where["run"], *([Path(where["folder"])] if "folder" in where else [])]
    for run in runs:
        if (run / "checkpoints" / where["checkpoint"] / "manifest.json").is_file():
            return run / "checkpoints" / where["checkpoint"]
    remedy = (
        "put the parent back, or merge the two where both are: python -m vdm.merge run=<run> to=<run>; "
        "a parent that goes on training drops old checkpoints"
    )
    raise RunError("the parent of this adapter is not there", got=f"{folder}: {runs[0]}/checkpoints/{where['checkpoint']}",
                   remedy=remedy)  # fmt: skip


def check_parent(folder: Path, content: Mapping[str, Any], parent: Path, files: Mapping[str, Any]) -> None:
    """The parent has the very weights that the adapter was trained beside."""
    if weights_of(files) != content["files"]:
        remedy = "restore the parent as it was, or train the adapter again"
        raise RunError("the parent of this adapter has other weights now", got=f"{folder}: {parent}", remedy=remedy)


def merged(parent: Mapping[str, Tensor], own: Mapping[str, Tensor], *, scale: float, source: str) -> dict[str, Tensor]:
    """The weights of a network: its parent's, changed by low-rank matrices, or replaced."""
    found = dict(parent)
    for name, tensor in own.items():
        layer = name.removesuffix(DOWN)
        if name.endswith(UP):
            continue
        if layer == name:
            found[name] = tensor
            continue
        weight, up = parent.get(f"{layer}.weight"), own.get(layer + UP)
        if weight is None or up is None:
            raise RunError("this adapter is of another network", got=f"{source}: {layer}")
        change = up.flatten(1).float() @ tensor.flatten(1).float()  # of a convolution, up is 1 x 1
        found[f"{layer}.weight"] = (weight.float() + scale * change.view_as(weight)).to(weight.dtype)
    return found


def split(parent: Mapping[str, Tensor], whole: Mapping[str, Tensor], *, rank: int) -> tuple[dict[str, Tensor], float]:
    """The other way round: low-rank matrices, of scale 1, for the weights that differ, and everything else that does as it
    is. Also the share of the change that they leave out, in the Frobenius norm.
    """
    own: dict[str, Tensor] = {}
    left = total = 0.0
    for name, tensor in whole.items():
        before = parent.get(name)
        if before is not None and torch.equal(before, tensor):
            continue
        rows = tensor.shape[0] if tensor.dim() else 0
        if before is None or not name.endswith(".weight") or tensor.dim() < 2 or min(rows, tensor[0].numel()) <= rank:
            own[name] = tensor
            continue
        u, s, v = torch.linalg.svd((tensor.double() - before.double()).flatten(1), full_matrices=False)
        left, total = left + s[rank:].square().sum().item(), total + s.square().sum().item()
        root, ones = s[:rank].sqrt(), [1] * (tensor.dim() - 2)
        layer = name.removesuffix(".weight")
        own[layer + DOWN] = (root[:, None] * v[:rank]).view(rank, *tensor.shape[1:]).to(tensor.dtype)
        own[layer + UP] = (u[:, :rank] * root).view(rows, rank, *ones).to(tensor.dtype)
    return own, (left / total) ** 0.5 if total else 0.0
