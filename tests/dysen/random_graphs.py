"""Seeded plans and graphs of all valid kinds, with names that are hard to write down."""

import random

from dysen.action_plan import Event, Plan, Triplet
from dysen.names import clean
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, SceneObject

PLAIN = ("lady", "friend", "chair", "old man", "bottle of water", "person #2", "red square", "The Lady", "a", "café")
HARD = (
    *("a, b", 'the "big" one', "lady's cup", "(red)", "x)", "[1, 2]", "-", "none", "0v", "12v", "*star", "k: v"),
    *(
        "女士",
        "坐在，上",
        "женщина",
        "امرأة",
        "🙂 cup",
        "{}",
        "\\",
        'a\\"',
        "“quoted”",
        "`code`",
        "'",
        '"',
        "#",
        "1",
        "null",
    ),
    *("z" * 80, '"' * 80, "，" * 80, "1v: (a, b)", "c;d", "e|f", "ﬁ", "é́"),
)
NAMES = tuple(dict.fromkeys(clean(name) for name in PLAIN + HARD))


def name(rng: random.Random) -> str:
    return rng.choice(PLAIN if rng.random() < 0.6 else NAMES)


def plan(rng: random.Random) -> Plan:
    events = []
    for _ in range(rng.choice((1, 1, 2, 3, 5, 9))):
        start = rng.randrange(8)
        target = name(rng) if rng.random() < 0.7 else None
        events.append(Event(name(rng), name(rng), target, start, start + rng.randint(1, 6)))
    return Plan(tuple(dict.fromkeys(events)))


def graph(rng: random.Random, *, with_actions: bool = True) -> SceneGraph:
    def triplets(most: int) -> list[Triplet]:
        return [Triplet(name(rng), name(rng), name(rng)) for _ in range(rng.randint(0, most))]

    objects = [
        SceneObject(name(rng), tuple(dict.fromkeys(name(rng) for _ in range(rng.randint(0, 3)))))
        for _ in range(rng.randint(0, 3))
    ]
    actions = triplets(3) if with_actions else []
    if with_actions and rng.random() < 0.3:
        actions.append(Triplet(name(rng), name(rng), None))
    return SceneGraph.build(objects, actions, triplets(4))


def dsg(rng: random.Random) -> DynamicSceneGraph:
    return DynamicSceneGraph(tuple(graph(rng) for _ in range(rng.randint(1, 4))))
