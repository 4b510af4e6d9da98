"""Drawings: labels do not overlap and lie inside, names cannot break the file, and the command says what is wrong."""

import itertools
import json
import random
import xml.etree.ElementTree as ElementTree

import pytest
import random_graphs
from PIL import Image
from test_action_plan import PAPER

from dysen.action_plan import Event, Plan, Triplet
from dysen.canvas import Canvas, Polygon, text_width, wrapped
from dysen.drawing import draw, draw_dsg, draw_plan, main
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, SceneObject, enrich, event_to_dsg

LONG = ("an extraordinarily long-winded elderly gentleman with a hat", "W" * 80, "女" * 80, "Donaudampfschifffahrt" * 3)


def check_labels(canvas: Canvas):
    boxes = [label.box for label in canvas.labels()]
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        assert right <= canvas.width
        assert bottom <= canvas.height
    for (a, b, c, d), (e, f, g, h) in itertools.combinations(boxes, 2):
        assert c <= e or g <= a or d <= f or h <= b, "two labels overlap"


@pytest.mark.parametrize("num_ticks", [1, 2, 5, 10, 40, 255])
@pytest.mark.parametrize("num_objects", [1, 2, 3, 12])
def test_labels_never_overlap(num_objects, num_ticks):
    rng = random.Random(num_objects + num_ticks)
    names = [*LONG, *(f"thing {i}" for i in range(20))][:num_objects]
    events = [
        Event(rng.choice(names), rng.choice(LONG), rng.choice([*names, None]), start, rng.randint(start + 1, num_ticks))
        for start in (rng.randrange(num_ticks) for _ in range(6))
    ]
    plan = Plan((*dict.fromkeys([*events, Event(names[0], "waits", None, 0, num_ticks)]),))
    addition = SceneGraph.build(
        [SceneObject(names[0], (*LONG[:2], "red"))], relations=[Triplet(names[0], "near", names[-1])]
    )
    dsg = DynamicSceneGraph(tuple(enrich(g, addition) if i % 2 else g for i, g in enumerate(event_to_dsg(plan))))
    check_labels(draw_plan(plan))
    if num_ticks < 40:
        check_labels(draw_dsg(dsg))
        check_labels(draw(plan, dsg, "A caption. " * 40))


def test_any_graph_is_well_formed_xml_with_its_names():
    rng = random.Random(10)
    for _ in range(100):
        dsg = random_graphs.dsg(rng)
        root = ElementTree.fromstring(draw(None, dsg, "<&>\"'").to_svg())
        said = "".join("".join(root.itertext()).split())
        assert all("".join(name.split()) in said for name in dsg.objects if len(name) < 20)
        assert "<&>" in said


def test_equal_graphs_share_a_panel_and_an_object_keeps_its_colour():
    canvas = draw(PAPER, event_to_dsg(PAPER), "")
    texts = [label.text for label in canvas.labels()]
    assert [text for text in texts[11:] if text.endswith("v")] == ["0v", "1v", "2v", "3v", "4v - 5v"]
    assert texts.count("lady") == 5
    assert canvas.to_svg() == draw(PAPER, event_to_dsg(PAPER), "").to_svg()
    fills = {shape.fill for shape in canvas.shapes if isinstance(shape, Polygon) and len(shape.points) == 6}
    assert len(fills) == 1, "one agent, one colour, in the bars and in the graphs"
    assert fills == {shape.fill for shape in draw_plan(PAPER).shapes if isinstance(shape, Polygon)}


def test_wrapping():
    lines = wrapped("a bottle of water " + "x" * 100, 13, 120)
    assert "".join(lines).replace(" ", "") == "abottleofwater" + "x" * 100
    assert all(text_width(line, 13) <= 120 for line in lines)
    assert wrapped("", 13, 120) == [""]


def test_command(tmp_path):
    source = tmp_path / "plan.json"
    source.write_text(json.dumps(PAPER.to_json()))
    assert main([str(source), str(tmp_path / "plan.svg")]) == 0
    ElementTree.parse(tmp_path / "plan.svg")
    assert main([str(source), str(tmp_path / "plan.png")]) == 0
    with Image.open(tmp_path / "plan.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(100_000)) > 5
    source.write_text(
        json.dumps({"caption": "x", "plan": PAPER.to_json(), "scene_graphs": event_to_dsg(PAPER).to_json()})
    )
    assert main([str(source), str(tmp_path / "both.svg")]) == 0
    source.write_text(json.dumps(event_to_dsg(PAPER).to_json()))
    assert main([str(source), str(tmp_path / "graphs.svg")]) == 0


@pytest.mark.parametrize(
    ("text", "picture"),
    [
        ("[", "a.svg"),
        ("[]", "a.svg"),
        ("3", "a.svg"),
        ('{"a": 1}', "a.svg"),
        ("[[1]]", "a.svg"),
        ('[["a", "b", null, [0, 1]]]', "a.bmp"),
        ('[["a", "b", null, [0, 1]]]', "no/folder/a.svg"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, capsys, text, picture):
    source = tmp_path / "plan.json"
    source.write_text(text)
    assert main([str(source), str(tmp_path / picture)]) == 2
    assert "Error" in capsys.readouterr().err
    assert not (tmp_path / picture).exists()
