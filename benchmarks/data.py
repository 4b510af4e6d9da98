"""Decoded clips per second: our shards through our loader, against loose files and against webdataset on the same shards.

    python benchmarks/data.py [--rounds 5] [--seconds 4] [--workers 2]

Loose files are what a download leaves: 10 s of H.264 with a keyframe every 48 frames, read as LVDM's dataset does (open, seek
to a random start, decode the frames of one clip, resize, cut the centre). Shards are made from them by the code of
data.prepare. webdataset reads the shards with its stock video decoder (a temporary file and torchvision.io.read_video;
where torchvision has none any more, the same steps with PyAV) and with ours. All use torch's or our worker processes, the
same batch size and as many batches ahead; contenders take turns within a round, and the table shows medians over rounds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH, AHEAD, DISTINCT, COPIES = 16, 2, 6, 64


@dataclass(frozen=True)
class Size:
    """What is stored and read, and what it comes from."""

    name: str
    frames: int
    side: int
    source: tuple[int, int]  # height, width of the loose files
    stride: int  # source frames between the frames of a clip
    crf: int
    pixel_format: str


SIZES = (
    Size("shapes-like 32x32x8", 8, 32, (240, 320), 4, 12, "yuv444p"),
    Size("natural-like 256x256x16", 16, 256, (336, 596), 4, 18, "yuv420p"),
)


def moving_texture(seed: int, frames: int, height: int, width: int) -> Iterator:
    """Drifting layers of smooth noise at several scales, with grain: as hard to code as a real scene."""
    import numpy as np
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    layers = []
    for cells in (4, 8, 16, 32):
        coarse = torch.rand(1, 3, cells, 2 * cells, generator=generator)
        fine = functional.interpolate(coarse, size=(2 * height, 2 * width), mode="bicubic")[0].permute(1, 2, 0).numpy()
        layers.append((fine * 128 / cells**0.5, torch.randn(2, generator=generator).numpy() * 1.5))
    grain = np.random.default_rng(seed)
    for frame in range(frames):
        total = np.zeros((height, width, 3), np.float32)
        for fine, (down, right) in layers:
            total += np.roll(fine, (int(down * frame), int(right * frame)), (0, 1))[:height, :width]
        yield (total + grain.normal(0, 3, total.shape)).clip(0, 255).astype(np.uint8)


def write_files(folder: Path, size: Size) -> list[Path]:
    """Ten seconds at 30 frames per second, encoded as a web preview is."""
    import av

    height, width = size.source
    folder.mkdir(parents=True)
    paths = []
    for number in range(DISTINCT):
        path = folder / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "23", "preset": "veryfast", "g": "48"}
            for pixels in moving_texture(number, 300, height, width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        paths.append(path)
    return [paths[number % DISTINCT] for number in range(DISTINCT * COPIES)]


def write_shards(folder: Path, files: list[Path], size: Size) -> None:
    """As data.prepare does: one clip a file, at the size and rate of training."""
    from data.records import Record, StoreSettings
    from data.shards import ShardWriter, shard_name, write_index
    from data.storing import store_record

    store = StoreSettings(frames=size.frames, height=size.side, width=size.side, fps=30 / size.stride, gop=8, crf=size.crf,
                          pixel_format=size.pixel_format, samples_per_shard=DISTINCT * COPIES // 4)  # fmt: skip
    made, infos = {}, []
    for shard in range(4):
        with ShardWriter(folder / "train" / shard_name(shard)) as writer:
            for number in range(shard * store.samples_per_shard, (shard + 1) * store.samples_per_shard):
                key = f"clip-{number:05d}"
                if files[number] not in made:
                    record = Record(key="placeholder", captions=("a moving texture",), path=str(files[number]))
                    made[files[number]] = next(store_record(record, store, clips_per_video=1, min_frames=1)).members
                members = made[files[number]]
                writer.add(key, {name: content.replace(b"placeholder", key.encode()) if name == "json" else content
                                 for name, content in members.items()})  # fmt: skip
            infos.append(writer.close())
    settings = {"store": {"frames": size.frames, "height": size.side, "width": size.side}}
    write_index(folder / "train", name="bench", split="train", settings=settings, shards=infos)


class LooseFiles:
    """LVDM's way, with the fastest reader at hand: PyAV that seeks, and one scaler a clip."""

    def __init__(self, files: list[Path], size: Size):
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files) * 1000

    def __getitem__(self, number: int) -> dict:
        import av
        import numpy as np
        import torch
        from av.video.reformatter import VideoReformatter

        from data.samples import resize_and_crop

        size, scaler, frames = self.size, VideoReformatter(), []
        span = (size.frames - 1) * size.stride + 1
        with av.open(str(self.files[number % len(self.files)])) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            start = int(np.random.default_rng(number).integers(stream.frames - span + 1))
            first = int(start / stream.average_rate / stream.time_base)
            container.seek(first, stream=stream)
            passed = 0
            for frame in container.decode(stream):
                if frame.pts < first:
                    continue
                if passed % size.stride == 0:
                    frames.append(scaler.reformat(frame, format="rgb24", threads=1).to_ndarray())
                passed += 1
                if passed >= span:
                    break
        clip = resize_and_crop(np.stack(frames), size.side, size.side)
        return {"video": torch.from_numpy(np.ascontiguousarray(clip)).permute(3, 0, 1, 2), "caption": "a texture"}


def loose_files(files: list[Path], shards: Path, size: Size, workers: int) -> Iterator[int]:
    from torch.utils.data import DataLoader

    for batch in DataLoader(
        LooseFiles(files, size), BATCH, num_workers=workers, prefetch_factor=AHEAD if workers else None
    ):
        yield len(batch["caption"])


def stock_video(key: str, content: bytes) -> object:
    """webdataset's own handler; torchvision 0.26 and newer have lost the function that it calls."""
    import torchvision.io
    import webdataset

    if hasattr(torchvision.io, "read_video"):
        return webdataset.torch_video(key, content)
    if not key.endswith(".mp4"):
        return None
    import av
    import numpy as np
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file.mp4")
        with open(path, "wb") as file:
            file.write(content)
        with av.open(path) as container:
            frames = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
    return torch.as_tensor(np.stack(frames)), torch.empty(0), {}


def our_video(key: str, content: bytes) -> object:
    import torch

    from data.plain_mp4 import decode_stored

    return (torch.from_numpy(decode_stored(content, range(_frames), "pyav")),) if key.endswith(".mp4") else None


_frames = 0  # of a clip: webdataset's handlers are told nothing but the bytes


def webdataset_with(handler: Callable, files: list[Path], shards: Path, size: Size, workers: int) -> Iterator[int]:
    import webdataset
    from torch.utils.data import DataLoader

    global _frames  # noqa: PLW0603
    _frames = size.frames
    urls = [str(path) for path in sorted((shards / "train").glob("*.tar"))]
    stream = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(BATCH * 4).decode(handler).repeat()
    stream = stream.map(_webdataset_sample).batched(BATCH)
    for batch in DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=AHEAD if workers else None):
        yield len(batch[1])


def _webdataset_sample(sample: dict) -> tuple:
    return sample["mp4"][0].permute(3, 0, 1, 2), sample["json"]["caption"], sample["__key__"]


def our_loader(files: list[Path], shards: Path, size: Size, workers: int) -> Iterator[int]:
    from data.batches import BatchReader
    from data.loader import VideoLoader
    from data.plain_mp4 import decode_stored
    from data.plan import ShardPlan
    from data.quarantine import Quarantine
    from data.reader import ShardReader
    from data.samples import ClipReader, ClipSettings
    from data.shards import read_index

    index = read_index(shards / "train")
    clip = ClipSettings(frames=size.frames, frame_stride=1, height=size.side, width=size.side)
    reader = BatchReader(
        plan=ShardPlan(counts=[info.samples for info in index.shards], seed=0, shuffle_window=4096, lanes=None),
        shards=ShardReader(index=index, cache=None, max_open=64, max_tables=64),
        clips=ClipReader(clip=clip, seed=0, extras=(), decoder=functools.partial(decode_stored, backend="pyav")),
        sample_timeout=30.0,
    )
    quarantine = Quarantine(path=None, fingerprint=index.fingerprint, max_broken=0.0)
    loader = VideoLoader(reader=reader, quarantine=quarantine, batch_size=BATCH, rank=0, world_size=1, num_workers=workers,
                         prefetch=AHEAD, resume_with_other_data=False)  # fmt: skip
    for batch in loader:
        yield len(batch["caption"])


CONTENDERS = {
    "ours": our_loader,
    "webdataset, our decoder": functools.partial(webdataset_with, our_video),
    "webdataset, stock decoder": functools.partial(webdataset_with, stock_video),
    "loose files, LVDM's way": loose_files,
}


def speed(batches: Iterator[int], seconds: float) -> float:
    """Clips per second once the workers run: the batches that were read ahead meanwhile are not counted."""
    for _ in itertools.repeat(None, 2 + 2 * AHEAD):
        next(batches)
    begun, clips = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds or clips < 4 * BATCH:
        clips += next(batches)
    return clips / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring, for each contender and round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="keep the files here instead of a temporary folder")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print("| clips | " + " | ".join(f"{name}, clips/s" for name in CONTENDERS) + " | ours / each |")
    print("| --- |" + " --- |" * (len(CONTENDERS) + 1))
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            folder = Path(arguments.folder or temporary) / f"{size.side}x{size.frames}"
            if not folder.exists():
                files = write_files(folder / "files", size)
                write_shards(folder / "shards", files, size)
            files = [folder / "files" / f"{number % DISTINCT}.mp4" for number in range(DISTINCT * COPIES)]
            found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            for _ in range(arguments.rounds):
                for name, contender in CONTENDERS.items():
                    batches = contender(files, folder / "shards", size, arguments.workers)
                    found[name].append(speed(batches, arguments.seconds))
                    batches.close()
            speeds = {name: statistics.median(values) for name, values in found.items()}
            ratios = [f"{speeds['ours'] / speed_:.2f}" for name, speed_ in speeds.items() if name != "ours"]
            row = [size.name, *(f"{speed_:.1f}" for speed_ in speeds.values()), " / ".join(ratios)]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
