"""Steps of stage=vdm from videos and from a cache of their latents: what a step spends on reading, encoding and learning.

    python benchmarks/cache.py [--steps 30] [--settings experiment=quickstart_vdm paths.data_root=datasets ...]

Needs prepared shapes, a run of stage=autoencoder on them and its cache (python -m data.precompute data=shapes). Both
contenders are the same networks on the same clips; they take turns, step by step. Batches are read in this process, so
what is counted is CPU time of one thread where there is no GPU, and other work on the machine hardly matters. With a GPU
it is wall time.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PARTS = ("read", "encode", "learn")


def contender(settings: list[str], cached: str):
    """An endless row of (seconds by part), one for each step."""
    import hydra
    import torch
    from hydra.utils import instantiate

    from vdm import checkpoint, lineage, runs
    from vdm.launch import CONF

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=[*settings, "run.id=null", "data.num_workers=0", "resume=never"])
    lineage.adopt(cfg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock()

    torch.manual_seed(0)
    data = instantiate(cfg.data, _convert_="all")
    data.setup("fit")
    stage = instantiate(cfg.stage, _convert_="all")
    parent = runs.find(str(cfg.paths.output_root), str(cfg.init.autoencoder), key="init.autoencoder")
    tensors = checkpoint.network_weights(parent.last_checkpoint(), "autoencoder")
    checkpoint.load_weights(stage.autoencoder, tensors, source=parent.name)
    stage.to(device).train()
    if cached == "auto":
        data.use_cache(cached, stage.made_by)
        if not data._cached:
            sys.exit("there is no cache of this autoencoder: python -m data.precompute data=shapes")
    optimizer = stage.make_optimizer(stage.parameter_groups())
    stream = iter(data.train_dataloader())
    while True:
        begun = now()
        batch = next(stream)
        batch = stage.transfer_batch_to_device(batch, device, 0)
        batch = data.on_after_batch_transfer(batch, 0)
        read = now()
        batch["latent"] = stage.latent_of(batch)
        encoded = now()
        loss = stage.losses(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield {"read": read - begun, "encode": encoded - read, "learn": now() - encoded}, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--settings", nargs="*", default=[])
    given = parser.parse_args()
    settings = given.settings
    if not any(entry.startswith(("experiment=", "stage=")) for entry in settings):
        settings = ["experiment=quickstart_vdm", *settings]
    import torch

    has_gpu = torch.cuda.is_available()
    contenders = {"videos": contender(settings, "null"), "cache": contender(settings, "auto")}
    spent = {name: {part: [] for part in PARTS} for name in contenders}
    for step in range(given.steps + 3):
        losses = []
        for name, steps in contenders.items():
            seconds, loss = next(steps)
            losses.append(loss)
            for part in PARTS if step >= 3 else ():
                spent[name][part].append(seconds[part])
        # Some kernels of a GPU add up in another order each time.
        assert math.isclose(*losses, rel_tol=1e-3 if has_gpu else 0.0), f"the losses differ: {losses}"
    medians = {name: {part: statistics.median(parts[part]) for part in PARTS} for name, parts in spent.items()}
    print(f"{'ms a step':10}" + "".join(f"{part:>10}" for part in (*PARTS, "sum")))
    for name, parts in medians.items():
        row = [*parts.values(), sum(parts.values())]
        print(f"{name:10}" + "".join(f"{1000 * seconds:10.1f}" for seconds in row))
    whole = [sum(parts.values()) for parts in medians.values()]
    hidden = [sum(parts.values()) - parts["read"] for parts in medians.values()]
    print(f"\nsteps a second, cache / videos: {whole[0] / whole[1]:.2f} where reading takes its turn, "
          f"{hidden[0] / hidden[1]:.2f} where workers hide it; {given.steps} steps of the same losses")  # fmt: skip


if __name__ == "__main__":
    main()
