"""Between `UNet3D` and the diffusers folder of ModelScope's text-to-video model (`UNet3DConditionModel`).

Every tensor has a rule: its name here, its name or names there, and how one becomes the other. Q, K and V are one matrix
here, packed per head; a 1 x 1 convolution there is a linear layer here; a convolution over time has one dimension less.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdm.backbones.cells import Cell
from vdm.backbones.published import VIDEO, what_diffusers_lacks
from vdm.backbones.unet3d import UNet3D
from vdm.checkpoint import LoadReport, load_weights
from vdm.errors import ConfigError, RunError
from vdm.layers.attention import TEXT
from vdm.layers.transformer import SpatialTransformer, TemporalTransformer

WEIGHTS = "diffusion_pytorch_model.safetensors"
FOLDED = (1, 1)  # trailing dimensions of a 1 x 1 convolution; a convolution over time there ends in the same


@dataclass(frozen=True)
class Rule:
    """One tensor here, and the one or several it is there."""

    ours: str
    theirs: tuple[str, ...]
    head_width: int = 0  # of the packed projections
    trailing: tuple[int, ...] = ()  # dimensions of size one that only theirs has

    def join(self, tensors: list[Tensor]) -> Tensor:
        if self.head_width:
            heads = [tensor.unflatten(0, (-1, self.head_width)) for tensor in tensors]
            return torch.stack(heads, dim=1).flatten(0, 2)
        (tensor,) = tensors
        return tensor.flatten(-len(self.trailing) - 1) if self.trailing else tensor

    def split(self, tensor: Tensor) -> list[Tensor]:
        if self.head_width:
            parts = tensor.unflatten(0, (-1, len(self.theirs), self.head_width)).unbind(1)
            return [part.flatten(0, 1) for part in parts]
        return [tensor[(..., *[None] * len(self.trailing))]]


def from_diffusers(state: Mapping[str, Tensor], backbone: UNet3D) -> dict[str, Tensor]:
    """The tensors of a diffusers checkpoint under our names. What no rule names keeps its name, to be reported."""
    ours, used = {}, set()
    for rule in rules(backbone):
        if all(name in state for name in rule.theirs):
            ours[rule.ours] = rule.join([state[name] for name in rule.theirs])
            used.update(rule.theirs)
    return ours | {name: tensor for name, tensor in state.items() if name not in used}


def to_diffusers(state: Mapping[str, Tensor], backbone: UNet3D) -> dict[str, Tensor]:
    """Our tensors under the names of diffusers."""
    theirs: dict[str, Tensor] = {}
    for rule in rules(backbone):
        theirs.update(zip(rule.theirs, rule.split(state[rule.ours]), strict=True))
    return theirs


def rules(backbone: UNet3D) -> Iterator[Rule]:
    """One rule for every tensor of the backbone."""
    yield from plain_rules("conv_in", "conv_in")
    yield from plain_rules("time_embedding.linear1", "time_embedding.linear_1")
    yield from plain_rules("time_embedding.linear2", "time_embedding.linear_2")
    if backbone.temporal_in is not None:
        yield from temporal_rules(backbone.temporal_in, "temporal_in", "transformer_in")
    for way, name, resample in ((backbone.down, "down", "downsamplers"), (backbone.up, "up", "upsamplers")):
        for i, level in enumerate(way):
            for j, cell in enumerate(level.cells):
                yield from _cell(cell, f"{name}.{i}.cells.{j}", f"{name}_blocks.{i}", j)
            if level.resample is not None:
                yield from plain_rules(f"{name}.{i}.resample.conv", f"{name}_blocks.{i}.{resample}.0.conv")
    for j, cell in enumerate(backbone.mid):
        yield from _cell(cell, f"mid.{j}", "mid_block", j)
    yield from plain_rules("norm_out", "conv_norm_out")
    yield from plain_rules("conv_out", "conv_out")


def _cell(cell: Cell, ours: str, theirs: str, index: int) -> Iterator[Rule]:
    for name, their_name in (
        ("norm1", "norm1"),
        ("conv1", "conv1"),
        ("time", "time_emb_proj"),
        ("norm2", "norm2"),
        ("conv2", "conv2"),
    ):
        yield from plain_rules(f"{ours}.resnet.{name}", f"{theirs}.resnets.{index}.{their_name}")
    if cell.resnet.shortcut is not None:
        yield from plain_rules(f"{ours}.resnet.shortcut", f"{theirs}.resnets.{index}.conv_shortcut", trailing=FOLDED)
    if cell.temporal_conv is not None:
        for i in range(len(cell.temporal_conv.convs)):
            stack = f"{theirs}.temp_convs.{index}.conv{i + 1}"
            position = 3 if i else 2  # behind norm, SiLU and, from the second on, dropout
            yield from plain_rules(f"{ours}.temporal_conv.norms.{i}", f"{stack}.0")
            yield from plain_rules(f"{ours}.temporal_conv.convs.{i}", f"{stack}.{position}", trailing=(1,))
    if cell.spatial is not None:
        yield from spatial_rules(cell.spatial, f"{ours}.spatial", f"{theirs}.attentions.{index}")
    if cell.temporal is not None:
        yield from temporal_rules(cell.temporal, f"{ours}.temporal", f"{theirs}.temp_attentions.{index}")


def spatial_rules(transformer: SpatialTransformer, ours: str, theirs: str) -> Iterator[Rule]:
    yield from _projections(ours, theirs)
    for k, block in enumerate(transformer.blocks):
        here, there, head_width = f"{ours}.blocks.{k}", f"{theirs}.transformer_blocks.{k}", block.shape.head_width
        yield from self_attention_rules(f"{here}.self_attention", f"{there}.norm1", f"{there}.attn1", head_width)
        if block.cross_attention is not None:
            cross, attn = f"{here}.cross_attention", f"{there}.attn2"
            yield from plain_rules(f"{cross}.norm", f"{there}.norm2")
            yield Rule(f"{cross}.to_q.weight", (f"{attn}.to_q.weight",))
            pair = (f"{attn}.to_k.weight", f"{attn}.to_v.weight")
            yield Rule(f"{cross}.streams.{TEXT}.to_kv.weight", pair, head_width)
            yield from plain_rules(f"{cross}.to_out", f"{attn}.to_out.0")
        yield from _feed_forward(f"{here}.feed_forward", there)


def temporal_rules(transformer: TemporalTransformer, ours: str, theirs: str) -> Iterator[Rule]:
    yield from _projections(ours, theirs)
    for k, block in enumerate(transformer.blocks):
        here, there = f"{ours}.blocks.{k}", f"{theirs}.transformer_blocks.{k}"
        for i, attention in ((1, block.attention1), (2, block.attention2)):
            yield from self_attention_rules(
                f"{here}.attention{i}", f"{there}.norm{i}", f"{there}.attn{i}", attention.head_width
            )
        yield from _feed_forward(f"{here}.feed_forward", there)


def _projections(ours: str, theirs: str) -> Iterator[Rule]:
    for name in ("norm", "proj_in", "proj_out"):
        yield from plain_rules(f"{ours}.{name}", f"{theirs}.{name}")


def self_attention_rules(ours: str, norm: str, theirs: str, head_width: int) -> Iterator[Rule]:
    yield from plain_rules(f"{ours}.norm", norm)
    three = tuple(f"{theirs}.to_{letter}.weight" for letter in "qkv")
    yield Rule(f"{ours}.to_qkv.weight", three, head_width)
    yield from plain_rules(f"{ours}.to_out", f"{theirs}.to_out.0")


def _feed_forward(ours: str, theirs: str) -> Iterator[Rule]:
    yield from plain_rules(f"{ours}.norm", f"{theirs}.norm3")
    yield from plain_rules(f"{ours}.to_hidden", f"{theirs}.ff.net.0.proj")
    yield from plain_rules(f"{ours}.to_out", f"{theirs}.ff.net.2")


def plain_rules(ours: str, theirs: str, trailing: tuple[int, ...] = ()) -> Iterator[Rule]:
    yield Rule(f"{ours}.weight", (f"{theirs}.weight",), trailing=trailing)
    yield Rule(f"{ours}.bias", (f"{theirs}.bias",))


def settings_to_diffusers(backbone: UNet3D, *, sample_size: int | None = None) -> dict[str, Any]:
    """The diffusers configuration of a backbone, or a ConfigError naming what diffusers cannot express."""
    s, inside = backbone.settings, backbone.temporal_in.blocks[0].attention1 if backbone.temporal_in else None
    temporal_in = {
        "temporal_in_heads": inside.heads if inside is not None else 0,
        "temporal_in_head_width": inside.head_width if inside is not None else 0,
    }
    places = {"coordinates": backbone.coordinates, "moments": backbone.moments}
    odd = what_diffusers_lacks(asdict(s) | temporal_in | places)
    doors = {"concat_channels": (backbone.concat_channels, 0), "embed_width": (backbone.embed_width, 0)}
    doors["streams"] = (sorted(backbone.streams), [TEXT])
    odd |= {name: (got, fits) for name, (got, fits) in doors.items() if got != fits}
    if odd:
        key, (got, fits) = next(iter(odd.items()))
        raise ConfigError(
            f"diffusers' {VIDEO} cannot express this backbone",
            key=f"backbone.{key}",
            got=got,
            allowed=str(fits),
            remedy="train with backbone=modelscope, in any size, and with the caption alone",
        )
    attends = [level in backbone.attention_levels for level in range(len(backbone.widths))]
    return {
        "_class_name": VIDEO,
        "in_channels": backbone.latent_channels,
        "out_channels": backbone.latent_channels,
        "block_out_channels": list(backbone.widths),
        "layers_per_block": backbone.blocks,
        "down_block_types": ["CrossAttnDownBlock3D" if a else "DownBlock3D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock3D" if a else "UpBlock3D" for a in reversed(attends)],
        "cross_attention_dim": backbone.streams[TEXT],
        "attention_head_dim": s.head_width,
        "norm_num_groups": s.norm_groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "sample_size": sample_size,
    }


def load_diffusers(backbone: UNet3D, folder: str | Path, *, doors: Sequence[str] = ()) -> LoadReport:
    """Fill a backbone from a diffusers folder, with a report. `doors` names those the folder may know nothing of."""
    tensors = from_diffusers(read_weights(folder), backbone)
    return load_weights(backbone, tensors, source=str(folder), allow_missing=backbone.door_keys(*doors))


def save_diffusers(backbone: UNet3D, folder: str | Path, *, sample_size: int | None = None) -> None:
    """Write a folder that `diffusers.UNet3DConditionModel.from_pretrained` loads. `sample_size`: of a latent, for its
    pipelines' default."""
    folder = Path(folder)
    config = settings_to_diffusers(backbone, sample_size=sample_size)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_diffusers(backbone.state_dict(), backbone)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """Safetensors, whole or in half precision, or the older binary file, read without running code."""
    folder = Path(folder)
    try:
        for name in (WEIGHTS, WEIGHTS.replace(".safetensors", ".fp16.safetensors")):
            if (folder / name).is_file():
                return load_file(folder / name)
        return torch.load(folder / "diffusion_pytorch_model.bin", map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        remedy = f"the folder should hold {WEIGHTS}"
        raise RunError("cannot read the weights of this folder", got=f"{folder}: {error}", remedy=remedy) from None
