"""How fast does a batch of prompts become videos, beside diffusers' `TextToVideoSDPipeline`? Same frames, weights, steps.

    python benchmarks/sampling.py                                    62 M parameters, 2 clips of 8 x 256 x 256, 20 steps
    python benchmarks/sampling.py --clips 1 --frames 16 --turns 5
    python benchmarks/sampling.py --turns 1 --steps 2 --size 64      whether it runs

A model folder with random weights is written, and both read it: text encoder, U-Net, autoencoder. Both begin with the same
noise, so they make the same frames, which is checked. They take turns in one process, so that whatever else the machine
does meets both; what is reported are medians. On a machine that is not idle, OMP_WAIT_POLICY=PASSIVE keeps threads from
spinning.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from tests.published_models import randomise, write_tokenizer
from vdm.autoencoder.kl2d import KL2dAutoencoder
from vdm.backbones.modelscope import load_diffusers
from vdm.backbones.published import read_config, settings_from_diffusers
from vdm.backbones.unet3d import UNet3D
from vdm.conditions.base import ConditionSet
from vdm.conditions.encoders.clip import ClipEncoder
from vdm.conditions.text import TextCondition
from vdm.diffusion.density import Uniform
from vdm.diffusion.guidance import classifier_free
from vdm.diffusion.noise import noise_for
from vdm.diffusion.objective import Objective
from vdm.diffusion.schedule import scaled_linear
from vdm.samplers.ddim import ddim
from vdm.samplers.dpm_solver import dpm_solver
from vdm.sampling.model import TextToVideo

PROMPTS = ("a red circle moves to the left", "a blue star", "two green squares", "a yellow ring falls")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
WIDTH, LENGTH, SEED = 1024, 77, 0
SIZES = {  # U-Net; all else is the same
    "reduced": {"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": WIDTH, "attention_head_dim": 32},
    "published": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": WIDTH, "attention_head_dim": 64},
}
VAE = {
    "block_out_channels": (64, 128, 256, 256),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}


def write_model(folder: Path, options: argparse.Namespace) -> None:
    import diffusers
    import transformers

    vocabulary = write_tokenizer(folder / "tokenizer", length=LENGTH)
    clip = transformers.CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2, num_attention_heads=16,
        vocab_size=len(vocabulary), bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, pad_token_id=1,
    )  # fmt: skip
    scheduler = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", **BETAS, "timestep_spacing": "trailing"}
    kind = diffusers.DDIMScheduler if options.sampler == "ddim" else diffusers.DPMSolverMultistepScheduler
    if options.sampler == "ddim":
        scheduler |= {"clip_sample": False}
    torch.manual_seed(0)
    diffusers.TextToVideoSDPipeline(
        vae=randomise(diffusers.AutoencoderKL(**VAE), 1, scale=0.03),
        text_encoder=transformers.CLIPTextModel(clip),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=randomise(diffusers.UNet3DConditionModel(**SIZES[options.model]), 2, scale=0.02),
        scheduler=kind(**scheduler),
    ).save_pretrained(folder)


def peer(folder: Path, noise: torch.Tensor, options: argparse.Namespace):
    import diffusers

    pipeline = diffusers.TextToVideoSDPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        made = pipeline(
            options.prompts, latents=noise, num_frames=options.frames, num_inference_steps=options.steps,
            guidance_scale=options.guidance, height=options.size, width=options.size, output_type="pt",
        )  # fmt: skip
        return (made.frames * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)  # b T H W 3

    return run


def ours(folder: Path, options: argparse.Namespace) -> TextToVideo:
    settings = settings_from_diffusers(read_config(folder / "unet"))
    backbone = UNet3D(**settings, checkpoint_levels=[], compile=False)
    load_diffusers(backbone, folder / "unet")
    encoder = ClipEncoder(folder=str(folder), layer="last", length=LENGTH, dtype="float32", is_trained=False)
    objective = Objective(
        schedule=scaled_linear(num_timesteps=1000, zero_terminal_snr=False, **BETAS), prediction="epsilon",
        density=Uniform(), loss="l2", huber_delta=1.0, min_snr_gamma=None, offset_noise=0.0, shared_noise=0.0,
    )  # fmt: skip
    members = {"text": TextCondition(encoder=encoder, pooled=False, drop_prob=0.1)}
    return TextToVideo(
        autoencoder=KL2dAutoencoder.from_diffusers(folder / "vae", frames_per_slice=16),
        backbone=backbone,
        objective=objective,
        conditions=ConditionSet(members=members, joint_drop_prob=0.0, joint_keep_prob=0.0),
        device=torch.device("cpu"),
        precision=None,
    )


def sampling(model: TextToVideo, shape, options: argparse.Namespace):
    steps = {"num_steps": options.steps, "spacing": "trailing", "offset": 0, "end": "clean"}
    sampler = functools.partial(ddim, **steps, eta=0.0)
    if options.sampler == "dpm_solver":
        sampler = functools.partial(dpm_solver, **steps, lower_order_final=True)
    guidance = classifier_free(["text"], options.guidance, rescale=0.0, interval=(0.0, 1.0))

    def run() -> torch.Tensor:
        model.say_instead(None)  # forget what the text encoder said
        latents = model.latents(
            options.prompts, options.keys, seed=SEED, shape=shape, fps=8.0, sampler=sampler, guidance=guidance
        )
        return torch.stack([model.frames(latent) for latent in latents])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="reduced")
    parser.add_argument("--clips", type=int, default=2, help="in one batch")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--sampler", choices=("ddim", "dpm_solver"), default="ddim")
    parser.add_argument(
        "--turns", type=int, default=3, help="how often each samples, after one turn that is not counted"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    options.prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.clips)]
    options.keys = [str(i) for i in range(options.clips)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_model(folder, options)
        model = ours(folder, options)
        shape = model.latent_shape(options.frames, options.size, options.size)
        run_peer = peer(folder, noise_for(options.keys, SEED, shape, model.device), options)
    report({"diffusers": run_peer, "ours": sampling(model, shape, options)}, model, options)


def report(runs: dict, model: TextToVideo, options: argparse.Namespace) -> None:
    frames = {name: run() for name, run in runs.items()}
    difference = (frames["ours"].int() - frames["diffusers"].int()).abs().max().item()
    clocks: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.turns):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            clocks[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    median = {name: [statistics.median(times) for times in zip(*turns, strict=True)] for name, turns in clocks.items()}
    parameters = sum(p.numel() for p in model.backbone.parameters()) / 1e6
    print(f"torch {torch.__version__}, {options.threads} threads, load of the machine {os.getloadavg()[0]:.1f}")
    print(f"U-Net of {parameters:.0f} M parameters; {options.clips} clips of {options.frames} x {options.size} x {options.size}, "
          f"{options.steps} steps of {options.sampler}, guidance {options.guidance}")  # fmt: skip
    print(f"  frames differ by {difference} of 255 at most (their spread is {frames['ours'].float().std():.0f})")
    for i, clock in enumerate(("wall", "processor")):
        mine, theirs = median["ours"][i], median["diffusers"][i]
        print(f"  {clock:9} time: ours {mine:7.2f} s, diffusers {theirs:7.2f} s: {theirs / mine:.2f}x as fast")


if __name__ == "__main__":
    main()
