"""Dynamic scene graphs of many clips as padded tensors, for an encoder that takes all of them in one call.

A node is a label, a kind, a number that tells objects of one label apart, and its place in the graph as the Laplacian sees
it: the heat kernel signature of Sun et al. (2009), the diagonal of exp(-s L) for several s. Eigenvectors of the Laplacian
would not do: their signs, and their basis where attributes hang on one object like leaves, differ between equal graphs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dysen.names import NUMBER
from dysen.scene_graph import DynamicSceneGraph, SceneGraph

OBJECT, ATTRIBUTE, RELATION, ACTION = range(4)
NUM_KINDS = 4
SELF, HAS, SUBJECT, TARGET = range(
    4
)  # of a node to itself; object -> attribute; object -> relation; relation -> object
REVERSE = 3  # added to the role of an edge that is walked backwards
NUM_ROLES = 7
NUM_NUMBERS = 16  # "person" is 0, "person #2" is 2, and all above 15 are one
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # s of exp(-s L)
SIGNATURE = len(SCALES)


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """Graphs of b clips, filled up to m ticks, n nodes and e edges. Edges count in the nodes of their own graph.

    `label` is a position in `labels`, whose first entry "" belongs to what is filled up. `packed` lists the nodes of a
    clip tick by tick, without gaps: positions in (m n), as many as the fullest clip has.
    """

    labels: tuple[str, ...]
    label: Tensor  # b m n
    kind: Tensor  # b m n
    number: Tensor  # b m n
    signature: Tensor  # b m n s
    exists: Tensor  # b m n, bool
    source: Tensor  # b m e
    target: Tensor  # b m e
    role: Tensor  # b m e
    joined: Tensor  # b m e, bool
    packed: Tensor  # b k
    packed_exists: Tensor  # b k, bool
    ticks: Tensor  # b: how many each clip has, 0 for one without graphs

    def __len__(self) -> int:
        return len(self.ticks)

    def to(self, device: torch.device | str) -> SceneBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return SceneBatch(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()})


@dataclass(frozen=True, eq=False)
class GraphArrays:
    """One graph, by itself."""

    labels: tuple[str, ...]
    nodes: np.ndarray  # 2 n: kind and number
    edges: np.ndarray  # 3 e: source, target and role
    signature: np.ndarray  # n s


def collate(clips: Sequence[DynamicSceneGraph | None]) -> SceneBatch:
    """The graphs of clips; None where a clip has none. There is at least one node, were it an empty one."""
    graphs = [[arrays_of(graph) for graph in clip or ()] for clip in clips]
    every = [graph for clip in graphs for graph in clip]
    b, m = len(clips), max([1, *map(len, graphs)])
    n = max([1, *(len(graph.labels) for graph in every)])
    e = max([1, *(graph.edges.shape[1] for graph in every)])
    position = {"": 0} | {label: 0 for graph in every for label in graph.labels}
    position = {label: i for i, label in enumerate(position)}
    label, exists = np.zeros((b, m, n), dtype=np.int64), np.zeros((b, m, n), dtype=bool)
    nodes, signature = np.zeros((b, m, 2, n), dtype=np.int64), np.zeros((b, m, n, SIGNATURE), dtype=np.float32)
    edges, joined = np.zeros((b, m, 3, e), dtype=np.int64), np.zeros((b, m, e), dtype=bool)
    for i, clip in enumerate(graphs):
        for tick, graph in enumerate(clip):
            count, links = len(graph.labels), graph.edges.shape[1]
            label[i, tick, :count] = [position[text] for text in graph.labels]
            nodes[i, tick, :, :count], signature[i, tick, :count] = graph.nodes, graph.signature
            edges[i, tick, :, :links] = graph.edges
            exists[i, tick, :count] = joined[i, tick, :links] = True
    places = exists.reshape(b, -1)
    k = max(1, int(places.sum(axis=1).max(initial=0)))
    packed = np.argsort(~places, axis=1, kind="stable")[:, :k]
    arrays = {
        "label": label, "kind": nodes[:, :, 0], "number": nodes[:, :, 1], "signature": signature, "exists": exists,
        "source": edges[:, :, 0], "target": edges[:, :, 1], "role": edges[:, :, 2], "joined": joined, "packed": packed,
        "packed_exists": np.take_along_axis(places, packed, axis=1),
        "ticks": np.array([len(clip) for clip in graphs], dtype=np.int64),
    }  # fmt: skip
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return SceneBatch(labels=tuple(position), **tensors)


@functools.lru_cache(maxsize=16384)
def arrays_of(graph: SceneGraph) -> GraphArrays:
    """A graph often stands for several ticks, and in every epoch again."""
    nodes = graph.nodes()
    kinds = [
        OBJECT if node.kind == "object" else ATTRIBUTE if node.kind == "attribute" else ACTION if node.is_planned
        else RELATION for node in nodes
    ]  # fmt: skip
    numbers = [_number(name) for name in graph.names] + [0] * (len(nodes) - len(graph.names))
    pairs = np.array(graph.edges(), dtype=np.int64).reshape(-1, 2).T  # 2 e
    kind = np.array(kinds, dtype=np.int64)
    roles = np.where(kind[pairs[1]] == OBJECT, TARGET, np.where(kind[pairs[1]] == ATTRIBUTE, HAS, SUBJECT))
    own = np.arange(len(nodes))
    forward, backward = np.stack([*pairs, roles]), np.stack([*pairs[::-1], roles + REVERSE])
    edges = np.concatenate([np.stack([own, own, np.full_like(own, SELF)]), forward, backward], axis=1)
    labels = tuple(node.label for node in nodes)
    return GraphArrays(
        labels, np.stack([kind, np.array(numbers, dtype=np.int64)]), edges, _signature(len(nodes), pairs)
    )


def _number(name: str) -> int:
    found = NUMBER.search(name)
    return min(int(found[0][2:]), NUM_NUMBERS - 1) if found else 0


def _signature(count: int, pairs: np.ndarray) -> np.ndarray:
    """The diagonal of exp(-s L), L the normalised Laplacian of the graph without directions."""
    adjacency = np.zeros((count, count))
    adjacency[pairs[0], pairs[1]] = adjacency[pairs[1], pairs[0]] = 1.0
    degrees = adjacency.sum(axis=1)
    inverse = np.divide(1.0, np.sqrt(degrees), out=np.zeros(count), where=degrees > 0)
    laplacian = np.diag((degrees > 0).astype(float)) - inverse[:, None] * adjacency * inverse
    values, vectors = np.linalg.eigh(laplacian)
    heat = np.exp(-np.outer(values, SCALES))  # eigenvalues s
    return (vectors**2 @ heat).astype(np.float32)  # n s
