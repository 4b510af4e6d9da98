"""Every stage that several processes can train, small: settings, parents with random weights, and what a checkpoint holds."""

import hydra
import torch
from omegaconf import OmegaConf
from sampling_runs import SMALL, write_run

from data.shapes.source import ShapesSource  # noqa: F401  # imported once, before processes are forked
from dysen.plan import main as plan
from vdm import checkpoint
from vdm.launch import CONF

CLIP = ["data.clip.frames=4", "data.clip.height=16", "data.clip.width=16"]
GRAPHS = ["condition=[text,scene_graph]", "condition.scene_graph.encoder.width=16", "scene_encoder.width=16",
          "scene_encoder.heads=2", "scene_encoder.depth=1"]  # fmt: skip
MODEL = [entry for entry in SMALL if not entry.startswith("data.source")]
COMMON = [
    "trainer.max_steps=10", "trainer.log_every_n_steps=5", "callbacks.checkpoint.every=5", "callbacks.validation.every=5",
    "callbacks.checkpoint.finish_batches=1", "callbacks.samples.every=5", "callbacks.samples.count=1",
    "callbacks.moving_average.decay=0.5", "callbacks.watchdog=null", "callbacks.timing=null",
]  # fmt: skip
CLIPS = ["data=shapes", "data.num_workers=0", "data.val_clips=4"]
ROUNDING = "+stage.optimizer.eps=1e-6"  # gradients below this are rounding, and Adam would make steps of them
DIFFUSION = [
    "stage.scheduler=null",
    "stage.noise_levels=2",
    "sampler.num_steps=2",
    "stage.optimizer.lr=1e-4",
    ROUNDING,
    *CLIP,
]
ADAMW = [ROUNDING, "stage.optimizer._target_=torch.optim.AdamW", "stage.optimizer.lr=1e-3", "stage.optimizer.max_width=1",
         *(f"~stage.optimizer.{name}" for name in ("matrix_lr", "momentum", "min_width", "max_width"))]  # fmt: skip

STAGES = {
    "autoencoder": [
        "stage=autoencoder", *CLIPS, "data.clip.frames=4", "autoencoder=tiny", "autoencoder.channels=16", "stage.accumulate=2",
        "stage.loss.perceptual=null", "stage.loss.adversarial.start_step=3", "stage.grad_clip=50",
        "stage.loss.adversarial.discriminator.channels=8", "stage.loss.adversarial.discriminator.norm=group",
    ],
    "vdm": ["stage=vdm", *CLIPS, *MODEL, *DIFFUSION, "condition.text.drop_prob=0.3", "init.autoencoder={root}/text"],
    "finetune": ["stage=finetune", *CLIPS, *DIFFUSION, "init.vdm={root}/text"],
    "temporal": ["stage=finetune", *CLIPS, *DIFFUSION, "init.vdm={root}/text", "stage/tuning=temporal"],
    "lora": ["stage=finetune", *CLIPS, *DIFFUSION, "init.vdm={root}/text", "stage/tuning=lora", "stage.tuning.rank=2"],
    "dysen": ["stage=dysen", *CLIPS, *DIFFUSION, "init.vdm={root}/graphs", "stage.share.steps=4",
              "stage.planned.folder={root}/plans"],
    "language": ["stage=language", "language.width=32", "language.depth=2", "texts.source.num_val=4", *ADAMW,
                 "stage.scheduler=null"],
    "planner": ["stage=planner", "llm=rules_shapes", "texts=stored", "texts.source.path={root}/pool.jsonl",
                "texts.source.num_pool=8", "texts.source.num_train=14", "texts.source.num_val=1", "stage.shots=2",
                "stage.width=16", "stage.features.width=64", ROUNDING],
}  # fmt: skip

READS_TEXTS = ("language", "planner")


def prepare(root, data_root):
    """Parents and plans of the stages above."""
    for name, given in (("text", []), ("graphs", GRAPHS)):
        small = [entry for entry in SMALL if not (given and entry.startswith("condition="))]
        whole = OmegaConf.to_container(_composed("train", "stage=vdm", *small, *CLIP, *given), resolve=True)
        groups = ("autoencoder", "backbone", "objective", "condition", "scene_encoder", "data")
        settings = {group: whole.get(group) for group in groups}
        write_run(root / name, settings | {"stage": {"name": "vdm"}, "seed": 0})
    places = [f"paths.data_root={data_root}", f"paths.output_root={root}", f"output={root / 'plans'}"]
    plan(_composed("plan", "data=shapes", "planner=plain", *places))
    plan(_composed("plan", "data=shapes", "write_pool=23", f"pool={root / 'pool.jsonl'}", *places))


def settings_of(stage, root, data_root, *, processes, trainer):
    """Of a training whose processes share batches of four."""
    batch = f"{'texts' if stage in READS_TEXTS else 'data'}.batch_size={4 // processes}"
    machine = [
        f"trainer={trainer}",
        "trainer.accelerator=cpu",
        f"trainer.devices={processes}",
        "trainer.precision=32-true",
    ]
    if trainer.endswith("offload"):
        machine.append("trainer.strategy.pin_memory=false")  # there is no device to copy to
    given = [entry.format(root=root) for entry in STAGES[stage]]
    return [*given, *COMMON, batch, f"paths.data_root={data_root}", *machine]


MEASURED = ("autoencoder.latent_scale", "autoencoder.latent_shift")  # when training ends, at whatever step


def content(run, step=10):
    return checkpoint.load(run.folder / "checkpoints" / f"step-{step:08d}")


def assert_alike(run, reference, *, step=10, tolerance=1e-5):
    """Weights, moving average and optimizer, of which the last is what comes next."""
    ours, theirs, before = content(run, step), content(reference, step), content(reference, 5)
    for kind in ("state_dict", "ema"):
        assert ours[kind].keys() == theirs[kind].keys()
        moved = 0.0
        for name, tensor in theirs[kind].items():
            assert ours[kind][name].dtype == tensor.dtype
            if step == 5 and name in MEASURED:
                continue
            torch.testing.assert_close(
                ours[kind][name], tensor, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
            moved = max(moved, (tensor.float() - before[kind][name].float()).abs().max().item())
        assert moved > 10 * tolerance or step == 5, "a difference would be seen"
    (our_state,), (their_state,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert our_state["param_groups"] == their_state["param_groups"]
    assert our_state["state"].keys() == their_state["state"].keys()
    for number, entry in their_state["state"].items():
        assert our_state["state"][number].keys() == entry.keys()
        for key, tensor in entry.items():
            scale = tensor.abs().max().item() + 1e-12
            torch.testing.assert_close(our_state["state"][number][key], tensor, rtol=0, atol=0.05 * scale)


def _composed(name, *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, overrides=list(overrides))
