"""One condition for each way in which the systems to come will speak to the backbone."""

import torch
from torch import nn

from vdm.conditions.base import Condition, ConditionSet
from vdm.conditions.encoders.small import SmallEncoder
from vdm.conditions.text import TextCondition
from vdm.types import Controls, LatentShape, Tokens

WIDTH = 16
SHAPE = LatentShape(channels=4, frames=3, height=4, width=4)
CAPTIONS = ["a red circle moves left", "", "the blue star spins. 🦉", "a green bar vanishes, then it comes back again"]


class Map(Condition):
    """A summed 8-channel map (VideoComposer)."""

    def __init__(self, drop_prob=0.5, channels=8):
        super().__init__(concat_channels=channels, drop_prob=drop_prob)
        self.calls = 0
        self.project = nn.Conv3d(1, channels, 1)

    def encode(self, batch, shape):
        self.calls += 1
        return Controls(concat=self.project(batch["extras"][self.name]))

    def null(self, count, shape):
        return Controls(concat=torch.zeros(count, self.concat_channels, *shape[1:]))


class Style(Condition):
    """One token more in the text stream (VideoComposer); nothing said is a token that is learned."""

    def __init__(self, drop_prob=0.5, width=WIDTH):
        super().__init__(streams={"text": width}, drop_prob=drop_prob)
        self.calls = 0
        self.nothing = nn.Parameter(torch.randn(1, 1, width))

    def encode(self, batch, shape):
        self.calls += 1
        return Controls(tokens={"text": Tokens(batch["extras"][self.name])})

    def null(self, count, shape):
        return Controls(tokens={"text": Tokens(self.nothing.expand(count, -1, -1))})


class Scenes(Condition):
    """Per-frame captions: two scenes of five tokens, each seen by its frames only (TALC). Nothing said is nothing to see."""

    def __init__(self, drop_prob=0.5):
        super().__init__(streams={"scenes": WIDTH}, drop_prob=drop_prob)
        self.calls = 0

    def encode(self, batch, shape):
        self.calls += 1
        values = batch["extras"][self.name].flatten(1, 2)  # b (scenes n) d
        scene = torch.arange(shape.frames) * 2 // shape.frames
        visible = scene[:, None] == torch.arange(10)[None] // 5  # t n
        return Controls(tokens={"scenes": Tokens(values, visible.expand(len(values), -1, -1))})

    def null(self, count, shape):
        return Controls(tokens={"scenes": Tokens(torch.zeros(count, 1, WIDTH), torch.zeros(count, 1, 1).bool())})


class Reference(Condition):
    """Sixteen tokens of each frame of another video, seen by that frame (Composite Video Generation)."""

    def __init__(self, drop_prob=0.5):
        super().__init__(streams={"reference": WIDTH}, drop_prob=drop_prob)
        self.calls = 0

    def encode(self, batch, shape):
        self.calls += 1
        return self._tokens(batch["extras"][self.name].flatten(1, 2), shape)  # b (t 16) d

    def null(self, count, shape):
        return self._tokens(torch.zeros(count, shape.frames * 16, WIDTH), shape)

    def _tokens(self, values, shape):
        visible = torch.eye(shape.frames, dtype=torch.bool).repeat_interleave(16, dim=1)  # t (t 16)
        return Controls(tokens={"reference": Tokens(values, visible.expand(len(values), -1, -1))})


class Pace(Condition):
    """An embedding of the frame rate."""

    def __init__(self, drop_prob=0.5, width=6):
        super().__init__(embed_width=width, drop_prob=drop_prob)
        self.calls = 0

    def encode(self, batch, shape):
        self.calls += 1
        return Controls(embed=batch["fps"][:, None] * torch.arange(1.0, self.embed_width + 1))

    def null(self, count, shape):
        return Controls(embed=torch.zeros(count, self.embed_width))


def small_text(drop_prob=0.5):
    torch.manual_seed(0)
    encoder = SmallEncoder(width=WIDTH, depth=2, heads=2, length=24)
    return TextCondition(encoder=encoder, pooled=False, drop_prob=drop_prob)


def every_door(drop_prob=0.5, joint_drop_prob=0.0, joint_keep_prob=0.0):
    torch.manual_seed(0)
    members = {
        "text": small_text(drop_prob),
        "depth": Map(drop_prob),
        "sketch": Map(drop_prob),
        "style": Style(drop_prob),
    }
    members |= {"scenes": Scenes(drop_prob), "reference": Reference(drop_prob), "pace": Pace(drop_prob)}
    return ConditionSet(members=members, joint_drop_prob=joint_drop_prob, joint_keep_prob=joint_keep_prob)


def make_batch(count=4, seed=0, shape=SHAPE):
    g = torch.Generator().manual_seed(seed)
    extras = {name: torch.randn(count, 1, *shape[1:], generator=g) for name in ("depth", "sketch")}
    extras |= {
        "style": torch.randn(count, 1, WIDTH, generator=g),
        "scenes": torch.randn(count, 2, 5, WIDTH, generator=g),
    }
    extras["reference"] = torch.randn(count, shape.frames, 16, WIDTH, generator=g)
    return {
        "caption": [CAPTIONS[i % 4] for i in range(count)],
        "key": [f"clip-{i}" for i in range(count)],
        "fps": torch.arange(1.0, count + 1),
        "extras": extras,
    }


def pick(batch, order):
    return {
        name: {n: v[order] for n, v in value.items()} if name == "extras" else
        value[order] if isinstance(value, torch.Tensor) else [value[i] for i in order]
        for name, value in batch.items()
    }  # fmt: skip


def doors(controls):
    """Every tensor, by door; a mask of all True where there is none."""
    found = {"embed": controls.embed, "concat": controls.concat}
    for stream, tokens in controls.tokens.items():
        found |= {f"{stream}.values": tokens.values, f"{stream}.visible": tokens.visible}
    return {name: value for name, value in found.items() if value is not None}


def same(one, other):
    one, other = doors(one), doors(other)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
