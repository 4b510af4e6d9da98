"""The three doors, with a stand-in for every kind of condition: maps that add up, a token appended to the text, captions
for each frame, gated tokens of each frame, an embedding of the whole clip.
"""

import pytest
import torch

from tests.backbones.conftest import randomise
from vdm.errors import ConfigError
from vdm.types import Controls, Tokens

TEXT_WIDTH, FRAMES = 6, 4


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def per_frame(tokens_a_frame: int) -> torch.Tensor:
    """Frame t sees the t-th group of tokens and no other."""
    return torch.eye(FRAMES, dtype=torch.bool).repeat_interleave(tokens_a_frame, dim=1).expand(2, -1, -1)


TEXT = Controls(tokens={"text": Tokens(noise(2, 5, TEXT_WIDTH))})
DEPTH = Controls(concat=noise(2, 8, FRAMES, 6, 8, seed=4))
MOTION = Controls(concat=noise(2, 8, FRAMES, 6, 8, seed=5))
STYLE = Controls(tokens={"text": Tokens(noise(2, 1, TEXT_WIDTH, seed=6))})
SCENES = Controls(tokens={"text": Tokens(noise(2, FRAMES * 3, TEXT_WIDTH, seed=7), per_frame(3))})
REFERENCE = Controls(tokens={"reference": Tokens(noise(2, FRAMES * 16, 10, seed=8), per_frame(16))})
GRAPH = Controls(tokens={"scene_graph": Tokens(noise(2, 3, 12, seed=9), torch.ones(2, 1, 3, dtype=torch.bool))})
SPEED = Controls(embed=noise(2, 7, seed=10))

DOORS = {
    "map": ({"concat_channels": 8}, DEPTH + MOTION),
    "gated_tokens_of_each_frame": ({"streams": {"reference": 10}}, REFERENCE),
    "scene_graph": ({"streams": {"scene_graph": 12}}, GRAPH),
    "embedding": ({"embed_width": 7}, SPEED),
    "everything": (
        {"streams": {"reference": 10, "scene_graph": 12}, "concat_channels": 8, "embed_width": 7},
        DEPTH + MOTION + REFERENCE + GRAPH + SPEED,
    ),
}


def open_doors(network, doors):
    network.open_doors(**({"streams": {}, "concat_channels": 0, "embed_width": 0} | doors))


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("base", [{"text": TEXT_WIDTH}, {}], ids=["text", "unconditional"])
def test_attaching_leaves_the_output_bit_equal(build, name, base, latent, timestep):
    doors, said = DOORS[name]
    network, before = build(streams=base), TEXT if base else Controls()
    expected, keys = network(latent, timestep, before), set(network.state_dict())
    untouched = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    open_doors(network, doors)
    assert torch.equal(network(latent, timestep, before), expected)
    assert torch.equal(network(latent, timestep, before + said), expected)
    assert torch.equal(network(latent, timestep, network.prepare(before + said)), expected)
    after = network.state_dict()
    assert keys < set(after)
    assert all(torch.equal(after[key], untouched[key]) for key in keys)


def test_attaching_the_base_stream_leaves_the_output_bit_equal(build, latent, timestep):
    network = build()
    expected = network(latent, timestep)
    open_doors(network, {"streams": {"text": TEXT_WIDTH}})
    assert torch.equal(network(latent, timestep, TEXT), expected)


@pytest.mark.parametrize("name", DOORS)
def test_an_attached_door_learns_from_the_first_step(build, name, latent, timestep):
    doors, said = DOORS[name]
    network = build(streams={"text": TEXT_WIDTH})
    known = set(network.state_dict())
    open_doors(network, doors)
    network(latent, timestep, TEXT + said).square().mean().backward()
    first = {n: p.grad.abs().sum() for n, p in network.named_parameters() if n not in known and "to_kv" not in n}
    assert first
    assert all(gradient > 0 for gradient in first.values())
    randomise(network)
    expected = network(latent, timestep, TEXT)
    assert (network(latent, timestep, TEXT + said) - expected).abs().max() > 1e-3  # open, it speaks
    network(latent, timestep, TEXT + said).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_dead_gate_is_impossible(build, latent, timestep):
    """Text and a gated stream opened together on a fresh network: both get a gradient within two steps."""
    network = build()
    open_doors(network, {"streams": {"text": TEXT_WIDTH, "scene_graph": 12}})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        network(latent, timestep, TEXT + GRAPH).square().mean().backward()
        optimizer.step()
    streams = {n: p for n, p in network.named_parameters() if ".streams." in n}
    assert all(p.grad.abs().sum() > 0 for p in streams.values()), streams.keys()


def test_a_closed_door_costs_nothing(build):
    assert not [n for n in build().state_dict() if "cross" in n or n.startswith(("concat", "embed"))]
    assert not [n for n in build(streams={"text": 6}).state_dict() if "gate" in n]


def test_opening_twice_is_opening_once_and_another_width_is_refused(build):
    network = build(streams={"text": 6}, concat_channels=8, embed_width=7)
    keys = list(network.state_dict())
    network.open_doors(streams={"text": 6}, concat_channels=8, embed_width=7)
    assert list(network.state_dict()) == keys
    for wrong in ({"streams": {"text": 8}}, {"concat_channels": 4}, {"embed_width": 1}):
        with pytest.raises(ConfigError):
            open_doors(network, wrong)


def test_an_appended_token_is_read_like_the_others(build, latent, timestep):
    network = build(streams={"text": TEXT_WIDTH})
    together = Tokens(torch.cat([TEXT.tokens["text"].values, STYLE.tokens["text"].values], dim=1))
    expected = network(latent, timestep, Controls(tokens={"text": together}))
    assert torch.equal(network(latent, timestep, TEXT + STYLE), expected)
    assert (expected - network(latent, timestep, TEXT)).abs().max() > 1e-3


@pytest.mark.parametrize("stream", ["text", "reference"])
def test_captions_of_each_frame_reach_that_frame_only(build, stream, latent, timestep):
    """Without layers along time, a clip with a caption a frame is as many clips with one caption each."""
    said = SCENES if stream == "text" else REFERENCE
    width, group = said.tokens[stream].values.shape[2], said.tokens[stream].values.shape[1] // FRAMES
    network = build(
        temporal_attention="none", temporal_conv=0, temporal_in_heads=0, streams={"text": TEXT_WIDTH, stream: width}
    )
    out = network(latent, timestep, said)
    for t in range(FRAMES):
        tokens = Tokens(said.tokens[stream].values[:, t * group : (t + 1) * group])
        alone = network(latent[:, :, t : t + 1], timestep, Controls(tokens={stream: tokens}))
        torch.testing.assert_close(out[:, :, t : t + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_hidden_token_is_not_there(build, latent, timestep):
    network = build(streams={"text": TEXT_WIDTH})
    text = TEXT.tokens["text"].values
    mask = torch.tensor([[True, True, False, True, False]]).expand(2, 1, 5)
    shown = network(latent, timestep, Controls(tokens={"text": Tokens(text[:, [0, 1, 3]])}))
    for visible in (mask, mask.expand(2, FRAMES, 5)):
        hidden = network(latent, timestep, Controls(tokens={"text": Tokens(text, visible)}))
        torch.testing.assert_close(hidden, shown, rtol=1e-4, atol=1e-5)


def test_a_sample_that_sees_nothing_is_finite_and_changes_no_other(build, latent, timestep):
    network = build(streams={"text": TEXT_WIDTH, "scene_graph": 12})
    visible = torch.ones(2, 1, 5, dtype=torch.bool)
    visible[0] = False
    said = Controls(tokens={"text": Tokens(TEXT.tokens["text"].values, visible)}) + GRAPH
    out = network(latent, timestep, said)
    out.square().mean().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    torch.testing.assert_close(out[1:], network(latent, timestep, TEXT + GRAPH)[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out[:1], network(latent, timestep, GRAPH)[:1], rtol=1e-4, atol=1e-5)
    nothing = Controls(tokens={"text": Tokens(TEXT.tokens["text"].values, torch.zeros_like(visible))})
    torch.testing.assert_close(network(latent, timestep, nothing), network(latent, timestep))


def test_prepared_controls_are_projected_once_and_give_the_same(build, latent, timestep):
    network = build(streams={"text": TEXT_WIDTH, "reference": 10}, concat_channels=8, embed_width=7)
    said = SCENES + REFERENCE + DEPTH + SPEED
    shapes = []
    for name, module in network.named_modules():
        if name.endswith("to_kv") or name in ("concat_in", "embed_in"):
            module.register_forward_hook(lambda module, inputs, out: shapes.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        expected = network(latent, timestep, said)
        assert {shape for shape in shapes if len(shape) == 3} == {(2, 12, TEXT_WIDTH), (2, 64, 10)}  # never by frame
        prepared = network.prepare(said)
        shapes.clear()
        for _ in range(3):
            assert torch.equal(network(latent, timestep, prepared), expected)
        assert not shapes
        torch.testing.assert_close(network(latent[1:], timestep[1:], prepared[1:]), expected[1:])
        torch.testing.assert_close(network(latent[:1], timestep[:1], prepared[torch.tensor([0])]), expected[:1])


def test_branches_of_guidance_share_a_batch(build, latent, timestep):
    network = build(streams={"text": TEXT_WIDTH})
    both = network(latent.repeat(2, 1, 1, 1, 1), timestep.repeat(2), Controls.cat([TEXT, TEXT[[1, 0]]]))
    torch.testing.assert_close(both[:2], network(latent, timestep, TEXT))
    torch.testing.assert_close(both[2:], network(latent, timestep, TEXT[[1, 0]]))


@pytest.mark.parametrize(
    ("said", "key"),
    [
        (GRAPH, "backbone.streams"),
        (Controls(tokens={"text": Tokens(torch.zeros(2, 5, 9))}), "backbone.streams.text"),
        (DEPTH, "backbone.concat_channels"),
        (SPEED, "backbone.embed_width"),
        (
            Controls(tokens={"text": Tokens(torch.zeros(2, 5, 6), torch.ones(2, 3, 5).bool())}),
            "controls.tokens.text.visible",
        ),
        (Controls(tokens={"text": Tokens(torch.zeros(3, 5, 6))}), "controls"),
    ],
)
def test_what_does_not_fit_a_door_is_refused(build, said, key, latent, timestep):
    with pytest.raises(ConfigError) as caught:
        build(streams={"text": TEXT_WIDTH})(latent, timestep, said)
    assert caught.value.key == key


def test_a_map_of_another_size_is_refused(build, latent, timestep):
    with pytest.raises(ConfigError, match="another size"):
        build(concat_channels=8)(latent, timestep, Controls(concat=torch.zeros(2, 8, FRAMES, 3, 4)))
