"""UCF-101, MSR-VTT and ActivityNet Captions as they are downloaded, in miniature, with the usual quirks and gaps."""

import json

from official_sets import put, video

CLASSES = ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
EVENTS = [
    "A man picks up a ball.",
    "He throws the ball to a dog.",
    "The dog runs across the lawn.",
    "The dog barks at the man.",
    "The man laughs.",
]


def ucf101(folder):
    """Two groups of people to train and two to test; one class is spelt in two ways, lines end as on Windows."""
    lists, videos = folder / "ucfTrainTestlist", folder / "UCF-101"
    put(lists / "classInd.txt", "".join(f"{i} {name}\r\n" for i, name in enumerate(CLASSES, start=1)))
    spelt = [(name, name.replace("Handstand", "HandStand")) for name in CLASSES]
    train = [f"{c}/v_{s}_g{g:02d}_c01.avi {i}" for i, (c, s) in enumerate(spelt, start=1) for g in (8, 9)]
    test = [f"{c}/v_{s}_g{g:02d}_c01.avi" for c, s in spelt for g in (1, 2)]
    put(lists / "trainlist01.txt", "\r\n".join(train) + "\r\n")
    put(lists / "testlist01.txt", "\r\n".join(test) + "\r\n")
    for seed, line in enumerate([*train, *test]):
        put(videos / line.split()[0], video("avi", seconds=1.2, seed=seed % 4))


def msrvtt(folder):
    """Both json files with 20 captions a video; one of the videos to train is gone."""
    train, test = range(4), range(4, 8)
    for name, numbers in (("train_val", train), ("test", test)):
        split = {n: "test" if n >= 4 else "validate" if n == 3 else "train" for n in numbers}
        videos = [
            {"category": n, "url": f"https://www.youtube.com/watch?v=AbCd_-efg{n:02d}", "video_id": f"video{n}",
             "start time": 0.5, "end time": 2.5, "split": split[n], "id": n} for n in numbers
        ]  # fmt: skip
        told = [
            {"caption": f"a cook stirs soup number {n} for the {i}. time", "video_id": f"video{n}", "sen_id": 20 * n + i}
            for i in range(20) for n in numbers
        ]  # fmt: skip
        text = json.dumps({"info": {"year": "2016"}, "videos": videos, "sentences": told})
        put(folder / f"{name}_videodatainfo.json", text)
    for n in (0, 1, 3, *test):
        put(folder / "videos" / ("TestVideo" if n >= 4 else "TrainValVideo") / f"video{n}.mp4", video(seed=n % 4))


def activitynet(folder):
    """Videos of one to five sentences, one after the other; one of the videos to train is gone."""
    splits = {"train": [2, 1, 3], "val": [1, 3, 4, 5]}
    tables = {
        split: {
            f"v_{split[:1]}{i}_-QOlSCBRm": {
                "duration": 8.0,
                "timestamps": [[round(8 * n / count, 2), round(8 * (n + 1) / count, 2)] for n in range(count)],
                "sentences": EVENTS[:count],
            }
            for i, count in enumerate(counts)
        }
        for split, counts in splits.items()
    }
    for name, table in (("train", tables["train"]), ("val_1", tables["val"]), ("val_2", tables["val"])):
        put(folder / "captions" / f"{name}.json", json.dumps(table))
    names = [*list(tables["train"])[:-1], *tables["val"]]
    for seed, name in enumerate(names):
        put(folder / "videos" / "v1-3" / f"{name}.mp4", video(seconds=8.0, seed=seed % 4))
