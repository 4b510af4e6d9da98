"""shellscripts/slurm/chain.sh on a real cluster: all stages one after the other, while jobs are sent away and come back."""

import subprocess
import sys
from pathlib import Path

import pytest
from clusters import ROOT, logs, steps, until

from vdm import sweeps
from vdm.runs import Run

PIXELS = ["trainer=cpu", "trainer.max_steps=6", "trainer.log_every_n_steps=1", "callbacks.samples.every=0",
          "callbacks.checkpoint.every=2", "callbacks.validation.every=0", "data.num_workers=0", "data.batch_size=2",
          "data.val_clips=2", "stage.accumulate=1"]  # fmt: skip
TEXTS = ["trainer=cpu", "trainer.max_steps=2", "trainer.log_every_n_steps=1", "callbacks.samples.every=0"]
OF_STAGES = {
    "AUTOENCODER": ["autoencoder=tiny", "autoencoder.channels=8", "stage.loss.perceptual=null", "stage.loss.adversarial=null",
                    "trainer.max_steps=300", "callbacks.checkpoint.finish_batches=1"],
    "VDM": ["backbone=tiny", "backbone.channels=8", "backbone.norm_groups=4", "backbone.head_width=8",
            "condition.text.encoder.width=16", "condition.text.encoder.depth=1", "condition.text.encoder.heads=2"],
    "LANGUAGE": [*TEXTS, "language.width=32", "language.depth=1", "texts.source.num_val=4", "texts.batch_size=2"],
    "PLANNER": [*TEXTS, "texts.batch_size=4", "texts.source.num_train=8", "texts.source.num_val=4", "llm.max_tokens=8"],
    "PLANS": ["captions=first", "planner=plain", "llm.max_tokens=8", "max_fallbacks=1"],
    "EVALUATION": ["protocol.clips=4", "protocol.sampler.num_steps=2", "batch_size=2", "num_workers=0", "report=false"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_chain_survives_requeues(cluster, shapes_root, tmp_path):
    words = [word for word in PIXELS if word != "trainer.max_steps=6"]
    environment = {
        **cluster.environment, **{stage: " ".join(given) for stage, given in OF_STAGES.items()}, "PYTHON": sys.executable,
        "COMMON": f"paths.data_root={shapes_root} paths.output_root={tmp_path}",
        "LAUNCHER": "hydra.launcher.cpus_per_task=1 hydra.launcher.gpus=0",
    }  # fmt: skip
    for stage in ("VDM", "DYSEN", "FINETUNE"):
        environment[stage] = f"{environment.get(stage, '')} trainer.max_steps=6"
    command = ["bash", "shellscripts/slurm/chain.sh", "data=shapes", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    submitted = [Path(line.split()[1]) for line in done.stdout.splitlines() if line.strip().startswith("folder:")]
    names = [sweeps.noted(sweep / "0")["name"].removeprefix("chain-") for sweep in submitted]
    jobs = dict(zip(names, submitted, strict=True))
    assert names == ["autoencoder", "vdm", "language", "planner", "plans", "dysen", "finetune", "evaluation"]

    until(lambda: steps(tmp_path / "chain-autoencoder") > 5, 300, lambda: logs(jobs["autoencoder"]))
    cluster.call("scontrol", "requeue", sweeps.noted(jobs["autoencoder"] / "0")["job"])
    until(lambda: (jobs["vdm"] / "0" / sweeps.STARTED).exists(), 600, lambda: logs(jobs["vdm"]))
    cluster.call("scancel", "--signal=USR1", sweeps.noted(jobs["vdm"] / "0")["job"])
    for name in ("evaluation", "plans"):
        cluster.wait(jobs[name], seconds=1500)
    for name, sweep in jobs.items():
        assert sweeps.exit_code(sweep / "0") == 0, f"{name}: {logs(sweep)}"
    for name in ("autoencoder", "vdm"):
        assert int(cluster.facts(sweeps.noted(jobs[name] / "0")["job"]).get("Restarts", 1)) == 1
    assert {Run(tmp_path / f"chain-{name}").state for name in names if name not in ("plans", "evaluation")} == {
        "complete"
    }
    assert (tmp_path / "chain-finetune" / "evaluation" / "shapes" / "metrics.json").is_file()
    lineage = [parent["run"] for parent in Run(tmp_path / "chain-finetune").info["lineage"]]
    assert set(lineage) == {"chain-dysen"}
