"""How fast and how lean is `UNet3D` beside diffusers' `UNet3DConditionModel`? Same weights, dtype, inputs and threads.

    python benchmarks/backbone.py                                      three sizes on the CPU
    python benchmarks/backbone.py --sizes medium --compile             what torch.compile adds
    python benchmarks/backbone.py --sizes published --device cuda --dtype bfloat16 --peak-tflops 989

Both networks take turns in one process, so that whatever else the machine does meets both; a ratio is of the fastest turn
of each. On a machine that is not idle, OMP_WAIT_POLICY=PASSIVE keeps threads from spinning. Peak memory is measured in a
process of its own per network, which imports only what that network needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from vdm.backbones.modelscope import from_diffusers
from vdm.backbones.published import settings_from_diffusers
from vdm.backbones.unet3d import UNet3D
from vdm.types import Controls, Tokens

TOKENS = 77
SIXTY_TWO = {"block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 1024, "attention_head_dim": 32}
SIZES = {  # network, and the latent as b t h w
    "small": (
        {"block_out_channels": [32, 64, 128, 128], "cross_attention_dim": 256, "attention_head_dim": 16},
        (4, 8, 16, 16),
    ),
    "medium": (SIXTY_TWO, (1, 8, 32, 32)),
    "large": (SIXTY_TWO, (1, 16, 32, 32)),
    "published": (
        {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024, "attention_head_dim": 64},
        (1, 16, 32, 32),
    ),
}


def build(which: str, size: str, options: argparse.Namespace):
    """A network and a function that runs it once."""
    config, (b, t, h, w) = SIZES[size]
    torch.manual_seed(0)
    if which == "peer":
        from diffusers import UNet3DConditionModel

        network = UNet3DConditionModel(**config)
    else:
        levels = [] if not options.checkpoint else [int(level) for level in options.checkpoint.split(",")]
        network = UNet3D(**settings_from_diffusers(config), checkpoint_levels=levels, compile=options.compile)
    network.to(options.device)
    if options.dtype != torch.float32:
        network.to(options.dtype)
    x = torch.randn(b, 4, t, h, w, device=options.device, dtype=options.dtype)
    text = torch.randn(b, TOKENS, config["cross_attention_dim"], device=options.device, dtype=options.dtype)
    timestep = torch.randint(0, 1000, (b,), device=options.device)
    if which == "peer":
        return network, lambda: network(x, timestep, text).sample
    controls = Controls(tokens={"text": Tokens(text)})
    return network, lambda: network(x, timestep, controls)


def training_step(network: torch.nn.Module, run) -> None:
    for parameter in network.parameters():
        parameter.grad = None
    run().float().square().mean().backward()


def clocked(function, device: str) -> tuple[float, float]:
    """Wall seconds, and seconds of processor time (all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_speed(size: str, options: argparse.Namespace) -> dict:
    peer, run_peer = build("peer", size, options)
    ours, run_ours = build("ours", size, options)
    ours.load_state_dict(from_diffusers(peer.state_dict(), ours))
    with torch.no_grad():
        peer.eval(), ours.eval()
        difference = (run_peer() - run_ours()).abs().max().item()
        forward = in_turns({"peer": run_peer, "ours": run_ours}, options)
    peer.train(), ours.train()
    step = in_turns(
        {"peer": lambda: training_step(peer, run_peer), "ours": lambda: training_step(ours, run_ours)}, options
    )
    result = {"difference": difference, "forward": forward, "step": step}
    result["parameters"] = sum(parameter.numel() for parameter in ours.parameters())
    result["forward_flops"] = forward_flops(size)
    if options.peak_tflops:
        result["tflops"] = 3 * result["forward_flops"] / step["ours"][0] / 1e12
        result["mfu"] = result["tflops"] / options.peak_tflops
    return result


def in_turns(functions: dict, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    for function in functions.values():
        function()
    clocks = {name: [] for name in functions}
    for _ in range(options.turns):
        for name, function in functions.items():
            clocks[name].append(clocked(function, options.device))
    return {name: tuple(map(min, zip(*turns, strict=True))) for name, turns in clocks.items()}


def forward_flops(size: str) -> int:
    """Two per multiplication and addition, attention included: counted on the meta device."""
    config, (b, t, h, w) = SIZES[size]
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = UNet3D(**settings_from_diffusers(config), checkpoint_levels=[], compile=False)
        text = torch.empty(b, TOKENS, config["cross_attention_dim"])
        network(torch.empty(b, 4, t, h, w), torch.empty(b), Controls(tokens={"text": Tokens(text)}))
    return counter.get_total_flops()


def measure_memory(which: str, size: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak of two training steps in MB: of the process, and above what it occupied with its libraries imported."""
    if which == "peer":
        import diffusers.models.unets.unet_3d_condition  # noqa: F401
    torch.randn(8).sum().item()
    libraries = peak_memory()
    network, run = build(which, size, options)
    for _ in range(2):
        training_step(network, run)
    if options.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
        return {"peak": peak, "net": peak}
    peak = peak_memory()
    return {"peak": peak, "net": peak - libraries}


def peak_memory() -> float:
    """In MB. Not `ru_maxrss`, which a process inherits from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def in_own_process(which: str, size: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", which, "--sizes", size]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def report(size: str, result: dict, memory: dict[str, dict[str, float]]) -> None:
    _, shape = SIZES[size]
    print(f"\n{size}: {result['parameters'] / 1e6:.0f} M parameters, latent {' x '.join(map(str, shape))} (b t h w)")
    print(f"  outputs differ by {result['difference']:.1e}; one forward is {result['forward_flops'] / 1e9:.0f} GFLOP")
    for name in ("forward", "step"):
        (wall, cpu), (peer_wall, peer_cpu) = result[name]["ours"], result[name]["peer"]
        print(
            f"  {name:8} ours {wall:7.3f} s, diffusers {peer_wall:7.3f} s: {peer_wall / wall:.2f}x as fast"
            f"   (processor time {cpu:.2f} s, {peer_cpu:.2f} s: {peer_cpu / cpu:.2f}x)"
        )
    for name, words in (("peak", "peak memory"), ("net", "without libraries")):
        ours, peer = memory["ours"][name], memory["peer"][name]
        print(f"  {words:17} ours {ours:6.0f} MB, diffusers {peer:6.0f} MB: {ours / peer:.2f}x")
    if "mfu" in result:
        print(f"  {result['tflops']:.1f} TFLOP/s, {100 * result['mfu']:.1f} % of the peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "medium", "large"])
    parser.add_argument("--turns", type=int, default=4, help="how often each network runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile for ours, one cell at a time")
    parser.add_argument("--checkpoint", default="", help="levels to compute again in the backward pass, such as 0,1")
    parser.add_argument("--peak-tflops", type=float, help="of the device, to report how much of it is used")
    parser.add_argument("--memory-of", choices=("peer", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, options.sizes[0], options)))
        return
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads, load of the machine {load:.1f}")
    for size in options.sizes:
        memory = {which: in_own_process(which, size) for which in ("peer", "ours")}
        report(size, measure_speed(size, options), memory)


if __name__ == "__main__":
    main()
