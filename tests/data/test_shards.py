"""The shard format: what is written can be read by others, what others write can be read, and nothing unsafe passes."""

import io
import json
import os
import struct
import tarfile

import fsspec
import pytest

from data.records import KEY_LENGTH
from data.shards import (
    ShardWriter,
    member_table,
    open_shard,
    read_index,
    read_member,
    shard_name,
    verify_shards,
    write_index,
)
from vdm.errors import DataError


def write_shard(folder, number=0, keys=("a-0", "b_1"), name="demo", split="train"):
    with ShardWriter(folder / shard_name(number)) as writer:
        for key in keys:
            writer.add(key, {"mp4": key.encode() * 300, "json": b"{}"})
        return writer.close()


@pytest.fixture
def folder(tmp_path):
    infos = [write_shard(tmp_path, 0), write_shard(tmp_path, 1, ("c", "d", "e"))]
    write_index(tmp_path, name="demo", split="train", settings={"size": 3}, shards=infos)
    return tmp_path


def made(path, *members, format=tarfile.USTAR_FORMAT, **fields):
    """A tar from (name, content) or (name, content, type) or ready TarInfo."""
    with tarfile.open(path, "w", format=format) as tar:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            content = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(content)
            info.type = member[2] if not isinstance(member, tarfile.TarInfo) and len(member) > 2 else info.type
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def contents(path):
    with open_shard(path) as file:
        return {
            sample.key: {name: read_member(file, *span) for name, span in sample.members.items()}
            for sample in member_table(file)
        }


def test_what_is_written_is_what_tarfile_and_we_read(tmp_path):
    info = write_shard(tmp_path)
    path = str(tmp_path / info.file)
    expected = {"a-0": {"mp4": b"a-0" * 300, "json": b"{}"}, "b_1": {"mp4": b"b_1" * 300, "json": b"{}"}}
    assert contents(path) == expected
    with tarfile.open(path) as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == {
            f"{key}.{extension}": content for key, members in expected.items() for extension, content in members.items()
        }
    assert info.samples == 2
    assert info.bytes == os.path.getsize(path)


def test_a_shard_is_a_function_of_its_samples(tmp_path):
    assert write_shard(tmp_path, 0).sha256 == write_shard(tmp_path, 1).sha256
    assert (tmp_path / shard_name(0)).read_bytes() == (tmp_path / shard_name(1)).read_bytes()


def test_webdataset_reads_our_shards_equal(folder):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(folder / shard_name(n)) for n in range(2)]
    theirs = {s["__key__"]: {k: v for k, v in s.items() if not k.startswith("_")} for s in
              webdataset.WebDataset(urls, shardshuffle=False)}  # fmt: skip
    assert theirs == contents(urls[0]) | contents(urls[1])


def test_we_read_webdatasets_shards_equal(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    path = str(tmp_path / "x.tar")
    long_key = "deep/" * 40 + "k" * 60
    with webdataset.TarWriter(path) as writer:
        writer.write({"__key__": "plain", "mp4": b"123", "seg.npz": b"45"})
        writer.write({"__key__": long_key, "mp4": b"6"})
    assert contents(path) == {"plain": {"mp4": b"123", "seg.npz": b"45"}, long_key: {"mp4": b"6"}}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, format):
    long_name = "folder/" * 30 + "x" * 120 + ".mp4"
    members = [("./a.MP4", b"1"), (long_name, b"22"), ("äöü.mp4", b"333"), ("no_extension", b"4"), (".hidden.mp4", b"")]
    path = made(tmp_path / "x.tar", *members, format=format)
    table = {sample.key: sample.members for sample in member_table(path)}
    assert list(table) == ["a", long_name[:-4], "äöü"]
    with tarfile.open(path) as tar:
        assert table["äöü"]["mp4"] == (tar.getmember("äöü.mp4").offset_data, 3)


def test_directories_and_global_headers_are_passed_over(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by hand"}) as tar:
        tar.addfile(_info("videos/", tarfile.DIRTYPE))
        tar.addfile(_info("videos/a.mp4", size=2), io.BytesIO(b"hi"))
    assert contents(str(path)) == {"videos/a": {"mp4": b"hi"}}


def test_a_size_beyond_octal(tmp_path):
    header = bytearray(_info("a.mp4", size=600).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (600).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + b"y" * 600 + bytes(424) + bytes(1024))
    assert contents(str(path)) == {"a": {"mp4": b"y" * 600}}


def _info(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


ATTACKS = {
    "absolute": _info("/etc/passwd.mp4"),
    "parent": _info("../a.mp4"),
    "inner parent": _info("x/../../a.mp4"),
    "hidden parent": _info("./../a.mp4"),
    "backslash parent": _info("x\\..\\a.mp4"),
    "drive": _info("C:/a.mp4"),
    "drive with backslash": _info("C:\\a.mp4"),
    "symbolic link": _info("a.mp4", tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": _info("a.mp4", tarfile.LNKTYPE, link="b.mp4"),
    "character device": _info("a.mp4", tarfile.CHRTYPE),
    "block device": _info("a.mp4", tarfile.BLKTYPE),
    "fifo": _info("a.mp4", tarfile.FIFOTYPE),
    "sparse": _info("a.mp4", tarfile.GNUTYPE_SPARSE),
    "unknown type": _info("a.mp4", b"Z"),
    "newline": _info("a\nb.mp4"),
    "escape": _info("a\x1b[2Jb.mp4"),
    "not utf-8": _info("a\udcff.mp4"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_unsafe_members_are_refused(tmp_path, attack):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(_info("good.mp4"))
        tar.addfile(ATTACKS[attack])
    with pytest.raises(DataError, match=r"unsafe tar member[^$]*x\.tar at offset 512") as error:
        member_table(str(path))
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("name", ["../" * 60 + "a.mp4", "/" + "a" * 200 + ".mp4", "x" * 200 + "\n.mp4", "a\0b.mp4"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_unsafe_names_in_extended_headers_are_refused(tmp_path, name, format):
    info = _info(name)
    if "\0" in name:
        if format == tarfile.GNU_FORMAT:
            pytest.skip("a GNU name ends at the first NUL")
        info = _info("a.mp4")
        info.pax_headers = {"path": name}
    with pytest.raises(DataError, match="unsafe tar member"):
        member_table(made(tmp_path / "x.tar", info, format=format))


def test_doubled_keys_and_members_are_refused(tmp_path):
    twice = made(tmp_path / "x.tar", ("a.mp4", b"1"), ("b.mp4", b"2"), ("a.json", b"3"))
    with pytest.raises(DataError, match="the same key twice"):
        member_table(twice)
    with pytest.raises(DataError, match="the same member twice"):
        member_table(made(tmp_path / "y.tar", ("a.mp4", b"1"), ("a.mp4", b"2")))


def test_every_truncation_is_noticed(tmp_path):
    info = write_shard(tmp_path)
    whole = (tmp_path / info.file).read_bytes()
    cut = tmp_path / "cut.tar"
    for size in [0, 1, 511, 512, 600, 1023, *range(1024, len(whole) - 1024, 512), len(whole) - 1024]:
        cut.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"truncated[^$]*cut\.tar at offset \d+"):
            member_table(str(cut))
    cut.write_bytes(whole[:-512])  # one zero block is an end too
    assert len(member_table(str(cut))) == 2


def test_damaged_headers_are_noticed(tmp_path):
    info = write_shard(tmp_path)
    whole = (tmp_path / info.file).read_bytes()
    broken = tmp_path / "broken.tar"
    for place in (0, 124, 130, 148, 156, 257, 400):
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0x21]) + whole[place + 1 :])
        with pytest.raises(DataError, match="damaged tar header"):
            member_table(str(broken))
    broken.write_bytes(b"\x1f\x8b" + os.urandom(2000))
    with pytest.raises(DataError, match="a compressed shard[^$]*decompress"):
        member_table(str(broken))
    broken.write_bytes(os.urandom(4096))
    with pytest.raises(DataError, match="damaged tar header"):
        member_table(str(broken))


def test_a_giant_extended_header_is_refused_unread(tmp_path):
    header = bytearray(_info("x", b"x", size=0).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % (1 << 32)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + bytes(2048))
    with pytest.raises(DataError, match="extended header is too long"):
        member_table(str(path))


@pytest.mark.parametrize(
    "record", [b"5 a=b\n" * 2, b"999 path=a\n", b"x path=a\n", b"0 path=a\n", b"8 noequal", b"-9 path=a\n"]
)
def test_damaged_pax_records_are_refused(tmp_path, record):
    header = _info("x", b"x", size=len(record)).tobuf(tarfile.USTAR_FORMAT)
    path = tmp_path / "x.tar"
    content = header + record + bytes(-len(record) % 512) + _info("a.mp4").tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        member_table(str(path))


def test_random_bytes_never_do_anything_but_refuse(tmp_path):
    import numpy as np

    info = write_shard(tmp_path)
    whole = np.frombuffer((tmp_path / info.file).read_bytes(), np.uint8)
    rng = np.random.default_rng([7])
    path = tmp_path / "fuzz.tar"
    for _ in range(300):
        changed = whole.copy()
        changed[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(changed.tobytes())
        try:
            for sample in member_table(str(path)):
                assert all(offset + size <= len(whole) for offset, size in sample.members.values())
        except DataError:
            pass


def test_the_writer_leaves_nothing_half_done(tmp_path):
    def stumble():
        with ShardWriter(tmp_path / "shard-000000.tar") as writer:
            writer.add("a", {"mp4": b"1"})
            assert not (tmp_path / "shard-000000.tar").exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stumble()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "a b", "ä", "a\n", "x" * (KEY_LENGTH + 1), None])
def test_the_writer_refuses_unusable_keys(tmp_path, key):
    with pytest.raises(DataError, match="unusable key"), ShardWriter(tmp_path / "s.tar") as writer:
        writer.add(key, {"mp4": b""})


def test_the_longest_key_fits(tmp_path):
    with ShardWriter(tmp_path / "s.tar") as writer:
        writer.add("x" * KEY_LENGTH, {"mp4": b"1", "json": b"2"})
        with pytest.raises(DataError, match="same key twice"):
            writer.add("x" * KEY_LENGTH, {"mp4": b"1"})
        writer.close()
    assert [sample.key for sample in member_table(str(tmp_path / "s.tar"))] == ["x" * KEY_LENGTH]


def test_the_index_round_trips_and_depends_on_settings_and_bytes(folder, tmp_path_factory):
    index = read_index(str(folder) + "/")
    assert (index.name, index.split, index.num_samples, index.settings) == ("demo", "train", 5, {"size": 3})
    assert [shard.samples for shard in index.shards] == [2, 3]
    assert index.path(1) == index.path(index.shards[1]) == f"{folder}/shard-000001.tar"
    verify_shards(index)
    other = tmp_path_factory.mktemp("other")
    infos = [write_shard(other, 0), write_shard(other, 1, ("c", "d", "e"))]
    assert (
        write_index(other, name="demo", split="train", settings={"size": 3}, shards=infos).fingerprint
        == index.fingerprint
    )
    assert (
        write_index(other, name="demo", split="train", settings={"size": 4}, shards=infos).fingerprint
        != index.fingerprint
    )
    assert (
        write_index(other, name="demo", split="train", settings={"size": 3}, shards=infos[:1]).fingerprint
        != index.fingerprint
    )


def test_an_index_behind_a_url(folder):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/demo", recursive=True)
    try:
        index = read_index("memory://bucket/demo")
        assert index.fingerprint == read_index(folder).fingerprint
        verify_shards(index)
        assert contents(index.path(0)) == contents(str(folder / shard_name(0)))
        memory.rm("/bucket/demo/shard-000001.tar")
        with pytest.raises(DataError, match=r"shard-000001\.tar is missing"):
            read_index("memory://bucket/demo")
        with pytest.raises(DataError, match="cannot open a shard"):
            member_table("memory://bucket/demo/shard-000001.tar")
    finally:
        memory.rm("/bucket", recursive=True)


def test_missing_empty_and_unfinished_folders(folder, tmp_path):
    with pytest.raises(DataError, match="there is no shard folder[^$]*remedy.*data.prepare"):
        read_index(tmp_path / "nowhere")
    with pytest.raises(DataError, match="there is no shard folder"):
        read_index("memory://nowhere/at/all")
    with pytest.raises(DataError, match="cannot read the shard folder"):
        read_index("nosuchprotocol://x/y")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the shard folder is empty"):
        read_index(tmp_path / "empty")
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match=r"no index\.json[^$]*interrupted or refused"):
        read_index(folder)
    with pytest.raises(DataError, match="cannot read the shard folder"):
        read_index(folder / shard_name(0))


def _changed(folder, change):
    content = json.loads((folder / "index.json").read_text())
    change(content)
    (folder / "index.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "another format"),
        (lambda c: c.pop("format"), "another format"),
        (lambda c: c.update(num_samples=6), "contradicts itself"),
        (lambda c: c["settings"].update(size=4), "fingerprint"),
        (lambda c: c["shards"][0].update(sha256="0" * 64), "fingerprint"),
        (lambda c: c["shards"][0].update(file="../../x.tar"), "contradicts itself"),
        (lambda c: c["shards"][0].update(file="/etc/passwd"), "contradicts itself"),
        (lambda c: c["shards"][0].update(bytes="many"), "contradicts itself"),
        (lambda c: c["shards"][0].update(colour="red"), "contradicts itself"),
        (lambda c: c.update(shards=[]), "contradicts itself"),
        (lambda c: c.update(shards=None), "contradicts itself"),
        (lambda c: c["shards"].append(c["shards"][0]), "contradicts itself"),
        (lambda c: c.pop("settings"), "contradicts itself"),
    ],
)
def test_an_index_that_lies_is_refused(folder, change, message):
    _changed(folder, change)
    with pytest.raises(DataError, match=message):
        read_index(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000])
def test_an_unreadable_index_is_refused(folder, content):
    (folder / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read index\.json|another format"):
        read_index(folder)


def test_missing_and_cut_shards_are_noticed_at_once(folder):
    with open(folder / shard_name(1), "r+b") as file:
        file.truncate(1000)
    (folder / shard_name(0)).unlink()
    with pytest.raises(DataError, match=r"shard-000000\.tar is missing; shard-000001\.tar has 1000 bytes"):
        read_index(folder)


def test_verify_finds_a_single_bit(folder):
    with open(folder / shard_name(1), "r+b") as file:
        file.seek(700)
        byte = file.read(1)[0]
        file.seek(700)
        file.write(struct.pack("B", byte ^ 4))
    index = read_index(folder)  # sizes are right
    seen = []
    with pytest.raises(DataError, match=r"1 of 2 shards are broken[^$]*shard-000001\.tar: checksum"):
        verify_shards(index, on_shard=seen.append)
    assert [shard.file for shard in seen] == ["shard-000000.tar"]


def test_verify_finds_a_key_in_two_shards(tmp_path):
    infos = [write_shard(tmp_path, 0, ("a", "b")), write_shard(tmp_path, 1, ("c", "a"))]
    index = write_index(tmp_path, name="demo", split="train", settings={}, shards=infos)
    with pytest.raises(DataError, match="key a is in an earlier shard too"):
        verify_shards(index)
