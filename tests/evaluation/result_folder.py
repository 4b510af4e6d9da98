"""An evaluation folder with everything a report can show, in a run with parents: real clips, drawings, hostile captions."""

import json
import math

import numpy as np

from dysen.action_plan import Plan
from dysen.drawing import draw_dsg, draw_plan
from dysen.scene_graph import event_to_dsg
from vdm.video import encode_mp4

HOSTILE = (
    "</p><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">",
    "A family 👨‍👩‍👧‍👦 eats ramen 🍜, then waves 👋🏽",
    "word " * 2000,  # 10,000 characters
    "W" * 10000,
    "سيارة حمراء تتحرك إلى اليسار ثم تتوقف",
    "\u202eright to left\x00\x07 and control characters \ud800 &amp; ]]> --> </style></article>",
)
PLAIN = (
    "A lady sits down on the chair, then she drinks coffee and looks out of the window.",
    "A man opens the door, a dog runs out and barks at the postman.",
    "Two children build a tower of blocks, it falls, and they laugh.",
    "A cook cuts an onion, heats oil in a pan and stirs.",
    "A skateboarder rolls down the ramp, jumps and lands.",
    "A woman ties her shoes, runs around the lake and stretches.",
    "A boy throws a ball to a girl, who catches it and throws it back.",
    "A painter mixes colours, paints the wall and steps back.",
)
CAPTIONS = (*PLAIN, *HOSTILE)
EVENTS = [["lady", "sitting on", "chair", [0, 5]], ["lady", "drinking", "coffee", [1, 2]],
          ["lady", "meeting", "friend", [3, 4]], ["lady", "looking out", "window", [3, 5]]]  # fmt: skip
FIXED = 1_790_000_000.0


def moving(seed, frames=12, height=48, width=64):
    """A disc that crosses a picture, T H W 3 in uint8."""
    rng = np.random.default_rng(seed)
    ground, colour = rng.integers(20, 120, 3), rng.integers(130, 255, 3)
    y, x = np.mgrid[:height, :width]
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        across = width * (0.15 + 0.7 * t / (frames - 1))
        inside = np.hypot(x - across, y - height * (0.5 + 0.2 * math.sin(seed + t / 2))) < 9
        clip[t] = np.where(inside[..., None], colour, ground)
    return clip


def write_cases(folder, *, count, frames=12, size=(48, 64)):
    """`cases.jsonl` and its files."""
    plan = Plan.from_json(EVENTS)
    for name in ("videos", "originals", "plans"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        key, caption = f"clip-{i:04d}", CAPTIONS[i % len(CAPTIONS)]
        video = f"videos/{key}.mp4"
        (folder / video).write_bytes(encode_mp4(moving(i, frames, *size), 8.0))
        (folder / f"originals/{key}.mp4").write_bytes(encode_mp4(moving(i + 1000, frames, *size), 8.0))
        (folder / f"plans/{key}.json").write_text(json.dumps({"caption": caption, "plan": EVENTS}))
        draw_plan(plan).save(folder / f"plans/{key}.timeline.svg")
        draw_dsg(event_to_dsg(plan)).save(folder / f"plans/{key}.graph.svg")
        lines.append({
            "key": key, "caption": caption, "video": video, "original": f"originals/{key}.mp4",
            "scores": {"clipsim_ViT-B-32-quickgelu_16f": 0.2 + 0.01 * (i * 7 % 11), "warping_error_lk": 0.01 + 0.001 * i,
                       "flow_lk": 0.1 * i},
            "plan": f"plans/{key}.json", "timeline": f"plans/{key}.timeline.svg", "graph": f"plans/{key}.graph.svg",
        })  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "cases.jsonl").write_text(text + "\n{broken\n", encoding="utf-8")


def distance(name, value, *, span=0.06):
    return {
        name: value, f"{name}/low": value * (1 - span), f"{name}/high": value * (1 + span), f"{name}/floor": value * 0.31,
        f"{name}/matched": value * 1.22, f"{name}/floor_clips": 512,
    }  # fmt: skip


def bins(names, values):
    return [
        {
            "bin": name,
            "clips": 200 - 20 * i,
            "metrics": distance(f"fvd{200 - 20 * i}_16f", value) | {"flow_lk": 0.1 * i},
        }
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    ]


def content(run, value, *, protocol="activitynet", id="activitynet-5f0c2a91"):
    sampler = {
        "_target_": "vdm.samplers.dpm_solver.dpm_solver",
        "_partial_": True,
        "num_steps": 20,
        "spacing": "trailing",
    }
    return {
        "id": id,
        "protocol": {
            "_target_": "vdm.evaluation.generation.Generation", "name": protocol, "stage": ["vdm", "dysen"], "split": "val",
            "clips": 1024, "reference_split": "val", "reference_clips": 2048, "sampler": sampler, "guidance": 7.5,
            "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0], "seed": 0,
        },
        "run": run,
        "checkpoint": "step-00003000",
        "data": {"name": "activitynet", "split": "val", "fingerprint": "f93454bd84a90bad1cb11adb4b0acd4d4cd1ad950fb219d9"},
        "reference": {"name": "activitynet", "split": "val", "fingerprint": "0a93454bd84a90bad1cb11adb4b0acd4d4cd1ad95"},
        "metrics": {"clips": 1024} | distance("fvd1024_16f", value) | distance("kvd1024_16f", value / 9)
        | {"clipsim_ViT-B-32-quickgelu_16f": 0.2931, "flow_lk": 0.2, "original/flow_lk": 0.31, "dynamic_degree_lk": 0.61,
           "original/dynamic_degree_lk": 0.88, "video_is1024_16f": 31.2, "video_is1024_16f/deviation": 0.8},
        "skipped": {"fid": "weights/inception-2015-12-05.pt is not there, and nothing is downloaded. It is of stylegan2-ada"},
        "measured": {"fvd": {"clips": 1024, "real_clips": 2048, "network": "i3d_torchscript.pt", "sha256": "bec6519f66ea5",
                             "arguments": {"rescale": True}, "frames": 16, "stride": 1}},
        "breakdowns": {
            "events": bins(["3", "4", "5", "6", "\u22657"], [410, 480, 590, 700, 960]),
            "words": bins(["<=10", "10-20", "20-30", "30-40"], [210, 330, 480, 640]),
            "frames": bins(["128", "256"], [700, 810]),
        },
        "rejected": {"no frame can be read": 12, "fewer than 16 frames": 5},
        "weights": {"backbone": "sha256 686bb7ff2c16", "averaged": True},
    }  # fmt: skip


def write_run(folder, *, stage, parents=(), steps=3000, **changed):
    folder.mkdir(parents=True)
    lineage = [
        {"network": n, "run": r, "checkpoint": "step-00003000", "sha256": "686bb7ff2c16f3e24"} for n, r in parents
    ]
    info = {"stage": stage, "data": "activitynet", "lineage": lineage, "state": "complete", "step": steps, "created": FIXED,
            "finished": FIXED + 7200, "commit": "9671138266", "changed": False, "packages": {"torch": "2.13.0"}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(info | changed))
    (folder / "config.yaml").write_text(f"stage: {{name: {stage}}}\nseed: 0\n")
    rows = ["step,train/loss,val/loss,train/loss_level_0,train/loss_level_1,train/lr,perf/clips_per_second"]
    for step in range(20, steps + 1, 20):
        loss = 0.9 * math.exp(-step / 700) + 0.14 + 0.01 * math.sin(step)
        held_out = f"{loss + 0.02:.5f}" if step % 500 == 0 else ""
        rows.append(
            f"{step},{loss:.5f},{held_out},{loss / 2:.5f},{loss * 1.5:.5f},{min(step / 500, 1) * 1e-3},{60 + step % 7}"
        )
    (folder / "metrics.csv").write_text("\n".join([*rows, "3020,0.1", "cut o"]) + "\n")


def write_results(root, *, cases=14):
    """outputs/{mine,parent,autoencoder}; returns the evaluation folder of `dysen-activitynet`."""
    write_run(root / "autoencoder-webvid", stage="autoencoder")
    write_run(root / "vdm-activitynet", stage="vdm", parents=[("autoencoder", "autoencoder-webvid")])
    write_run(root / "dysen-activitynet", stage="dysen",
              parents=[("autoencoder", "autoencoder-webvid"), ("backbone", "vdm-activitynet"), ("conditions", "vdm-activitynet")],
              command="python train.py stage=dysen data=activitynet trainer.max_steps=3000")  # fmt: skip
    folder = root / "dysen-activitynet" / "evaluation" / "activitynet"
    write_cases(folder, count=cases)
    (folder / "metrics.json").write_text(json.dumps(content("dysen-activitynet", 512.3)))
    same = root / "vdm-activitynet" / "evaluation" / "activitynet"
    same.mkdir(parents=True)
    (same / "metrics.json").write_text(json.dumps(content("vdm-activitynet", 633.1)))
    other = root / "vdm-activitynet" / "evaluation" / "ucf101"
    other.mkdir(parents=True)
    (other / "metrics.json").write_text(
        json.dumps(content("vdm-activitynet", 444.0, protocol="ucf101", id="ucf101-11"))
    )
    return folder
