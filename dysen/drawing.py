"""Draws a plan as a timeline and a dynamic scene graph as one panel a tick, as SVG or PNG.

    python -m dysen.drawing plan.json plan.svg

The json is a plan, a list of scene graphs, or an object with "plan", "scene_graphs" and "caption", such as the json of a
sample in a shard of the shapes world. A plan without graphs is drawn with those that step II gives.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from dysen.action_plan import Plan, Triplet
from dysen.canvas import INK, Canvas, Line, Polygon, line_height, stacked, text_width, wrapped
from dysen.names import clean, shorten
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, event_to_dsg
from vdm.errors import DataError, PlanError, UserError

# Fills that dark text is readable on; an object keeps its colour in every panel.
PALETTE = ("#9ecae9", "#ffbf79", "#8cd17d", "#f1ce63", "#d4a6c8", "#86bcb6", "#fabfd2", "#d7b5a6", "#c9c9c9", "#ff9d9a")
GREY, PALE, WHITE = "#8a8a8a", "#f2f2f2", "#ffffff"
SIZE, SMALL, MARGIN, PAD = 13, 11, 16, 6
LABEL_WIDTH, OBJECT_WIDTH, RELATION_WIDTH, GAP = 300, 140, 140, 72
ROW_WIDTH = 1480
MAX_LANES = 8


def colours(names: tuple[str, ...]) -> dict[str, str]:
    """A fill for each object by its position."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def draw_caption(caption: str, width: float) -> Canvas:
    """The caption in as many lines as it takes."""
    lines = wrapped(shorten(caption, 600), SIZE, width - 2 * MARGIN)
    canvas = Canvas(width, len(lines) * line_height(SIZE) + MARGIN)
    canvas.lines(MARGIN, canvas.height / 2 + 3, lines, SIZE, is_bold=False)
    return canvas


def draw_plan(plan: Plan, *, fills: dict[str, str] | None = None) -> Canvas:
    """A row for each event, in the order they are told, and a column for each tick."""
    fills = fills or colours(plan.objects)
    texts = [" - ".join(filter(None, (e.agent, e.predicate, e.target))) for e in plan.events]
    labels = [wrapped(text, SIZE, LABEL_WIDTH) for text in texts]
    left = MARGIN + max(text_width(line, SIZE) for lines in labels for line in lines) + 2 * PAD
    column = max(min(64.0, 640 / plan.last), 4.0)
    heights = [len(lines) * line_height(SIZE) + 2 * PAD for lines in labels]
    top = MARGIN + line_height(SMALL) + PAD
    right = left + column * plan.last
    canvas = Canvas(right + MARGIN + text_width(f"{plan.last}v", SMALL) / 2, top + sum(heights) + MARGIN)
    step = next(n for n in (1, 2, 5, 10, 20, 50) if n * column > text_width("000v", SMALL) + 4)
    for tick in range(0, plan.num_ticks, step):
        x = left + tick * column
        canvas.shapes.append(Line((x, top - 4), (x, top + sum(heights)), "#d8d8d8"))
        if tick == 0 or plan.last - tick >= step or tick == plan.last:
            canvas.lines(x, MARGIN + line_height(SMALL) / 2, [f"{tick}v"], SMALL, is_centred=True, colour=GREY)
    if plan.last % step:
        canvas.lines(right, MARGIN + line_height(SMALL) / 2, [f"{plan.last}v"], SMALL, is_centred=True, colour=GREY)
    for event, lines, height in zip(plan.events, labels, heights, strict=True):
        canvas.lines(MARGIN, top + height / 2, lines, SIZE)
        x, bar = left + event.start * column, min(height - 2 * PAD, 20)
        canvas.rectangle(x, top + (height - bar) / 2, (event.end - event.start) * column, bar, fills[event.agent], GREY)
        top += height
    return canvas


def draw_dsg(dsg: DynamicSceneGraph, *, fills: dict[str, str] | None = None) -> Canvas:
    """A panel for each run of equal graphs: objects on the left, at one height in all panels, relations on the right.

    Planned relations are filled, imagined ones dashed; attributes stand below their object.
    """
    layout = Layout(dsg, fills or colours(dsg.objects))
    panels = _runs(dsg)
    columns = max(1, min(len(panels), int((ROW_WIDTH - 2 * MARGIN) // (layout.width + MARGIN))))
    rows = -(-len(panels) // columns)
    canvas = Canvas(MARGIN + columns * (layout.width + MARGIN), MARGIN + rows * (layout.height + MARGIN))
    for i, (first, last, graph) in enumerate(panels):
        row, column = divmod(i, columns)
        title = f"{first}v" if first == last else f"{first}v - {last}v"
        layout.draw(
            canvas, MARGIN + column * (layout.width + MARGIN), MARGIN + row * (layout.height + MARGIN), title, graph
        )
    return canvas


def _runs(dsg: DynamicSceneGraph) -> list[tuple[int, int, SceneGraph]]:
    found: list[tuple[int, int, SceneGraph]] = []
    for tick, graph in enumerate(dsg):
        if found and found[-1][2] == graph:
            found[-1] = (found[-1][0], tick, graph)
        else:
            found.append((tick, tick, graph))
    return found


class Layout:
    """Sizes that all panels share."""

    def __init__(self, dsg: DynamicSceneGraph, fills: dict[str, str]):
        self.fills = fills
        given: dict[str, dict[str, None]] = {name: {} for name in dsg.objects}
        relations = {t.predicate: None for graph in dsg for t in graph.triplets}
        for graph in dsg:
            for entry in graph.objects:
                given[entry.name].update(dict.fromkeys(entry.attributes))
        self.names = {name: wrapped(name, SIZE, OBJECT_WIDTH) for name in given}
        self.said = {predicate: wrapped(predicate, SMALL, RELATION_WIDTH) for predicate in relations}
        pills = [wrapped(attribute, SMALL, OBJECT_WIDTH) for found in given.values() for attribute in found]
        self.object_width = _widest(self.names.values(), SIZE, pills) + 2 * PAD
        self.relation_width = _widest(self.said.values(), SMALL, []) + 4 * PAD
        lanes = {name: self.lane(name, tuple(found)) for name, found in given.items()}
        # With many objects a lane for each would leave the panels nearly empty; then each panel packs its own.
        self.tops = _tops(lanes) if len(lanes) <= MAX_LANES else None
        bodies = [sum(lanes.values())] if self.tops is not None else [self.packed(graph)[1] for graph in dsg]
        stacks = [sum(self.slot(t) for t in graph.triplets) for graph in dsg]
        self.title = line_height(SIZE) + 2 * PAD
        self.body = max(*bodies, *stacks, line_height(SIZE))
        self.width = 2 * PAD + self.object_width + (GAP + self.relation_width if self.said else 0)
        self.height = self.title + self.body + PAD

    def node(self, name: str) -> float:
        return len(self.names[name]) * line_height(SIZE) + PAD

    def lane(self, name: str, attributes: tuple[str, ...]) -> float:
        """Height of an object with these attributes and the space below."""
        return self.node(name) + sum(map(self.pill, attributes)) + 2 * PAD

    def pill(self, attribute: str) -> float:
        return len(wrapped(attribute, SMALL, OBJECT_WIDTH)) * line_height(SMALL) + 4

    def packed(self, graph: SceneGraph) -> tuple[dict[str, float], float]:
        """Where the objects of one graph stand without gaps, and the height of all."""
        lanes = {entry.name: self.lane(entry.name, entry.attributes) for entry in graph.objects}
        return _tops(lanes), sum(lanes.values())

    def slot(self, triplet: Triplet) -> float:
        return len(self.said[triplet.predicate]) * line_height(SMALL) + 3 * PAD

    def draw(self, canvas: Canvas, left: float, top: float, title: str, graph: SceneGraph) -> None:
        """One panel."""
        canvas.rectangle(left, top, self.width, self.height, WHITE, "#d0d0d0")
        canvas.lines(left + PAD, top + self.title / 2, [title], SIZE, is_bold=True)
        top += self.title
        x = left + PAD
        tops = self.tops or self.packed(graph)[0]
        for entry in graph.objects:
            y, height = top + tops[entry.name], self.node(entry.name)
            canvas.rectangle(x, y, self.object_width, height, self.fills[entry.name], GREY)
            canvas.lines(x + self.object_width / 2, y + height / 2, self.names[entry.name], SIZE, is_centred=True)
            y += height
            for attribute in entry.attributes:
                height = self.pill(attribute)
                canvas.rectangle(x, y, self.object_width, height, PALE, GREY)
                lines = wrapped(attribute, SMALL, OBJECT_WIDTH)
                canvas.lines(x + self.object_width / 2, y + height / 2, lines, SMALL, is_centred=True)
                y += height
        self._relations(canvas, x + self.object_width, top, graph, tops)

    def _relations(self, canvas: Canvas, left: float, top: float, graph: SceneGraph, tops: dict[str, float]) -> None:
        """Hexagons on the right and the edges between; edges run only in the gap, so they cross no label."""
        wanted = {t: sum(tops[n] + self.node(n) / 2 for n in t.names) / len(t.names) for t in graph.triplets}
        triplets = sorted(wanted, key=wanted.__getitem__)
        middles = self._places(triplets, wanted)
        ports: dict[str, list[tuple[int, str]]] = {name: [] for name in graph.names}
        for i, triplet in enumerate(triplets):
            ports[triplet.subject].append((i, "subject"))
            if triplet.object is not None:
                ports[triplet.object].append((i, "object"))
        at = {
            (name, *port): top + tops[name] + self.node(name) * (n + 1) / (len(found) + 1)
            for name, found in ports.items()
            for n, port in enumerate(found)
        }
        x = left + GAP
        for i, (triplet, middle) in enumerate(zip(triplets, middles, strict=True)):
            y, height, far = top + middle, self.slot(triplet) - PAD, x + self.relation_width
            canvas.shapes.append(Line((left, at[triplet.subject, i, "subject"]), (x + 3, y - 3), INK, 1.2))
            if triplet.object is not None:
                canvas.arrow((x + 3, y + 3), (left, at[triplet.object, i, "object"]), INK)
            tip, half = 1.5 * PAD, height / 2
            points = ((x, y), (x + tip, y - half), (far - tip, y - half), (far, y), (far - tip, y + half))
            points += ((x + tip, y + half),)
            is_planned = triplet in graph.actions
            fill = self.fills[triplet.subject] if is_planned else WHITE
            canvas.shapes.append(Polygon(points, fill, GREY, is_dashed=not is_planned))
            canvas.lines(x + self.relation_width / 2, y, self.said[triplet.predicate], SMALL, is_centred=True)

    def _places(self, triplets: list[Triplet], wanted: dict[Triplet, float]) -> list[float]:
        """Heights of the middles, as near to the wanted ones, between their objects, as fits without overlap."""
        tops, low = [], 0.0
        for triplet in triplets:
            tops.append(max(low, wanted[triplet] - self.slot(triplet) / 2))
            low = tops[-1] + self.slot(triplet)
        high = self.body
        for i in range(len(triplets) - 1, -1, -1):
            tops[i] = min(tops[i], high - self.slot(triplets[i]))
            high = tops[i]
        return [start + self.slot(triplet) / 2 for start, triplet in zip(tops, triplets, strict=True)]


def _tops(lanes: dict[str, float]) -> dict[str, float]:
    heights = [0.0, *accumulate(lanes.values())]
    return dict(zip(lanes, heights, strict=False))


def _widest(texts: Iterable[list[str]], size: int, pills: list[list[str]]) -> float:
    widths = [text_width(line, size) for lines in texts for line in lines]
    return max([*widths, *(text_width(line, SMALL) for lines in pills for line in lines), 40.0])


def draw(plan: Plan | None, dsg: DynamicSceneGraph | None, caption: str = "") -> Canvas:
    """Caption, timeline and graphs, whatever there is, one below the other."""
    names = (plan.objects if plan is not None else ()) + (dsg.objects if dsg is not None else ())
    fills = colours(tuple(dict.fromkeys(names)))
    parts = [draw_plan(plan, fills=fills)] if plan is not None else []
    parts += [draw_dsg(dsg, fills=fills)] if dsg is not None else []
    assert parts, "nothing to draw"
    width = max(max(part.width for part in parts), 480.0)
    return stacked(([draw_caption(caption, width)] if clean(caption) else []) + parts)


def read(path: Path) -> tuple[Plan | None, DynamicSceneGraph, str]:
    """Plan, graphs and caption of a json file in one of the forms above."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as json", got=error) from error
    match data:
        case {"extras": {**extras}, **rest}:  # a sample of a shard
            captions = rest.get("captions")
            data = {"caption": captions[0] if isinstance(captions, list) and captions else "", **extras}
    match data:
        case [{}, *_]:
            return None, DynamicSceneGraph.from_json(data), ""
        case [*_]:
            plan = Plan.from_json(data)
            return plan, event_to_dsg(plan), ""
        case {"plan": events, **rest}:
            plan = Plan.from_json(events)
            dsg = DynamicSceneGraph.from_json(rest["scene_graphs"]) if "scene_graphs" in rest else event_to_dsg(plan)
            return plan, dsg, str(rest.get("caption", ""))
        case {"scene_graphs": graphs, **rest}:
            return None, DynamicSceneGraph.from_json(graphs), str(rest.get("caption", ""))
    raise PlanError(f"{path} holds neither a plan nor scene graphs", allowed='[...], or {"plan", "scene_graphs"}')


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dysen.drawing", description=__doc__.split("\n")[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("picture", type=Path, help="a name that ends with .svg or .png")
    asked = parser.parse_args(arguments)
    try:
        if asked.picture.suffix not in (".svg", ".png"):
            raise DataError("no such kind of picture", got=asked.picture.name, allowed=(".svg", ".png"))
        canvas = draw(*read(asked.json))
        canvas.save(asked.picture)
    except UserError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"DataError: {asked.picture} cannot be written: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
