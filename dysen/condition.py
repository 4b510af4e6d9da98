"""Dynamic scene graphs as a condition: in the stream `scene`, each frame sees the nodes of its tick and of the ticks near it.

Graphs are taken from `extras` as shards store them, a plan (after step II) or a list of graphs. What stands there under
the name of the condition comes first: graphs that somebody made for this batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dysen.action_plan import Plan
from dysen.alignment import frame_ticks, ticks_at
from dysen.graph_encoder import SceneEncoder, rows
from dysen.labels import vectors_of
from dysen.names import shorten
from dysen.scene_batch import SceneBatch, collate
from dysen.scene_graph import DynamicSceneGraph, event_to_dsg
from vdm.bounds import Fraction, NonNegativeInt, PositiveInt
from vdm.conditions.base import Condition
from vdm.conditions.encoders.base import TextEncoder
from vdm.errors import DataError, PlanError
from vdm.types import Controls, LatentShape, Tokens, VideoBatch

SCENE = "scene"  # the stream
REMEMBERED = 20_000  # labels whose vectors of a frozen encoder are kept

Span = tuple[int, int]  # first and last tick of a latent frame


class SceneGraphCondition(Condition):
    """Said nothing, there is nothing to see.

    Args:
        encoder: what reads the labels of nodes.
        scene_encoder: what reads the graphs.
        reads: the name in `extras` of the graphs or plan of a clip.
        times: the name in `extras` of the time in ticks of each stored frame, of which a clip may be a part. None: the
            graphs of a clip share its frames evenly.
        clip_frames: how many frames a clip has where a batch holds latents and no video.
        window: a frame sees the graphs of this many ticks before and after its own as well; None: all graphs.
        tokens: one for each node, one for each graph (the paper's), or both.
        embed_width: the sum of the tokens that a frame sees also joins its timestep embedding, and so reaches every layer
            at once; as wide as that of the other conditions that speak there. 0: it does not.
    """

    def __init__(
        self,
        *,
        encoder: TextEncoder,
        scene_encoder: SceneEncoder,
        reads: str,
        times: str | None,
        clip_frames: PositiveInt,
        window: NonNegativeInt | None,
        tokens: Literal["nodes", "graphs", "both"],
        embed_width: NonNegativeInt,
        drop_prob: Fraction,
    ):
        super().__init__(streams={SCENE: scene_encoder.width}, embed_width=embed_width, drop_prob=drop_prob)
        if encoder.is_trained:
            self.encoder = encoder
        else:
            self.keep_frozen("encoder", encoder)
        self.scene_encoder = scene_encoder
        self.from_label = torch.nn.Linear(encoder.width, scene_encoder.width)
        self.to_embed = torch.nn.Linear(scene_encoder.width, embed_width, bias=False) if embed_width else None
        self.reads, self.times, self.clip_frames = reads, times, clip_frames
        self.window, self.tokens = window, tokens
        self._known: dict[str, Tensor] = {}

    def encode(self, batch: VideoBatch, shape: LatentShape) -> Controls:
        extras, keys = batch.get("extras", {}), batch["key"]
        given = extras.get(self.name)
        said = given if given is not None else extras.get(self.reads)
        if said is None:
            remedy = f"set data.extras=[{self.reads}], or leave {self.name} out of condition"
            raise DataError("no clip comes with its scene graphs", key=f"extras.{self.reads}", remedy=remedy)
        source = self.reads if given is None else self.name
        clips = [scenes_of_clip(one, key, source) for one, key in zip(said, keys, strict=True)]
        times = [None] * len(keys) if given is not None else self._times(batch)
        spans = [tick_spans(shape.frames, len(clip or (0,)), at) for clip, at in zip(clips, times, strict=True)]
        return self.say(clips, spans)

    def say(self, clips: Sequence[DynamicSceneGraph | None], spans: Sequence[Sequence[Span]]) -> Controls:
        """What is said about clips, of whose latent frames `spans` gives the ticks."""
        device = self.from_label.weight.device
        scenes = collate(clips)
        seen = self._seen(scenes, spans).to(device)  # b t m
        scenes = scenes.to(device)
        b, m, n = scenes.label.shape
        nodes, graphs = self.scene_encoder(rows(self.from_label(self._labels(scenes.labels)), scenes.label), scenes)
        values, visible = [], []
        if self.tokens != "graphs":
            first = torch.arange(b, device=device)[:, None] * m * n
            values.append(rows(nodes.flatten(0, 2), first + scenes.packed))  # b k d
            ticks = (scenes.packed // n)[:, None].expand(-1, seen.shape[1], -1)
            visible.append(seen.gather(2, ticks) & scenes.packed_exists[:, None])  # b t k
        if self.tokens != "nodes":
            values.append(graphs)
            visible.append(seen)
        return self._controls(Tokens(torch.cat(values, dim=1), torch.cat(visible, dim=2)))

    def null(self, count: int, shape: LatentShape) -> Controls:
        weight = self.from_label.weight
        nothing = torch.zeros(count, 1, 1, dtype=torch.bool, device=weight.device)
        return self._controls(Tokens(weight.new_zeros(count, 1, self.scene_encoder.width), nothing))

    def _controls(self, tokens: Tokens) -> Controls:
        embed = None
        if self.to_embed is not None:
            embed = self.to_embed(tokens.visible.to(tokens.values) @ tokens.values)  # b t e
        return Controls(embed=embed, tokens={SCENE: tokens})

    def _seen(self, scenes: SceneBatch, spans: Sequence[Sequence[Span]]) -> Tensor:
        """Which graphs each frame may look at: b t m."""
        first, last = torch.tensor(np.array(spans)).unbind(-1)  # b t
        tick = torch.arange(scenes.label.shape[1])
        there = tick < scenes.ticks[:, None, None]  # b 1 m
        if self.window is None:
            return there.expand(-1, first.shape[1], -1)
        return there & (tick >= first[..., None] - self.window) & (tick <= last[..., None] + self.window)

    def _times(self, batch: VideoBatch) -> list[list[float] | None]:
        """For each clip the times of its frames in ticks, or None."""
        stored = batch.get("extras", {}).get(self.times) if self.times is not None else None
        if stored is None:
            return [None] * len(batch["key"])
        frames = batch["video"].shape[2] if "video" in batch else self.clip_frames
        windows = batch["extras"]["window"].tolist() if "window" in batch["extras"] else [(0, 1)] * len(stored)
        return [
            None if times is None else _cut(times, start, step, frames, f"extras.{self.times}", key)
            for times, (start, step), key in zip(stored, windows, batch["key"], strict=True)
        ]

    def _labels(self, labels: Sequence[str]) -> Tensor:
        """`labels d`. What a frozen encoder says of a label never changes."""
        if self.encoder.is_trained:
            return vectors_of(self.encoder, labels)
        fresh = [label for label in labels if label not in self._known]
        if fresh:
            if len(self._known) > REMEMBERED:
                self._known.clear()
                fresh = list(labels)
            self._known |= dict(zip(fresh, vectors_of(self.encoder, fresh).float(), strict=True))
        return torch.stack([self._known[label] for label in labels])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SceneGraphCondition:
        self._known = {}
        return super()._apply(fn, recurse)


def tick_spans(num_frames: int, num_ticks: int, times: Sequence[float] | None) -> list[Span]:
    """First and last tick of each latent frame: its own and those up to the next frame's, so that no graph is lost.

    `times` are those of the frames of the video, any number of them, in ticks.
    """
    if times is None:
        ticks = frame_ticks(num_frames, num_ticks)
        return [(tick, max(tick, after - 1)) for tick, after in zip(ticks, (*ticks[1:], num_ticks), strict=True)]
    ticks, count = ticks_at(times, num_ticks), len(times)
    ranges = [(f * count // num_frames, max((f + 1) * count // num_frames - 1, 0)) for f in range(num_frames)]
    return [(ticks[first], max(ticks[first], ticks[last])) for first, last in ranges]


def scenes_of(said: object) -> DynamicSceneGraph:
    """Graphs in any of the forms in which they are stored."""
    match said:
        case DynamicSceneGraph():
            return said
        case Plan():
            return event_to_dsg(said)
        case {"extras": {**extras}}:  # a sample of a shard
            return scenes_of(extras)
        case {"scene_graphs": graphs}:
            return DynamicSceneGraph.from_json(graphs)
        case {"plan": events}:
            return event_to_dsg(Plan.from_json(events))
        case [{}, *_]:
            return DynamicSceneGraph.from_json(said)
        case [*_]:
            return event_to_dsg(Plan.from_json(said))
    allowed = 'a plan or a list of graphs, or {"plan": ...}, {"scene_graphs": ...}'
    raise PlanError("neither a plan nor scene graphs", got=shorten(repr(said)), allowed=allowed)


def scenes_of_clip(said: object, key: str, name: str) -> DynamicSceneGraph | None:
    """Of clip `key`, which has them under `name` in its `extras`."""
    try:
        return None if said is None else scenes_of(said)
    except PlanError as error:
        got = (f"clip {key}: " if key else "") + error.what + ("" if error.got is None else f" ({error.got})")
        raise DataError("these are no scene graphs", key=f"extras.{name}", got=got, allowed=error.allowed) from error


def _cut(times: Any, start: int, step: int, frames: int, name: str, key: str) -> list[float]:
    last = start + step * (frames - 1)
    if not (isinstance(times, list) and last < len(times) and all(isinstance(t, int | float) for t in times)):
        got = f"{shorten(repr(times))} for clip {key}"
        raise DataError(
            "this is no time for each stored frame", key=name, got=got, allowed=f"{last + 1} or more numbers"
        )
    return times[start : last + 1 : step]
