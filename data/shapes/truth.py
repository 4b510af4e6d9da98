"""All that is known about a clip beside its pixels: plan, scene graphs, boxes, masks, depth, flow, scenes, crops.

The dynamic scene graph follows Dysen-VDM, step II: one graph a tick, an event's triple from its start tick up to but
not including its end tick, and at the last tick also the events that end there. The world adds to each graph what a
planner would have to imagine: attributes and spatial relations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.shapes.motion import Trajectory, frame_times, trajectory
from data.shapes.render import RGB, Picture, pixels
from data.shapes.script import Event, Script, active

BESIDE = 0.1  # widths: nearer than this, two things are neither beside nor above each other
CROP_MARGIN = 1


def action_graph(script: Script, tick: int) -> list[list[Any]]:
    """The triples [agent, action, target or None] of the events that hold at a tick."""
    plan = script.plan()
    return [plan[i][:3] for i in active(script.events, tick)]


def scene_graphs(script: Script, masks: np.ndarray, times: np.ndarray) -> list[dict[str, Any]]:
    """One graph for each tick 0..max(end): objects with attributes, actions, and relations as triples."""
    ticks = np.arange(max(e.end for e in script.events) + 1)
    states = trajectory(script, ticks.astype(float))
    graphs = []
    for tick in ticks.tolist():
        frame = int(np.abs(times - tick).argmin())
        seen = np.flatnonzero(states.visible[tick]).tolist()
        graphs.append(
            {
                "tick": tick,
                "objects": [
                    {"name": t.name, "attributes": [t.colour, t.size, t.shape]}
                    for i, t in enumerate(script.things)
                    if i in seen
                ],
                "actions": action_graph(script, tick),
                "relations": _relations(script, states, tick, seen, masks[:, frame]),
            }
        )
    return graphs


def _relations(script: Script, states: Trajectory, tick: int, seen: list[int], masks: np.ndarray) -> list[list[str]]:
    """Spatial triples of every pair in sight, said once, of the thing that is listed first."""
    triples = []
    for at, i in enumerate(seen):
        for j in seen[at + 1 :]:
            a, b = script.things[i].name, script.things[j].name
            dx, dy = states.x[tick, i] - states.x[tick, j], states.y[tick, i] - states.y[tick, j]
            if abs(dx) > BESIDE:
                triples.append([a, "left of" if dx < 0 else "right of", b])
            if abs(dy) > BESIDE:
                triples.append([a, "above" if dy < 0 else "below", b])
            if (masks[i] & masks[j]).any():
                in_front = script.placements[i].depth < script.placements[j].depth
                triples += [[a, "overlapping", b], [a, "in front of" if in_front else "behind", b]]
    return triples


def object_ids(script: Script, picture: Picture) -> np.ndarray:
    """T H W uint8: 0 for ground, i + 1 where thing i gives the largest part of the pixel's colour."""
    share = np.ones(picture.coverage.shape[1:], dtype=np.float32)  # T H W, what the things in front leave over
    weights = np.zeros((len(script.things) + 1, *share.shape), dtype=np.float32)
    for i in depth_order(script):
        alpha = picture.coverage[i].astype(np.float32) / 255
        weights[i + 1] = share * alpha
        share *= 1 - alpha
    weights[0] = share
    return weights.argmax(axis=0).astype(np.uint8)


def depth_order(script: Script) -> list[int]:
    """Things from front to back."""
    return sorted(range(len(script.things)), key=lambda i: script.placements[i].depth)


def flow(ids: np.ndarray, states: Trajectory) -> np.ndarray:
    """T-1 H W 2 float16: where (dx, dy) the surface seen at a pixel of frame f lies in frame f + 1, hidden or not."""
    num_frames, height, width = ids.shape
    out = np.zeros((num_frames - 1, height, width, 2), dtype=np.float32)
    x, y, radius = pixels(states, height, width)
    turn, scale = np.deg2rad(np.diff(states.angle, axis=0)), radius[1:] / radius[:-1]
    for i in range(x.shape[1]):
        f, row, column = np.nonzero(ids[:-1] == i + 1)
        dx, dy = column + 0.5 - x[f, i], row + 0.5 - y[f, i]
        c, s = scale[f, i] * np.cos(turn[f, i]), scale[f, i] * np.sin(turn[f, i])
        out[f, row, column, 0] = x[f + 1, i] + c * dx - s * dy - column - 0.5
        out[f, row, column, 1] = y[f + 1, i] + s * dx + c * dy - row - 0.5
    return out.astype(np.float16)


def boxes(masks: np.ndarray) -> list[list[list[int] | None]]:
    """[left, top, right, bottom) of each mask in n T H W, by thing and frame; None where there is nothing."""
    return [[_box(mask) for mask in thing] for thing in masks]


def _box(mask: np.ndarray) -> list[int] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def intervals(events: Sequence[Event], ticks: int) -> list[dict[str, Any]]:
    """Contiguous intervals in which the same events hold: [start, end) in ticks and the events' positions."""
    found: list[dict[str, Any]] = []
    for tick in range(ticks):
        holding = [i for i, e in enumerate(events) if e.start <= tick < e.end]
        if found and found[-1]["events"] == holding:
            found[-1]["end"] = tick + 1
        else:
            found.append({"start": tick, "end": tick + 1, "events": holding})
    return found


def subjects(script: Script, picture: Picture, masks: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Where each thing is best seen: frame, box, and the thing alone as an array H W 4 (RGB and alpha)."""
    entries, crops = [], {}
    for i, thing in enumerate(script.things):
        seen = masks[i].sum(axis=(1, 2)) / np.maximum((picture.coverage[i] > 127).sum(axis=(1, 2)), 1)
        frame = int(seen.argmax())
        left, top, right, bottom = _box(picture.coverage[i, frame] > 0) or [0, 0, 1, 1]
        alpha = np.pad(picture.coverage[i, frame, top:bottom, left:right], CROP_MARGIN)
        colour = np.broadcast_to(np.array(RGB[thing.colour], dtype=np.uint8), (*alpha.shape, 3))
        crops[f"subject_{i}"] = np.concatenate([colour, alpha[..., None]], axis=-1)
        entries.append({"name": thing.name, "frame": frame, "box": [left, top, right, bottom], "array": f"subject_{i}"})
    return entries, crops


def truth(script: Script, picture: Picture) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All of it: the part that fits into json, and the arrays."""
    frames = picture.frames.shape[0]
    times = frame_times(frames, script.ticks)
    states = trajectory(script, times)
    ids = object_ids(script, picture)
    visible = np.stack([ids == i + 1 for i in range(len(script.things))])  # n T H W
    whole = picture.coverage > 127
    entries, crops = subjects(script, picture, visible)
    extras = {
        "script": script.to_json(),
        "plan": script.plan(),
        "scene_graphs": scene_graphs(script, whole, times),
        "frame_ticks": [round(time, 4) for time in times.tolist()],
        "boxes": boxes(visible),
        "whole_boxes": boxes(whole),
        "depth_order": [script.things[i].name for i in depth_order(script)],
        "intervals": intervals(script.events, script.ticks),
        "subjects": entries,
    }
    return extras, {"ids": ids, "whole": whole.astype(np.uint8), "flow": flow(ids, states), **crops}
