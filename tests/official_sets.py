"""Real little videos, and the command that prepares them, for the tests of datasets in their official layouts."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from data.shards import member_table, open_shard, read_index, read_member
from vdm.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[1]
CODECS = {"avi": "mpeg4", "mp4": "libx264", "matroska": "libx264", "webm": "libvpx"}
SETTINGS = ["data.store.height=24", "data.store.width=24", "data.store.samples_per_shard=4", "num_workers=0"]


@cache
def video(container="mp4", seconds=2.0, fps=10, seed=0):
    """A clip of which every frame is brighter than the one before, as an encoder of that container writes it."""
    buffer = BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(CODECS[container], rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 48, 36, "yuv420p", 1
        stream.options = {"bf": "2"} if container == "avi" else {"g": "10"}
        count = round(seconds * fps)
        for n in range(count):
            picture = np.full((36, 48, 3), 40 + 160 * n // count, np.uint8)
            picture[:, : 8 * (seed + 1), 0] = 0
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


@cache
def packed_avi(frames=21, seed=0):
    """The same as DivX writes it: a B-frame in one packet with the frame after it, and a frame that says nothing to make up."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.thread_count = 48, 36, "yuv420p", 1
    encoder.time_base, encoder.framerate, encoder.max_b_frames = Fraction(1, 25), Fraction(25), 1
    encoder.options = {"b_strategy": "0"}
    units = []
    for n in range(frames):
        picture = np.full((36, 48, 3), 40 + 160 * n // frames, np.uint8)
        picture[:, : 8 * (seed + 1), 0] = 0
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = n, Fraction(1, 25)
        units += map(bytes, encoder.encode(frame))
    units += map(bytes, encoder.encode(None))
    start = b"\0\0\1"
    is_b = [unit[unit.find(start + b"\xb6") + 4] >> 6 == 2 for unit in units]
    assert any(is_b), "an encoder without B-frames shows nothing"
    packets = []
    for n, unit in enumerate(units):
        if is_b[n]:
            packets[-1] += unit
            packets.append(start + b"\xb6\x50\x4f")  # coded: no
        else:
            packets.append(unit)
    name = start + b"\xb2"  # who wrote it: "p" for packed, instead of the encoder's own
    first, _, rest = packets[0].partition(name)
    packets[0] = first + name + b"DivX503b1393p" + rest[rest.find(start) :]
    buffer = BytesIO()
    with av.open(buffer, "w", format="avi") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 36, "yuv420p"
        stream.codec_context.codec_tag = "XVID"
        for n, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, n, n, Fraction(1, 25)
            packet.is_keyframe = n == 0
            file.mux(packet)
    return buffer.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def prepare(*overrides):
    """`python -m data.prepare` as a user types it."""
    command = [sys.executable, "-m", "data.prepare", *overrides, *SETTINGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)


def samples(folder):
    """Key -> json of every stored sample."""
    index, found = read_index(folder), {}
    for info in index.shards:
        with open_shard(index.path(info)) as file:
            for sample in member_table(file):
                found[sample.key] = json.loads(read_member(file, *sample.members["json"]))
    return found


def rejected(folder):
    """Item -> reason."""
    lines = map(json.loads, (Path(folder) / "rejected.jsonl").read_text().splitlines())
    return {line["item"]: line["reason"] for line in lines}


def loaded(source, split):
    """Key -> record, and item -> reason."""
    records, reasons = {}, {}
    for item in source.items(split):
        try:
            record = source.load(item)
        except DataError as error:
            reasons[str(item)] = error.what
            continue
        assert record.key not in records
        records[record.key] = record
    return records, reasons
