"""What is trained of a model: that a LoRA reaches every layer it is put around, and that nothing else moves."""

import copy

import hydra
import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from vdm import adapters
from vdm.backbones.stable_diffusion import temporal_keys
from vdm.conditions.base import ConditionSet
from vdm.errors import ConfigError
from vdm.launch import CONF
from vdm.stages.tuning import Lora, Temporal, trained
from vdm.types import Controls, Tokens

TINY = ["backbone=tiny", "backbone.channels=8", "backbone.head_width=4", "backbone.norm_groups=2"]
KINDS = {
    "separate": ["backbone.temporal_in_heads=2", "backbone.temporal_in_head_width=4", "backbone.moments=2"],
    "interleaved": ["backbone.temporal_attention=interleaved", "backbone.temporal_position=relative",
                    "backbone.coordinates=1", "backbone.dropout=0.1"],
}  # fmt: skip
EVERYWHERE = ("backbone.*",)


def composed(*overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=["stage=finetune", "autoencoder=tiny", *overrides])


def backbone_of(kind, **doors):
    torch.manual_seed(0)
    network = instantiate(composed(*TINY, *KINDS[kind]).backbone, _convert_="all")
    network.open_doors(streams={"text": 6, "scene": 5}, concat_channels=3, embed_width=7)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def inputs():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    controls = Controls(embed=draw(2, 7), concat=draw(2, 3, 4, 4, 4),
                        tokens={"text": Tokens(draw(2, 3, 6)), "scene": Tokens(draw(2, 2, 5))})  # fmt: skip
    return draw(2, 8, 4, 4, 4), torch.tensor([10.0, 700.0]), controls


def lora(layers=EVERYWHERE, **changes):
    return Lora(**{"layers": layers, "rank": 2, "alpha": 3.0, "dropout": 0.0} | changes)


def perturb(network):
    """As after some training: what begins as nothing is something."""
    torch.manual_seed(2)
    for parameter in trained({"backbone": network}).values():
        nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_heard_and_learns(kind):
    """Fused layers read weights and do not call layers: what is put around a layer must not be passed over."""
    network = backbone_of(kind)
    plain = network(*inputs())
    lora().apply({"backbone": network}, {})
    torch.testing.assert_close(network(*inputs()), plain)
    layers = [name for name, module in network.named_modules() if hasattr(module, "base_layer")]
    assert len(layers) == sum(type(m) in (nn.Linear, nn.Conv2d) for m in backbone_of(kind).modules())
    perturb(network)
    network.train()
    network(*inputs()).square().sum().backward()
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged(kind):
    network, plain = backbone_of(kind), backbone_of(kind)
    tuning = lora()
    tuning.apply({"backbone": network}, {})
    perturb(network)
    own = {name.removeprefix("backbone."): p.detach() for name, p in trained({"backbone": network}).items()}
    whole = adapters.merged(plain.state_dict(), own, scale=tuning.scale, source="")
    assert whole.keys() == plain.state_dict().keys()
    plain_out = plain(*inputs())
    plain.load_state_dict(whole)
    with torch.no_grad():
        live, merged = network(*inputs()), plain(*inputs())
        prepared = network(inputs()[0], inputs()[1], network.prepare(inputs()[2]))
    assert (plain_out - merged).abs().max() > 0.1
    assert (live - merged).abs().max() / merged.abs().max() < 1e-5
    torch.testing.assert_close(prepared, live)


def test_dropout_of_the_network_goes_on_around_a_wrapped_convolution():
    network = backbone_of("interleaved").train()
    lora(["backbone.*.conv2"]).apply({"backbone": network}, {})
    torch.manual_seed(0)
    first = network(*inputs())
    assert not torch.equal(first, network(*inputs()))
    torch.manual_seed(0)
    assert torch.equal(first, network(*inputs()))


def test_only_what_is_named():
    network = backbone_of("separate")
    lora(["backbone.*.temporal.*.to_qkv", "backbone.conv_in"]).apply({"backbone": network}, {})
    layers = {name for name, module in network.named_modules() if hasattr(module, "base_layer")}
    assert layers == {
        name for name in layers if name == "conv_in" or (".temporal." in name and name.endswith(".to_qkv"))
    }
    assert len(layers) > 3
    with pytest.raises(ConfigError, match="no layer has such a name") as caught:
        lora(["backbone.*.to_qkv", "to_qkv"]).apply({"backbone": backbone_of("separate")}, {})
    assert caught.value.got == "to_qkv"
    with pytest.raises(ConfigError, match="no layer has such a name"):
        lora([]).apply({"backbone": backbone_of("separate")}, {})


def test_conditions_are_touched_only_where_named():
    member = instantiate(composed("condition=[text]", "condition.text.encoder.width=8", "condition.text.encoder.depth=1",
                                  "condition.text.encoder.heads=2").condition.text, _convert_="all")  # fmt: skip
    conditions = ConditionSet(members={"text": member}, joint_drop_prob=0.0, joint_keep_prob=0.0)
    networks = {"backbone": backbone_of("separate"), "conditions": conditions}
    lora(["conditions.members.text.*"]).apply(networks, {})
    assert {name.split(".")[0] for name in trained(networks)} == {"conditions"}
    assert conditions.trained_modules()
    networks = {"backbone": backbone_of("separate"), "conditions": copy.deepcopy(conditions)}
    Temporal().apply(networks, {})
    assert not networks["conditions"].trained_modules()


@pytest.mark.parametrize("tuning", [Temporal(), lora(["backbone.*.to_qkv"])], ids=["temporal", "lora"])
def test_what_the_parent_did_not_have_is_trained_whole(tuning):
    network = backbone_of("separate")
    tuning.apply({"backbone": network}, {"backbone": network.door_keys("embed", "scene")})
    names = set(trained({"backbone": network}))
    assert "backbone.embed_in.weight" in names
    assert any(name.endswith(".streams.scene.gate") for name in names)
    assert not any(".streams.text." in name for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_temporal_is_what_acts_along_time(kind):
    network = backbone_of(kind)
    Temporal().apply({"backbone": network}, {})
    names = {name.removeprefix("backbone.") for name in trained({"backbone": network})}
    assert names == set(temporal_keys(network))
    assert not any(part in name for name in names for part in ("self_attention", "cross_attention", "resnet"))
    bare = instantiate(composed(*TINY, "backbone.temporal_conv=0", "backbone.temporal_attention=none").backbone)
    with pytest.raises(ConfigError, match="no layers along time"):
        Temporal().apply({"backbone": bare}, {})


@pytest.mark.parametrize(("backbone", "share"), [("small", 0.015), ("modelscope", 0.006)])
def test_an_adapter_is_small(backbone, share):
    """At default settings, of a model with a caption and scene graphs; below 5 % even around every layer."""
    cfg = composed("stage/tuning=lora", f"backbone={backbone}", "autoencoder=kl2d")
    for layers, limit in ((tuple(cfg.stage.tuning.layers), share), (EVERYWHERE, 0.05)):
        with torch.device("meta"):
            network = instantiate(cfg.backbone, _convert_="all")
            network.open_doors(streams={"text": 1024, "scene": 768})
            whole = sum(p.numel() for p in network.parameters())
            lora(layers, rank=cfg.stage.tuning.rank).apply({"backbone": network}, {})
        assert 0 < sum(p.numel() for p in trained({"backbone": network}).values()) < limit * whole


def test_mixed_precision_hears_it_too():
    network = backbone_of("separate")
    lora().apply({"backbone": network}, {})
    perturb(network)
    with torch.no_grad():
        exact = network(*inputs())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(*inputs()).float()
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.slow
def test_compiled_cells_hear_it_too():
    network = backbone_of("separate")
    lora().apply({"backbone": network}, {})
    perturb(network)
    with torch.no_grad():
        exact = network(*inputs())
        network.compile_cells(backend="eager")
        compiled = network(*inputs())
    torch.testing.assert_close(compiled, exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())
