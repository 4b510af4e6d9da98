"""Scene encoders: what their outputs may depend on, and what they must."""

import random
import zlib

import numpy as np
import pytest
import random_graphs
import torch

from dysen.action_plan import Triplet
from dysen.graph_encoder import Edges, GraphLayer, MemoryLayer, RecurrentGraphNetwork, RecurrentGraphTransformer
from dysen.labels import WordEncoder, vectors_of, written
from dysen.scene_batch import HAS, NUM_NUMBERS, REVERSE, SELF, SIGNATURE, SUBJECT, TARGET, arrays_of, collate
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, SceneObject
from vdm.errors import ConfigError

WIDTH = 16
CUP = SceneObject("cup", ("red", "small"))
DRINKING, NEAR = Triplet("lady", "drinking from", "cup"), Triplet("cup", "near", "lady")
GRAPH = SceneGraph.build([CUP, SceneObject("dog #2", ("brown", "old"))], [DRINKING], [NEAR])


def rgtrm(**changes):
    settings = {"width": WIDTH, "heads": 2, "depth": 2, "recurrent_depth": 2, "cells": 3, "dropout": 0.0}
    return RecurrentGraphTransformer(**settings | changes)


def rgnn(**changes):
    return RecurrentGraphNetwork(**{"width": WIDTH, "depth": 2, "dropout": 0.0} | changes)


@pytest.fixture(params=[rgtrm, rgnn], ids=["rgtrm", "rgnn"])
def encoder(request):
    torch.manual_seed(0)
    network = request.param().eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return network


def clips(count=6, seed=0):
    rng = random.Random(seed)
    return [random_graphs.dsg(rng) for _ in range(count - 1)] + [DynamicSceneGraph((GRAPH, SceneGraph(), GRAPH))]


def label_vectors(scenes):
    """A vector that belongs to a label alone."""
    rows = [
        torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(label.encode())))
        for label in scenes.labels
    ]
    return torch.stack(rows)[scenes.label]


def encode(encoder, given):
    scenes = collate(given)
    return scenes, encoder(label_vectors(scenes), scenes)


# ---- graphs as tensors --------------------------------------------------------------------------------------------------


def test_a_graph_as_arrays():
    arrays = arrays_of(GRAPH)
    names = [("cup", 0), ("dog", 2), ("lady", 0)]
    assert arrays.labels == (*(n for n, _ in names), "red", "small", "brown", "old", "drinking from", "near")
    assert arrays.nodes.tolist() == [[0, 0, 0, 1, 1, 1, 1, 3, 2], [0, 2, 0, 0, 0, 0, 0, 0, 0]]
    forward = [(0, 3, HAS), (0, 4, HAS), (1, 5, HAS), (1, 6, HAS)]
    forward += [(2, 7, SUBJECT), (7, 0, TARGET), (0, 8, SUBJECT), (8, 2, TARGET)]
    expected = [(i, i, SELF) for i in range(9)] + forward + [(j, i, role + REVERSE) for i, j, role in forward]
    assert sorted(map(tuple, arrays.edges.T.tolist())) == sorted(expected)


def test_the_signature_is_the_diagonal_of_the_heat_kernel():
    """A path of three, by hand: the normalised Laplacian has the eigenvalues 0, 1, 2."""
    arrays = arrays_of(SceneGraph.build(actions=[Triplet("a", "sees", "b")]))  # a - sees - b
    s = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
    end = 0.25 + 0.5 * np.exp(-s) + 0.25 * np.exp(-2 * s)
    middle = 0.5 + 0.5 * np.exp(-2 * s)
    np.testing.assert_allclose(arrays.signature, [end, end, middle], atol=1e-6)
    alone = arrays_of(SceneGraph.build([SceneObject("a")]))
    np.testing.assert_array_equal(alone.signature, np.ones((1, SIGNATURE)))


def test_what_is_filled_up_and_what_is_packed():
    given = [DynamicSceneGraph((GRAPH, SceneGraph(), GRAPH)), None, DynamicSceneGraph((SceneGraph.build([CUP]),))]
    scenes = collate(given)
    assert scenes.label.shape == (3, 3, 9)
    assert scenes.ticks.tolist() == [3, 0, 1]
    assert scenes.exists.sum(-1).tolist() == [[9, 0, 9], [0, 0, 0], [3, 0, 0]]
    assert scenes.packed_exists.sum(-1).tolist() == [18, 0, 3]
    assert scenes.packed[0].tolist() == [*range(9), *range(18, 27)]
    assert scenes.packed[2, :3].tolist() == [0, 1, 2]
    text = [scenes.labels[i] for i in scenes.label[2, 0, :3]]
    assert text == ["cup", "red", "small"]
    assert not scenes.label[~scenes.exists].any()
    assert scenes.labels[0] == ""


def test_numbers_tell_objects_of_one_label_apart():
    names = ("man", "man #1", "man #7", "man #900000")
    arrays = arrays_of(SceneGraph.build(SceneObject(name) for name in names))
    assert arrays.labels == ("man",) * 4
    assert arrays.nodes[1].tolist() == [0, 1, 7, NUM_NUMBERS - 1]


def test_a_batch_without_any_graph_still_has_a_shape(encoder):
    for given in ([None, None], [DynamicSceneGraph((SceneGraph(),))]):
        scenes, outputs = encode(encoder, given)
        assert outputs.nodes.isfinite().all()
        assert not scenes.packed_exists.any()
        assert not outputs.graphs.any()


# ---- encoders -----------------------------------------------------------------------------------------------------------


def renamed(graph, rng):
    """The same graph told in another order."""
    objects = [SceneObject(o.name, tuple(rng.sample(o.attributes, len(o.attributes)))) for o in graph.objects]
    shuffled = [rng.sample(list(part), len(part)) for part in (objects, graph.actions, graph.relations)]
    return SceneGraph.build(*shuffled)


def by_node(scenes, outputs, clip, tick, graph):
    """Outputs by what a node is: label and the rows of its neighbours' labels; equal nodes are interchangeable."""
    count = len(graph.nodes())
    rows = outputs.nodes[clip, tick, :count]
    labels = [scenes.labels[i] for i in scenes.label[clip, tick, :count]]
    kinds = scenes.kind[clip, tick, :count].tolist()
    return sorted(zip(labels, kinds, [[round(v, 3) + 0.0 for v in row] for row in rows.tolist()], strict=True))


@torch.no_grad()
def test_a_graph_told_in_another_order_is_the_same(encoder):
    """Through the whole way: arrays, Laplacian with its many equal eigenvalues, encoder."""
    rng, given = random.Random(1), clips(8)
    other = [DynamicSceneGraph(tuple(renamed(graph, rng) for graph in clip)) for clip in given]
    assert any(a.nodes() != b.nodes() for x, y in zip(given, other, strict=True) for a, b in zip(x, y, strict=True))
    (scenes, outputs), (scenes2, outputs2) = encode(encoder, given), encode(encoder, other)
    torch.testing.assert_close(outputs.graphs, outputs2.graphs, atol=2e-5, rtol=1e-4)
    for i, clip in enumerate(given):
        for tick, graph in enumerate(clip):
            first, second = (by_node(*made, i, tick, graph) for made in ((scenes, outputs), (scenes2, outputs2)))
            for a, b in zip(first, second, strict=True):
                assert a[:2] == b[:2]
            found = np.array([row for *_, row in first]), np.array([row for *_, row in second])
            if graph.nodes():
                distance = np.abs(found[0][:, None] - found[1][None]).max(-1)  # up to rounding at a tie
                assert distance.min(axis=1).max() < 3e-3


@torch.no_grad()
def test_permuting_nodes_permutes_outputs(encoder):
    scenes = collate(clips())
    order = torch.randperm(scenes.label.shape[2], generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    moved = {name: getattr(scenes, name)[:, :, order] for name in ("label", "kind", "number", "signature", "exists")}
    moved |= {"source": place[scenes.source], "target": place[scenes.target], "role": scenes.role}
    other = type(scenes)(
        scenes.labels, **moved, joined=scenes.joined, packed=scenes.packed, packed_exists=scenes.packed_exists,
        ticks=scenes.ticks,
    )  # fmt: skip
    plain, permuted = encoder(label_vectors(scenes), scenes), encoder(label_vectors(other), other)
    exists = scenes.exists[:, :, order]
    torch.testing.assert_close(plain.nodes[:, :, order][exists], permuted.nodes[exists], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.graphs, permuted.graphs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_clips_in_one_batch_equal_single_calls(encoder):
    """Padding with nodes, edges and ticks, and the neighbours in the batch, change nothing."""
    given = clips(7)
    _, together = encode(encoder.train(), given)
    for i, clip in enumerate(given):
        scenes, alone = encode(encoder, [clip])
        m, n = scenes.label.shape[1:]
        exists = scenes.exists[0]
        torch.testing.assert_close(together.nodes[i, :m, :n][exists], alone.nodes[0][exists], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.graphs[i, :m], alone.graphs[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_tick_depends_on_those_before_it_and_on_none_after(encoder):
    rng = random.Random(3)
    first = [SceneGraph.build([CUP], [DRINKING]), GRAPH, random_graphs.graph(rng), GRAPH, GRAPH]
    for changed in range(5):
        other = list(first)
        other[changed] = SceneGraph.build([SceneObject("horse", ("white",))], [Triplet("horse", "jumping", None)])
        outputs = [encode(encoder, [DynamicSceneGraph(tuple(graphs))])[1].graphs[0] for graphs in (first, other)]
        torch.testing.assert_close(outputs[0][:changed], outputs[1][:changed], atol=1e-6, rtol=1e-5)
        for tick in range(changed, 5):
            assert (outputs[0][tick] - outputs[1][tick]).abs().max() > 1e-4, (changed, tick)


def loss_of(encoder, given, labels=None):
    scenes = collate(given)
    vectors = label_vectors(scenes) if labels is None else labels(scenes)
    outputs = encoder(vectors, scenes)
    weights = torch.randn(outputs.nodes.shape, generator=torch.Generator().manual_seed(5))
    return (outputs.nodes * weights * scenes.exists[..., None]).sum()


def test_gradients_reach_every_parameter(encoder):
    loss_of(encoder.train(), clips()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_are_right():
    """Against differences, in double precision."""
    torch.manual_seed(0)
    network, given = rgtrm(width=4, recurrent_depth=1, cells=2).double(), [DynamicSceneGraph((GRAPH, GRAPH))]
    scenes = collate(given)
    scenes = type(scenes)(**{**vars(scenes), "signature": scenes.signature.double()})
    labels = torch.randn(*scenes.label.shape, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: network(x, scenes).graphs, (labels,), fast_mode=True)


@torch.no_grad()
@pytest.mark.parametrize("change", ["edge", "kind", "number", "label"])
def test_everything_about_a_graph_is_heard(encoder, change):
    other = {
        "edge": SceneGraph.build([CUP, SceneObject("dog #2", ("brown", "old"))], [DRINKING], [Triplet("lady", "near", "cup")]),
        "kind": SceneGraph.build([CUP, SceneObject("dog #2", ("brown", "old"))], [DRINKING, NEAR]),
        "number": SceneGraph.build([CUP, SceneObject("dog #3", ("brown", "old"))], [DRINKING], [NEAR]),
        "label": SceneGraph.build([CUP, SceneObject("cow #2", ("brown", "old"))], [DRINKING], [NEAR]),
    }[change]  # fmt: skip
    one, two = (encode(encoder, [DynamicSceneGraph((graph,))])[1].nodes for graph in (GRAPH, other))
    assert (one - two).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("build", [rgtrm, lambda: rgnn(depth=5)], ids=["rgtrm", "rgnn"])
def test_labels_and_directions_are_heard_before_any_training(build):
    torch.manual_seed(0)
    network = build().eval()
    told = Triplet("red circle", "follows", "blue square")
    objects = [SceneObject("red circle"), SceneObject("blue square")]
    others = {
        "direction": SceneGraph.build(objects, [Triplet("blue square", "follows", "red circle")]),
        "predicate": SceneGraph.build(objects, [Triplet("red circle", "orbits", "blue square")]),
    }
    base = encode(network, [DynamicSceneGraph((SceneGraph.build(objects, [told]),))])[1].nodes[0, 0]
    for what, other in others.items():
        changed = encode(network, [DynamicSceneGraph((other,))])[1].nodes[0, 0]
        assert (changed - base)[0].abs().max() > 0.1, what


@torch.no_grad()
def test_attention_over_edges_by_hand():
    torch.manual_seed(0)
    layer = GraphLayer(width=8, heads=2, dropout=0.0, with_edges=True)
    x, e = torch.randn(3, 8), torch.randn(4, 8)
    source, target = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 0, 2])
    caught = {}
    layer.nodes.register_forward_hook(lambda module, given, out: caught.update(message=given[1]))
    layer.edges.register_forward_hook(lambda module, given, out: caught.update(weights=given[1]))
    layer(x, e, Edges(source, target, torch.ones(4, dtype=torch.bool)))
    for node in range(3):
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            total, message = 0.0, torch.zeros(4)
            for edge in range(4):
                if target[edge] != node:
                    continue
                q, k, v = (
                    m(x[i])[part]
                    for m, i in ((layer.to_q, node), (layer.to_k, source[edge]), (layer.to_v, source[edge]))
                )
                w = (q * k / 2) * layer.to_e(e[edge])[part]
                torch.testing.assert_close(caught["weights"][edge, part], w)
                score = w.sum().clamp(-5, 5).exp()
                total, message = total + score, message + score * (v + layer.to_u(e[edge])[part])
            torch.testing.assert_close(caught["message"][node, part], message / (total + 1e-6))


@torch.no_grad()
def test_the_memory_by_hand():
    """What is remembered at a tick: the first graph, then each tick that is over, through the gates."""
    torch.manual_seed(0)
    layer, x = MemoryLayer(width=8, heads=2, cells=3, dropout=0.0).eval(), torch.randn(1, 3, 4, 8)
    exists = torch.ones(1, 3, 4, dtype=torch.bool)
    exists[0, 1, 2:] = False
    memory = layer.first(x[:, 0].mean(1, keepdim=True) + layer.cells)
    expected = [memory]
    for graph in (x[:, 0], x[:, 1, :2]):
        both = torch.cat([memory, layer.remember(memory, graph, torch.ones(1, graph.shape[1], dtype=torch.bool))], -1)
        z, c = torch.sigmoid(layer.gate(both)), torch.tanh(layer.candidate(both))
        memory = (1 - z) * c + z * memory
        expected.append(memory)
    torch.testing.assert_close(layer.memories(x, exists), torch.stack(expected, dim=1))


def test_mixed_precision_and_dropout():
    network = rgtrm(dropout=0.5).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(network, clips())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    given = clips()
    assert encode(network, given)[1].graphs.sub(encode(network, given)[1].graphs).abs().max() > 0
    network.eval()
    assert torch.equal(encode(network, given)[1].graphs, encode(network, given)[1].graphs)


def test_heads_share_the_width():
    with pytest.raises(ConfigError, match=r"scene_encoder\.heads"):
        rgtrm(heads=3)


# ---- labels -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_labels_of_any_words():
    torch.manual_seed(0)
    encoder = WordEncoder(width=8, length=32)
    labels = ["red circle", "Red  Circle", "circle red", "flumph", "flumpf", "女士", "z" * 80, ""]
    vectors = vectors_of(encoder, labels)
    assert vectors.isfinite().all()
    assert torch.equal(vectors[0], vectors[1])
    distances = torch.cdist(vectors[1:], vectors[1:]) + torch.eye(len(labels) - 1)
    assert distances.min() > 1e-3, "unseen words are read from their pieces, and differ"
    torch.testing.assert_close(vectors[:1], vectors_of(encoder, labels[:1]), msg="padding is not a part of a label")


def test_padding_that_an_encoder_shows_is_left_out():
    ids = torch.tensor([[9, 5, 6, 7, 7, 7], [9, 5, 7, 0, 0, 0], [9, 1, 2, 3, 4, 7]])
    assert written(ids).tolist() == [[True] * 4 + [False] * 2, [True] * 4 + [False] * 2, [True] * 6]
