"""Scene encoders: dynamic scene graphs in, a vector for every node of every tick and one for every graph out.

`RecurrentGraphTransformer` is the RGTrm of Dysen-VDM: a graph Transformer with edge features (Dwivedi and Bresson, 2021)
over each graph, then a gated memory that goes from tick to tick (as MART, Lei et al. 2020, carries it from sentence to
sentence). `RecurrentGraphNetwork` is the baseline of the paper's ablation, gated message passing with a GRU over ticks.
In both the outputs of a tick depend on this tick and those before it. Norms are layer norms: with batch norm, which the
graph Transformer also has, a clip would depend on its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dysen.scene_batch import NUM_KINDS, NUM_NUMBERS, NUM_ROLES, SIGNATURE, SceneBatch
from vdm.bounds import Fraction, PositiveInt
from vdm.errors import ConfigError

RATIO = 2  # of the feed-forward layers to the width
KEPT = 2.0  # bias of the gate that keeps a state
LIMIT = 5.0  # of scores before the exponential


class SceneOutputs(NamedTuple):
    nodes: Tensor  # b m n d
    graphs: Tensor  # b m d


class SceneEncoder(nn.Module, ABC):
    """What nodes and edges are, besides their labels, is embedded here. `width` is that of every output."""

    def __init__(self, *, width: int, dropout: float):
        super().__init__()
        self.width = width
        self.kinds = nn.Embedding(NUM_KINDS, width)
        self.numbers = nn.Embedding(NUM_NUMBERS, width)
        self.roles = nn.Embedding(NUM_ROLES, width)
        self.from_signature = nn.Linear(SIGNATURE, width)
        self.norm_in = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        for table in (self.kinds, self.numbers):  # the label is most of what a node is
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, labels: Tensor, scenes: SceneBatch) -> SceneOutputs:
        """labels are the vectors b m n d of the labels of all nodes."""
        x = labels + self.kinds(scenes.kind) + self.numbers(scenes.number) + self.from_signature(scenes.signature)
        b, m, n, d = x.shape
        first = torch.arange(b * m, device=x.device).view(b, m, 1) * n  # of each graph, among all nodes
        edges = Edges((scenes.source + first).flatten(), (scenes.target + first).flatten(), scenes.joined.flatten())
        x = self.dropout(self.norm_in(x)).flatten(0, 2)  # (b m n) d
        x = self.read_graphs(x, self.dropout(self.roles(scenes.role.flatten())), edges)
        return self.read_ticks(x.view(b, m, n, d), scenes.exists)

    @abstractmethod
    def read_graphs(self, x: Tensor, e: Tensor, edges: Edges) -> Tensor:
        """Each graph by itself: nodes `(b m n) d` and edges `(b m e) d` -> nodes."""

    @abstractmethod
    def read_ticks(self, x: Tensor, exists: Tensor) -> SceneOutputs:
        """Over time: nodes `b m n d`."""


class Edges(NamedTuple):
    """Of all graphs in one list, filled up with edges that join nothing."""

    source: Tensor  # e
    target: Tensor  # e
    joined: Tensor  # e, bool

    def sum(self, values: Tensor, count: int) -> Tensor:
        """What comes in at each of `count` nodes: e ... -> count ..."""
        return values.new_zeros(count, *values.shape[1:]).index_add(0, self.target, values)


# ---- the recurrent graph Transformer ------------------------------------------------------------------------------------


class RecurrentGraphTransformer(SceneEncoder):
    """
    Args:
        depth: layers over each graph.
        recurrent_depth: layers over time, each with a memory of its own.
        cells: of a memory.
        dropout: of the inputs, of every branch of a graph layer, and of the first memory.
    """

    def __init__(
        self,
        *,
        width: PositiveInt,
        heads: PositiveInt,
        depth: PositiveInt,
        recurrent_depth: PositiveInt,
        cells: PositiveInt,
        dropout: Fraction,
    ):
        super().__init__(width=width, dropout=dropout)
        if width % heads:
            allowed = f"divisors of {width}"
            raise ConfigError("heads share the width", key="scene_encoder.heads", got=heads, allowed=allowed)
        last = depth - 1
        self.layers = nn.ModuleList(
            GraphLayer(width=width, heads=heads, dropout=dropout, with_edges=i < last) for i in range(depth)
        )
        self.recurrent_layers = nn.ModuleList(
            MemoryLayer(width=width, heads=heads, cells=cells, dropout=dropout) for _ in range(recurrent_depth)
        )

    def read_graphs(self, x: Tensor, e: Tensor, edges: Edges) -> Tensor:
        for layer in self.layers:
            x, e = layer(x, e, edges)
        return x

    def read_ticks(self, x: Tensor, exists: Tensor) -> SceneOutputs:
        for layer in self.recurrent_layers:
            x = layer(x, exists)
        return SceneOutputs(x, mean_of_nodes(x, exists))


class GraphLayer(nn.Module):
    """Attention of every node to its neighbours, each dimension weighed by the edge between them.

        w_ij = (Q x_i * K x_j / sqrt(d)) * E e_ij        x_i <- x_i + O sum_j softmax_j(sum(w_ij)) (V x_j + U e_ij)
                                                         e_ij <- e_ij + O' w_ij

    U is not in the published layer. Without it the edge is in the weights only, and "a follows b" is nearly "b follows a".

    Args:
        with_edges: whether there is a layer above that reads what becomes of the edges.
    """

    def __init__(self, *, width: int, heads: int, dropout: float, with_edges: bool):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_e, self.to_u = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.nodes = Residual(width=width, dropout=dropout)
        self.edges = Residual(width=width, dropout=dropout) if with_edges else None

    def forward(self, x: Tensor, e: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        places = (edges.target, edges.source, edges.source)
        layers = (self.to_q, self.to_k, self.to_v)
        q, k, v = (rows(layer(x), at).unflatten(-1, (self.heads, -1)) for layer, at in zip(layers, places, strict=True))
        weights = q * k * q.shape[-1] ** -0.5  # e heads d
        weights = weights * self.to_e(e).unflatten(-1, (self.heads, -1))
        precise = torch.promote_types(x.dtype, torch.float32)
        # Bounded scores need no maximum to be taken off; a node is its own neighbour, so no sum is empty.
        scores = weights.to(precise).sum(-1).clamp(-LIMIT, LIMIT).exp() * edges.joined[:, None]  # e heads
        total = edges.sum(scores, len(x)) + 1e-6
        values = v + self.to_u(e).unflatten(-1, (self.heads, -1))
        message = edges.sum(scores[..., None] * values.to(precise), len(x)) / total[..., None]
        x = self.nodes(x, message.flatten(1).to(x.dtype))
        return x, e if self.edges is None else self.edges(e, weights.flatten(1).to(e.dtype))


class Residual(nn.Module):
    """What comes out of attention, then a feed-forward layer, each added and normed behind."""

    def __init__(self, *, width: int, dropout: float):
        super().__init__()
        self.to_out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.hidden, self.out = nn.Linear(width, RATIO * width), nn.Linear(RATIO * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.to_out(attended)))
        return self.norm2(x + self.dropout(self.out(F.relu(self.hidden(x)))))


class MemoryLayer(nn.Module):
    """Nodes of a graph look at each other and at what is remembered of the ticks before.

    S_m = A(M_{m-1}, H_m),  C_m = tanh(W [M_{m-1}; S_m]),  Z_m = sigmoid(W' [M_{m-1}; S_m])
    M_m = (1 - Z_m) C_m + Z_m M_{m-1},  H'_m = norm(H_m + A'(H_m, [M_{m-1}; H_m]));  M_0 is made of the first graph.
    """

    def __init__(self, *, width: int, heads: int, cells: int, dropout: float):
        super().__init__()
        self.attention = Attention(width=width, heads=heads)
        self.hidden, self.out = nn.Linear(width, RATIO * width), nn.Linear(RATIO * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.cells = nn.Parameter(torch.randn(cells, width) * 0.02)
        self.first = nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width), nn.Dropout(dropout))
        self.remember = Attention(width=width, heads=heads)
        self.candidate, self.gate = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.recall = Attention(width=width, heads=heads)

    def forward(self, x: Tensor, exists: Tensor) -> Tensor:
        """x `b m n d`, exists `b m n`."""
        x = self.norm1(x + self.attention(x, x, exists))
        x = self.norm2(x + self.out(F.gelu(self.hidden(x))))
        memories = self.memories(x, exists)  # b m cells d
        remembered = exists.new_ones(memories.shape[:-1])
        seen = torch.cat([memories.to(x.dtype), x], dim=2)
        return self.norm3(x + self.recall(x, seen, torch.cat([remembered, exists], dim=2)))

    def memories(self, x: Tensor, exists: Tensor) -> Tensor:
        """What is remembered at the beginning of each tick, `b m cells d`."""
        keys, values = self.remember.keys_values(x)  # b m heads n d
        memory = self.first(mean_of_nodes(x[:, 0], exists[:, 0])[:, None] + self.cells)  # b cells d
        found = [memory]
        for tick in range(x.shape[1] - 1):
            summary = self.remember.attend(memory, keys[:, tick], values[:, tick], exists[:, tick])
            both = torch.cat([memory, summary], dim=-1)
            kept = self.gate(both).sigmoid()
            memory = (1 - kept) * self.candidate(both).tanh() + kept * memory
            found.append(memory)
        return torch.stack(found, dim=1)


class Attention(nn.Module):
    """Rows `... p d` look at those of `... n d` that exist; where none does they get nothing."""

    def __init__(self, *, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, seen: Tensor, exists: Tensor) -> Tensor:
        return self.attend(x, *self.keys_values(seen), exists)

    def keys_values(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.to_kv(seen).unflatten(-1, (2, self.heads, -1)).unbind(-3)  # ... n heads d
        return keys.transpose(-3, -2), values.transpose(-3, -2)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, exists: Tensor) -> Tensor:
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # ... heads p d
        some = exists.any(dim=-1)[..., None, None]
        mask = exists[..., None, None, :] | ~some[..., None]  # ... 1 1 n
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.to_out(attended.transpose(-3, -2).flatten(-2)) * some


# ---- the baseline -------------------------------------------------------------------------------------------------------


class RecurrentGraphNetwork(SceneEncoder):
    """Gated message passing over each graph (Li et al. 2016), then one GRU over the means of the graphs.

    Args:
        depth: rounds of messages, each with weights of its own.
    """

    def __init__(self, *, width: PositiveInt, depth: PositiveInt, dropout: Fraction):
        super().__init__(width=width, dropout=dropout)
        self.messages = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.updates = nn.ModuleList(nn.GRUCell(width, width) for _ in range(depth))
        for update in self.updates:  # begins by keeping most of a node: its label would be lost in a few rounds
            nn.init.constant_(update.bias_hh[width : 2 * width], KEPT)
        self.over_ticks = nn.GRU(width, width, batch_first=True)
        self.recall = nn.Linear(width, width, bias=False)
        self.norm_out = nn.LayerNorm(width)

    def read_graphs(self, x: Tensor, e: Tensor, edges: Edges) -> Tensor:
        joined = edges.joined[:, None].to(x.dtype)
        degree = edges.sum(joined, len(x)).clamp(min=1)
        for message, update in zip(self.messages, self.updates, strict=True):
            sent = message(torch.cat([rows(x, edges.source), e], dim=-1)).relu() * joined
            x = update(edges.sum(sent, len(x)) / degree, x)
        return x

    def read_ticks(self, x: Tensor, exists: Tensor) -> SceneOutputs:
        state, _ = self.over_ticks(mean_of_nodes(x, exists))  # b m d
        x = self.norm_out(x + self.recall(state)[:, :, None])
        return SceneOutputs(x, mean_of_nodes(x, exists))


def rows(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`, whose gradients are added up in one order: resumed, a run must come to the same numbers."""
    return F.embedding(index, table)


def mean_of_nodes(x: Tensor, exists: Tensor) -> Tensor:
    """`... n d` -> `... d`, over the nodes that exist; zero where there is none."""
    weights = exists[..., None].to(x.dtype)
    return (x * weights).sum(-2) / weights.sum(-2).clamp(min=1)
