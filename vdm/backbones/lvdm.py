"""From the checkpoints of LVDM and VideoCrafter to `UNet3D`: their U-Net is a list of numbered blocks.

    time_embed.{0,2}    input_blocks.0.0    init_attn.0    input_blocks.N    middle_block    output_blocks.N    out.{0,2}

A block holds a residual block (its `temopral_conv` is spelt so), a transformer and, in VideoCrafter, a transformer over
time; where the size changes, the convolution that does it is a block of its own on the way down and the end of one on the
way up. 1 x 1 convolutions are linear layers here, and convolutions of one frame have a dimension less.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vdm.backbones.cells import Cell
from vdm.backbones.modelscope import Rule, plain_rules, self_attention_rules, spatial_rules, temporal_rules
from vdm.backbones.published import TEXT
from vdm.backbones.unet3d import UNet3D
from vdm.checkpoint import LoadReport, load_weights
from vdm.errors import ConfigError, RunError
from vdm.layers.embeddings import sinusoidal_embedding
from vdm.layers.temporal import TemporalAttention
from vdm.layers.transformer import SpatialTransformer, TemporalTransformer

log = logging.getLogger(__name__)

PREFIX = "model.diffusion_model."
FRAME_RATE = "fps_embedding."
# Parts of their networks that UNet3D has not; without them it is another start, not another network.
NO_COUNTERPART = (FRAME_RATE, "time_embed_cond.", "label_emb.", ".to_k_ip.", ".to_v_ip.")


def load_lvdm(backbone: UNet3D, file: str | Path, *, doors: Sequence[str] = (), fps: float | None = None) -> LoadReport:
    """Fill a backbone from a checkpoint, with a report. What has no counterpart is named in the log and in the report.

    Args:
        doors: those the file may know nothing of.
        fps: VideoCrafter's network is told a frame rate. With one given, its embedding becomes a part of the timestep's.
    """
    theirs, left_out = _of_the_network(read_state(file), file)
    if fps is not None:
        _tell_frame_rate(theirs, fps, backbone.time_embedding.width, file)
    strange = sorted(name for name in theirs if any(part in f".{name}" for part in NO_COUNTERPART))
    known = {name: tensor for name, tensor in theirs.items() if name not in set(strange)}
    tensors = from_lvdm(known, backbone)
    try:
        report = load_weights(backbone, tensors, source=str(file), allow_missing=backbone.door_keys(*doors))
    except RunError as error:
        remedy = _remedy(known, backbone) or error.remedy
        raise RunError(error.what, key="init.backbone", got=f"{file}: {error.got}", remedy=remedy) from None
    if left_out:
        words = ", ".join(f"{count} of {name}" for name, count in left_out.items())
        log.info("%s also holds tensors of other networks, which are not read: %s", file, words)
    if any(name.startswith(FRAME_RATE) for name in strange):
        log.warning("these weights were told a frame rate, and here are not: set init.fps=<frames per second>")
    return LoadReport(report.matched, report.missing, strange, report.misshapen)


def from_lvdm(state: Mapping[str, Tensor], backbone: UNet3D) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes. What no rule names keeps its name, to be reported."""
    ours, used, own = {}, set(), backbone.state_dict()
    for rule in lvdm_rules(backbone):
        if all(name in state for name in rule.theirs):
            tensor = rule.join([state[name] for name in rule.theirs])
            ours[rule.ours] = _without_ones(tensor, own[rule.ours])
            used.update(rule.theirs)
    return ours | {name: tensor for name, tensor in state.items() if name not in used}


def lvdm_rules(backbone: UNet3D) -> Iterator[Rule]:
    """One rule for every tensor of the backbone, its doors excepted."""
    yield from plain_rules("time_embedding.linear1", "time_embed.0")
    yield from plain_rules("time_embedding.linear2", "time_embed.2")
    yield from plain_rules("conv_in", "input_blocks.0.0")
    if backbone.temporal_in is not None:
        yield from _over_time(backbone.temporal_in, "temporal_in", "init_attn.0")
    number = 1
    for i, level in enumerate(backbone.down):
        for j, cell in enumerate(level.cells):
            yield from _cell(cell, f"down.{i}.cells.{j}", f"input_blocks.{number}")
            number += 1
        if level.resample is not None:
            yield from plain_rules(f"down.{i}.resample.conv", f"input_blocks.{number}.0.op")
            number += 1
    first, second = backbone.mid
    yield from _cell(first, "mid.0", "middle_block")
    yield from _residual(second, "mid.1", f"middle_block.{_parts(first)}")
    number = 0
    for i, level in enumerate(backbone.up):
        for j, cell in enumerate(level.cells):
            yield from _cell(cell, f"up.{i}.cells.{j}", f"output_blocks.{number}")
            if level.resample is not None and j == len(level.cells) - 1:
                yield from plain_rules(f"up.{i}.resample.conv", f"output_blocks.{number}.{_parts(cell)}.conv")
            number += 1
    yield from plain_rules("norm_out", "out.0")
    yield from plain_rules("conv_out", "out.2")


def _parts(cell: Cell) -> int:
    """How many numbers of a block a cell takes."""
    return 1 + (cell.spatial is not None) + (cell.temporal is not None)


def _cell(cell: Cell, ours: str, theirs: str) -> Iterator[Rule]:
    yield from _residual(cell, ours, f"{theirs}.0")
    if cell.spatial is not None:
        yield from _within_frames(cell.spatial, f"{ours}.spatial", f"{theirs}.1")
    if cell.temporal is not None:
        yield from _over_time(cell.temporal, f"{ours}.temporal", f"{theirs}.2")


def _residual(cell: Cell, ours: str, theirs: str) -> Iterator[Rule]:
    for name, their_name in (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("time", "emb_layers.1"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
    ):
        yield from plain_rules(f"{ours}.resnet.{name}", f"{theirs}.{their_name}")
    if cell.resnet.shortcut is not None:
        yield from plain_rules(f"{ours}.resnet.shortcut", f"{theirs}.skip_connection")
    for i in range(len(cell.temporal_conv.convs) if cell.temporal_conv is not None else 0):
        stack, position = f"{theirs}.temopral_conv.conv{i + 1}", 3 if i else 2  # behind norm, SiLU and, later, dropout
        yield from plain_rules(f"{ours}.temporal_conv.norms.{i}", f"{stack}.0")
        yield from plain_rules(f"{ours}.temporal_conv.convs.{i}", f"{stack}.{position}")


def _within_frames(transformer: SpatialTransformer, ours: str, theirs: str) -> Iterator[Rule]:
    yield from spatial_rules(transformer, ours, theirs)
    for k, block in enumerate(transformer.blocks):
        for i, attention in ((1, block.temporal1), (2, block.temporal2)):
            if attention is not None:
                here, there = f"{ours}.blocks.{k}.temporal{i}", f"{theirs}.transformer_blocks.{k}"
                attn = f"{there}.attn{i}_tmp"
                yield from self_attention_rules(here, f"{there}.norm{i + 3}", attn, attention.head_width)
                yield from _positions(attention, here, attn)


def _over_time(transformer: TemporalTransformer, ours: str, theirs: str) -> Iterator[Rule]:
    yield from temporal_rules(transformer, ours, theirs)
    for k, block in enumerate(transformer.blocks):
        for i, attention in ((1, block.attention1), (2, block.attention2)):
            yield from _positions(
                attention, f"{ours}.blocks.{k}.attention{i}", f"{theirs}.transformer_blocks.{k}.attn{i}"
            )


def _positions(attention: TemporalAttention, ours: str, theirs: str) -> Iterator[Rule]:
    for letter in "kv" if attention.position_k is not None else "":
        yield Rule(f"{ours}.position_{letter}.table", (f"{theirs}.relative_position_{letter}.embeddings_table",))


def _without_ones(tensor: Tensor, like: Tensor) -> Tensor:
    """Dimensions of size one come and go with the kind of a convolution."""
    sizes = [[size for size in shape if size != 1] for shape in (tensor.shape, like.shape)]
    return tensor.reshape(like.shape) if sizes[0] == sizes[1] else tensor


def read_state(file: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, read without running code that it may hold."""
    path = Path(file)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes these libraries raise nearly anything
        remedy = "download it again; where it holds more than tensors, save its state_dict alone as safetensors"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError("these weights cannot be read", key="init.backbone", got=f"{path}: {reason:.300}",
                       remedy=remedy) from None  # fmt: skip
    for name in ("state_dict", "module"):  # of Lightning, and of DeepSpeed
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    tensors = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise RunError("this file holds no tensors by name", key="init.backbone", got=path)
    return tensors


def _of_the_network(state: Mapping[str, Tensor], file: str | Path) -> tuple[dict[str, Tensor], Counter[str]]:
    """The U-Net's tensors without their prefix, and how many there are of other networks."""
    prefixes = [prefix for prefix in (PREFIX, "diffusion_model.", "") if f"{prefix}input_blocks.0.0.weight" in state]
    prefixes += [f"_forward_module.{PREFIX}"] if f"_forward_module.{PREFIX}input_blocks.0.0.weight" in state else []
    if not prefixes:
        raise ConfigError("this file holds no U-Net of LVDM or VideoCrafter", key="init.backbone",
                          got=f"{file}: {len(state)} tensors, such as {', '.join(list(state)[:3])}",
                          allowed=f"a checkpoint with {PREFIX}input_blocks.0.0.weight in it",
                          remedy="weights of diffusers are named by their folder, with its config.json")  # fmt: skip
    prefix = prefixes[0]
    own = {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}
    return own, Counter(name.split(".")[0] for name in state if not name.startswith(prefix))


def _remedy(theirs: Mapping[str, Tensor], backbone: UNet3D) -> str:
    """The settings that their tensors show and this backbone has not."""
    s, inside = backbone.settings, backbone.temporal_in
    interleaved = any(".attn1_tmp." in name for name in theirs)
    tables = [tensor for name, tensor in theirs.items() if "relative_position_k" in name]
    shown = {
        "channels": (backbone.widths[0], len(theirs["input_blocks.0.0.weight"])),
        "temporal_attention": (s.temporal_attention, "interleaved" if interleaved else "separate"),
        "temporal_conv": (s.temporal_conv, 4 if any("temopral_conv" in name for name in theirs) else 0),
        "temporal_position": (s.temporal_position, "relative" if tables else "none"),
        "temporal_in_heads": (
            inside.blocks[0].attention1.heads if inside is not None else 0,
            8 if any(name.startswith("init_attn.") for name in theirs) else 0,
        ),
    }
    if tables:
        shown["temporal_max_distance"] = (s.temporal_max_distance, len(tables[0]) // 2)
    words = [f"backbone.{name}={theirs}" for name, (own, theirs) in shown.items() if own != theirs]
    words += (
        []
        if not backbone.streams or _token_width(theirs) == backbone.streams.get(TEXT)
        else [f"a text encoder of width {_token_width(theirs)} (condition=[text_clip_l] or [text_open_clip_h])"]
    )
    base = f"begin with backbone={'lvdm' if interleaved else 'modelscope'}"
    return f"{base}; these weights show {' '.join(words)}" if words else ""


def _token_width(theirs: Mapping[str, Tensor]) -> int | None:
    return next((t.shape[1] for name, t in theirs.items() if name.startswith("middle_block.1.")
                 and name.endswith("0.attn2.to_k.weight")), None)  # fmt: skip


def _tell_frame_rate(theirs: dict[str, Tensor], fps: float, width: int, file: str | Path) -> None:
    """At one frame rate their second embedding is a constant, added to the timestep's: a part of its last bias."""
    names = [f"{FRAME_RATE}{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
    if not all(name in theirs for name in names):
        remedy = "set init.fps=null"
        raise ConfigError("these weights know no frame rate", key="init.fps", got=f"{fps}, for {file}", remedy=remedy)
    weight1, bias1, weight2, bias2 = (theirs.pop(name) for name in names)
    embedding = sinusoidal_embedding(torch.tensor([fps]), width)
    constant = F.linear(F.silu(F.linear(embedding, weight1, bias1)), weight2, bias2)[0]
    theirs["time_embed.2.bias"] = theirs["time_embed.2.bias"] + constant
