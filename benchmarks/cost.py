"""What does a run cost on 1 to 1,024 GPUs? A model of compute, communication, data and checkpoints.

    python benchmarks/cost.py                                        tables for backbone=lvdm, and the whole schedule in GPU-hours
    python benchmarks/cost.py --backbone modelscope --batch 4 --utilization 0.4
    python benchmarks/cost.py check ddp_sim deepspeed_zero1          bytes a step that two processes send, beside the model's

Operations are counted on networks without memory (torch's meta device), so that any size is priced on a laptop. Rates of
hardware are data sheets; the share of the peak that is reached (`--utilization`) is the one number to measure first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vdm.launch import CONF
from vdm.types import Controls, Tokens

GPUS = (1, 8, 16, 64, 256, 1024)
STRATEGIES = ("ddp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "fsdp gather=bfloat16")
TEXT_TOKENS = 77
DDIM_STEPS, BRANCHES = 50, 3  # of evaluation: a branch a row of guidance (nothing, text, text and graph)
# Steps and clips a step of every stage. The paper names neither: these are ours, for WebVid-10M and the three datasets.
SCHEDULE = {
    "autoencoder": (200_000, 64),
    "vdm (7.7 turns of WebVid-10M)": (300_000, 256),
    "dysen, true graphs": (100_000, 256),
    "dysen, planned graphs": (50_000, 256),
    "finetune, three datasets": (60_000, 64),
}
EVALUATED = 10_000 + 9_537 + 2_990 + 4_917  # clips of ucf101_zero_shot, ucf101, msrvtt and activitynet


@dataclass(frozen=True)
class Hardware:
    """An H100 node, by its data sheet; bytes and operations a second of one GPU."""

    peak: float = 989e12  # bf16, dense
    utilization: float = 0.35  # of the peak, without communication: assumed until it is measured
    gpus_per_node: int = 8
    inside: float = 450e9  # NVLink, one direction
    between: float = 50e9  # a network card of 400 Gb/s for each GPU
    hidden: float = 0.6  # of the step's compute, during which gradients and weights travel unseen
    disk: float = 2e9  # what one process writes
    latency: float = 15e-6  # of one hop of a ring
    bucket: int = 50_000_000  # parameters or gradients in one message


@dataclass(frozen=True)
class Work:
    """What one clip and one step take."""

    trained: int  # parameters
    forward: float  # operations of the backbone for one clip
    encoding: float  # operations of frozen networks for one clip
    clip_bytes: float


def wire_bytes(strategy: str, parameters: int, processes: int, *, accumulate: int = 1, gathered: int = 4) -> float:
    """Bytes that one process sends in one optimizer step, by ring collectives: the formulas of the ZeRO paper (2020).

    Gradients are float32, as weights are under autocast; FSDP can gather weights in two bytes (`gathered`).
    """
    share = parameters * (processes - 1) / processes  # of one reduce-scatter, or one all-gather
    if strategy in ("ddp", "ddp_sim"):
        return 2 * share * 4  # a sum is both
    if strategy == "deepspeed_zero1":
        return share * (4 + 4)  # gradients out, new weights back
    if strategy == "deepspeed_zero2":
        return share * (4 * accumulate + 4)  # gradients leave at every batch
    assert strategy in ("deepspeed_zero3", "fsdp"), strategy
    return accumulate * share * (2 * gathered + 4)  # weights forward, weights backward, gradients


def step_seconds(
    strategy: str, work: Work, gpus: int, batch: int, hardware: Hardware, *, cached: bool
) -> dict[str, float]:
    """Seconds of one optimizer step, by what they go into."""
    operations = 3 * work.forward * batch + (0.0 if cached else work.encoding * batch)
    compute = operations / (hardware.peak * hardware.utilization)
    # Rings through a node leave it by all of its cards, each of which carries its part.
    across = min(hardware.inside, hardware.between * hardware.gpus_per_node)
    rate = hardware.inside if gpus <= hardware.gpus_per_node else across
    name, _, form = strategy.partition(" ")
    sent = wire_bytes(name, work.trained, gpus, gathered=2 if form else 4)
    nodes = -(-gpus // hardware.gpus_per_node)
    hops = (nodes - 1) + (min(gpus, hardware.gpus_per_node) - 1)  # a ring through the node, and one of the nodes
    collectives = -(-work.trained // hardware.bucket) * (3 if name in ("deepspeed_zero3", "fsdp") else 2)
    travel = sent / rate + collectives * hops * hardware.latency
    exposed = max(0.0, travel - hardware.hidden * compute)
    return {"compute": compute, "sent": sent, "travel": travel, "exposed": exposed, "step": compute + exposed}


def checkpoint_seconds(work: Work, gpus: int, hardware: Hardware) -> tuple[float, float]:
    """Bytes of a checkpoint (weights, average and two moments, fp32) and the seconds until rank 0 has it on disk."""
    size = 16.0 * work.trained
    gathered = 0.0 if gpus == 1 else size * (gpus - 1) / gpus / hardware.between
    return size, gathered + size / hardware.disk


def counted(network: nn.Module, *inputs: object) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return float(counter.get_total_flops())


def compose(backbone: str, autoencoder: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(
            "train", ["stage=vdm", f"backbone={backbone}", f"autoencoder={autoencoder}", "data=webvid"]
        )


def work_of(backbone: str, autoencoder: str, text_width: int) -> tuple[Work, float, float]:
    """The work of one clip of data=webvid, and the operations of encoding and decoding it."""
    cfg = compose(backbone, autoencoder)
    clip = cfg.data.clip
    with torch.device("meta"):
        network = hydra.utils.instantiate(cfg.backbone, _convert_="all")
        network.open_doors(streams={"text": text_width}, concat_channels=0, embed_width=0)
        coder = hydra.utils.instantiate(cfg.autoencoder, _convert_="all").eval()
        video = torch.empty(1, 3, clip.frames, clip.height, clip.width)
        latent = coder.encode(video)
        said = Controls(tokens={"text": Tokens(torch.empty(1, TEXT_TOKENS, text_width))})
        forward = counted(network, latent, torch.empty(1), said)
    encode = counted(_Call(coder.encode), video)
    decode = counted(_Call(coder.decode), latent)
    trained = sum(p.numel() for p in network.parameters())
    stored = 100e3 * clip.frames / 16  # H.264 as data.prepare writes it at 256x256
    return Work(trained, forward, encode, stored), encode, decode


class _Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def tables(options: argparse.Namespace) -> None:
    hardware = Hardware(utilization=options.utilization)
    work, encode, decode = work_of(options.backbone, options.autoencoder, options.text_width)
    print(
        f"backbone={options.backbone}: {work.trained / 1e6:,.0f} M parameters, {work.forward / 1e12:.2f} TFLOP forward a clip,"
    )
    print(
        f"autoencoder={options.autoencoder}: encodes a clip in {encode / 1e12:.2f}, decodes it in {decode / 1e12:.2f} TFLOP"
    )
    print(
        f"\n{options.batch} clips a GPU, cached latents, {hardware.utilization:.0%} of {hardware.peak / 1e12:.0f} TFLOP/s\n"
    )
    print(
        "| GPUs | strategy | compute s | travel s | not hidden s | sent GB | clips/s | of one GPU's rate | data MB/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    alone = options.batch / step_seconds("ddp", work, 1, options.batch, hardware, cached=True)["step"]
    for gpus in GPUS:
        for strategy in STRATEGIES if gpus > 1 else STRATEGIES[:1]:
            seconds = step_seconds(strategy, work, gpus, options.batch, hardware, cached=True)
            rate = gpus * options.batch / seconds["step"]
            sent = seconds["sent"] / 1e9
            row = [
                f"{gpus} | {strategy}",
                *(f"{seconds[part]:.3f}" for part in ("compute", "travel", "exposed")),
                f"{sent:.2f} | {rate:,.0f} | {rate / alone / gpus:.0%} | {rate * work.clip_bytes / 1e6:,.0f}",
            ]
            print("|", " | ".join(row), "|")
    size, seconds = checkpoint_seconds(work, GPUS[-1], hardware)
    print(
        f"\nA checkpoint is {size / 1e9:.1f} GB and stops {GPUS[-1]} GPUs for {seconds:.0f} s when it is written in the step."
    )
    schedule(options, work, encode, decode, hardware)


def schedule(options: argparse.Namespace, work: Work, encode: float, decode: float, hardware: Hardware) -> None:
    print("\n| stage | steps | clips a step | GPU-hours |\n|---|---|---|---|")
    reached, total = hardware.peak * hardware.utilization, 0.0
    for stage, (steps, clips) in SCHEDULE.items():
        # A video autoencoder learns both halves and a discriminator, which is taken as half an encoder.
        each = 3 * (1.5 * encode + decode) if stage == "autoencoder" else 3 * work.forward
        hours = steps * clips * each / reached / 3600
        total += hours
        print(f"| {stage} | {steps:,} | {clips} | {hours:,.0f} |")
    clips = (DDIM_STEPS * BRANCHES * work.forward + decode) * EVALUATED / reached / 3600
    cache = 10_000_000 * encode / reached / 3600
    print(f"| latents of 10 M clips, once | | | {cache:,.0f} |")
    print(f"| evaluation: {EVALUATED:,} clips, {DDIM_STEPS} steps, {BRANCHES} branches | | | {clips:,.0f} |")
    print(f"| all of it | | | {total + cache + clips:,.0f} |")


def check(options: argparse.Namespace) -> None:
    """Traffic of the loopback device, a long run less a short one, so that starting and ending cancel."""
    print("| strategy | parameters | bytes a step and process | the model's | ratio |\n|---|---|---|---|---|")
    for strategy in options.strategies:
        (short, _), (long, parameters) = (_measured(strategy, steps, options) for steps in options.steps)
        found = (long - short) / (options.steps[1] - options.steps[0]) / 2
        said = wire_bytes(strategy, parameters, 2)
        print(f"| {strategy} | {parameters:,} | {found:,.0f} | {said:,.0f} | {found / said:.2f} |", flush=True)


def _measured(strategy: str, steps: int, options: argparse.Namespace) -> tuple[int, int]:
    """Bytes that went over the loopback device during a run, and its trained parameters."""
    from safetensors.torch import load_file

    name = f"cost-{strategy}-{steps}"
    before = _loopback()
    subprocess.run(
        [sys.executable, "train.py", "stage=vdm", f"trainer={strategy}", "trainer.devices=2", "trainer.accelerator=cpu",
         "trainer.precision=32-true", f"trainer.max_steps={steps}", f"run.id={name}", "resume=never",
         "callbacks.samples=null", "callbacks.validation=null", "callbacks.checkpoint.monitor=null", *options.settings],
        check=True, env=os.environ, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    sent = _loopback() - before
    root = next((s.partition("=")[2] for s in options.settings if s.startswith("paths.output_root=")), "outputs")
    parameters = 0
    for path in sorted((Path(root) / name / "checkpoints").glob("*"))[-1].glob("ema/*.safetensors"):
        parameters += sum(tensor.numel() for tensor in load_file(path).values())
    return sent, parameters


def _loopback() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])  # bytes sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="lvdm")
    parser.add_argument("--autoencoder", default="kl2d")
    parser.add_argument("--text-width", type=int, default=768)
    parser.add_argument("--batch", type=int, default=4, help="clips a GPU and step")
    parser.add_argument("--utilization", type=float, default=Hardware.utilization)
    commands = parser.add_subparsers(dest="command")
    checking = commands.add_parser("check", help="measure what two processes send")
    checking.add_argument("strategies", nargs="+")
    checking.add_argument("--steps", type=int, nargs=2, default=[5, 25])
    checking.add_argument(
        "--set", dest="settings", nargs="*", default=[], metavar="KEY=VALUE", help="of train.py: data, init"
    )
    options = parser.parse_args()
    check(options) if options.command == "check" else tables(options)


if __name__ == "__main__":
    main()
