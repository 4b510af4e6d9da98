"""Dynamic scene graphs as plain, frozen, validated data (Dysen-VDM, section 3): one graph for each tick of a plan.

Nodes are objects, their attributes, and relations. Relations that a plan asked for are kept apart as actions, because
what is imagined later may add to a graph but never takes a planned action away. An object has the same name in every
graph. The json of a graph is what the shapes world writes as `scene_graphs` beside each clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dysen.action_plan import MAX_TICK, Plan, Triplet
from dysen.names import check_name, identity, label, shorten
from vdm.errors import PlanError

MAX_OBJECTS = 128
MAX_ATTRIBUTES = 32  # of one object
MAX_TRIPLETS = 512


@dataclass(frozen=True)
class SceneObject:
    """An object node and the attribute nodes attached to it."""

    name: str
    attributes: tuple[str, ...] = ()

    def __post_init__(self):
        check_name(self.name, "an object")
        assert isinstance(self.attributes, tuple), "attributes are a tuple"
        for attribute in self.attributes:
            check_name(attribute, f"an attribute of {self.name!r}")
        if len(set(self.attributes)) != len(self.attributes):
            raise PlanError(f"{self.name!r} has an attribute twice", got=", ".join(self.attributes))
        if len(self.attributes) > MAX_ATTRIBUTES:
            raise PlanError("too many attributes", got=len(self.attributes), allowed=f"<= {MAX_ATTRIBUTES}")


@dataclass(frozen=True)
class Node:
    """One node as an encoder reads it. `is_planned` holds for actions and for no other."""

    kind: Literal["object", "attribute", "relation"]
    label: str
    is_planned: bool = False


@dataclass(frozen=True)
class SceneGraph:
    """One graph: every triplet joins objects that are listed, and nothing stands twice. See `build` for an easy way."""

    objects: tuple[SceneObject, ...] = ()
    actions: tuple[Triplet, ...] = ()
    relations: tuple[Triplet, ...] = ()

    def __post_init__(self):
        assert all(isinstance(part, tuple) for part in (self.objects, self.actions, self.relations)), "tuples"
        names = [entry.name for entry in self.objects]
        triplets = self.triplets
        if len(names) > MAX_OBJECTS or len(triplets) > MAX_TRIPLETS:
            got = f"{len(names)} objects, {len(triplets)} triplets"
            raise PlanError("a scene graph is too large", got=got, allowed=f"{MAX_OBJECTS}, {MAX_TRIPLETS}")
        if len(set(names)) != len(names):
            raise PlanError("an object stands twice in a scene graph", got=shorten(", ".join(names)))
        if len(set(triplets)) != len(triplets):
            raise PlanError("a triplet stands twice in a scene graph", got=shorten(str(triplets)))
        missing = {name for triplet in triplets for name in triplet.names} - set(names)
        if missing:
            raise PlanError("a triplet joins objects that the scene graph lacks", got=shorten(", ".join(missing)))
        if any(triplet.object is None for triplet in self.relations):
            raise PlanError("a relation joins two objects; only an action may have none")

    @classmethod
    def build(
        cls,
        objects: Iterable[SceneObject] = (),
        actions: Iterable[Triplet] = (),
        relations: Iterable[Triplet] = (),
    ) -> SceneGraph:
        """The graph with duplicates merged and the objects that are only mentioned added."""
        acts = tuple(dict.fromkeys(actions))
        others = tuple(triplet for triplet in dict.fromkeys(relations) if triplet not in acts)
        attributes: dict[str, dict[str, None]] = {}
        for entry in objects:
            attributes.setdefault(entry.name, {}).update(dict.fromkeys(entry.attributes))
        for triplet in acts + others:
            for name in triplet.names:
                attributes.setdefault(name, {})
        return cls(tuple(SceneObject(name, tuple(found)) for name, found in attributes.items()), acts, others)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.objects)

    @property
    def triplets(self) -> tuple[Triplet, ...]:
        """The relation nodes: actions, then relations."""
        return self.actions + self.relations

    def planned(self) -> SceneGraph:
        """Only what the plan put there."""
        return SceneGraph.build(actions=self.actions)

    def nodes(self) -> tuple[Node, ...]:
        """Objects, then attributes, then relations; `edges` counts in this order."""
        objects = [Node("object", label(entry.name)) for entry in self.objects]
        attributes = [Node("attribute", attribute) for entry in self.objects for attribute in entry.attributes]
        actions = [Node("relation", triplet.predicate, is_planned=True) for triplet in self.actions]
        return (*objects, *attributes, *actions, *(Node("relation", t.predicate) for t in self.relations))

    def edges(self) -> tuple[tuple[int, int], ...]:
        """Directed pairs of positions in `nodes`: object -> attribute, subject -> relation -> object."""
        place = {name: i for i, name in enumerate(self.names)}
        found, at = [], len(place)
        for entry in self.objects:
            for _ in entry.attributes:
                found.append((place[entry.name], at))
                at += 1
        for triplet in self.triplets:
            found.append((place[triplet.subject], at))
            if triplet.object is not None:
                found.append((at, place[triplet.object]))
            at += 1
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "objects": [{"name": entry.name, "attributes": list(entry.attributes)} for entry in self.objects],
            "actions": [[t.subject, t.predicate, t.object] for t in self.actions],
            "relations": [[t.subject, t.predicate, t.object] for t in self.relations],
        }

    @classmethod
    def from_json(cls, data: object) -> SceneGraph:
        """The inverse of `to_json`. Objects that are only mentioned are added: truth lists those in sight only."""
        match data:
            case {"objects": list(objects), "actions": list(actions), "relations": list(relations)}:
                return cls.build(map(_object, objects), map(_triplet, actions), map(_triplet, relations))
        raise PlanError("no scene graph", got=shorten(repr(data)), allowed='{"objects", "actions", "relations"}: lists')


def _object(entry: object) -> SceneObject:
    match entry:
        case {"name": name, "attributes": list(attributes)}:
            return SceneObject(name, tuple(attributes))
    raise PlanError("no object of a scene graph", got=shorten(repr(entry)), allowed='{"name", "attributes"}')


def _triplet(entry: object) -> Triplet:
    match entry:
        case [subject, predicate, target]:
            return Triplet(subject, predicate, target)
    raise PlanError("no triplet", got=shorten(repr(entry)), allowed="[subject, predicate, object]")


def merge(first: SceneGraph, second: SceneGraph) -> SceneGraph:
    """Both graphs in one, nothing twice. Merging the same again changes nothing."""
    return SceneGraph.build(
        first.objects + second.objects, first.actions + second.actions, first.relations + second.relations
    )


def enrich(graph: SceneGraph, addition: SceneGraph) -> SceneGraph:
    """`graph` with what was imagined (step III). Nothing of `graph` is lost and no action is added.

    Another spelling of a known object means that object. What would make the graph too large is left out.
    """
    spelling = {identity(name): name for name in graph.names} | {name: name for name in graph.names}

    def known(name: str) -> str:
        return spelling.get(name) or spelling.setdefault(identity(name), name)

    fresh_names = dict.fromkeys(known(name) for name in addition.names if known(name) not in graph.names)
    room = {*graph.names, *list(fresh_names)[: MAX_OBJECTS - len(graph.objects)]}
    triplets = dict.fromkeys(
        Triplet(known(t.subject), t.predicate, known(t.object)) for t in addition.triplets if t.object is not None
    )
    old = {*graph.actions, *graph.relations}
    fresh = [t for t in triplets if t not in old and room.issuperset(t.names)][: MAX_TRIPLETS - len(graph.triplets)]
    attributes = {entry.name: dict.fromkeys(entry.attributes) for entry in graph.objects}
    for entry in addition.objects:
        if known(entry.name) in room:
            attributes.setdefault(known(entry.name), {}).update(dict.fromkeys(entry.attributes))
    objects = [SceneObject(name, tuple(found)[:MAX_ATTRIBUTES]) for name, found in attributes.items()]
    return SceneGraph.build(objects, graph.actions, (*graph.relations, *fresh))


@dataclass(frozen=True)
class DynamicSceneGraph:
    """Scene graphs G_1 .. G_M of the ticks 0 .. M - 1."""

    graphs: tuple[SceneGraph, ...]

    def __post_init__(self):
        assert isinstance(self.graphs, tuple), "the graphs are a tuple"
        if not 1 <= len(self.graphs) <= MAX_TICK + 1:
            raise PlanError("no valid number of scene graphs", got=len(self.graphs), allowed=f"1 to {MAX_TICK + 1}")

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, tick: int) -> SceneGraph:
        return self.graphs[tick]

    def __iter__(self) -> Iterator[SceneGraph]:
        return iter(self.graphs)

    @property
    def objects(self) -> tuple[str, ...]:
        """Every object of the clip once; its position here is the same at every tick."""
        return tuple(dict.fromkeys(name for graph in self.graphs for name in graph.names))

    def planned(self) -> DynamicSceneGraph:
        """The same without scene imagination."""
        return DynamicSceneGraph(tuple(graph.planned() for graph in self.graphs))

    def to_json(self) -> list[dict[str, Any]]:
        return [{"tick": tick, **graph.to_json()} for tick, graph in enumerate(self.graphs)]

    @classmethod
    def from_json(cls, data: object) -> DynamicSceneGraph:
        """The inverse of `to_json`; reads the `scene_graphs` of a shard as they are stored."""
        if not isinstance(data, list):
            raise PlanError("a dynamic scene graph is a list of graphs", got=shorten(repr(data)))
        for tick, entry in enumerate(data):
            if isinstance(entry, dict) and entry.get("tick", tick) != tick:
                raise PlanError("the graphs are not one for each tick in order", got=entry["tick"], allowed=tick)
        return cls(tuple(SceneGraph.from_json(entry) for entry in data))


def event_to_dsg(plan: Plan) -> DynamicSceneGraph:
    """The initial graphs of a plan (step II): one for each tick 0..last.

    An event stands in the graphs from its start up to its end, and events that end at the last tick stay in its graph.
    """
    return DynamicSceneGraph(
        tuple(
            SceneGraph.build(
                actions=[e.triplet for e in plan.events if e.start <= tick < e.end or tick == e.end == plan.last]
            )
            for tick in range(plan.num_ticks)
        )
    )
