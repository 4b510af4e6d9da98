"""Checkpoints on disk: a folder that is complete or absent, weights as safetensors, no pickle that could run code.

step-00001000/  manifest.json            sizes and SHA-256 of all other files, written last
                weights/<network>.safetensors   ema/<network>.safetensors   trainer.pt (optimizer, loops, data position)
                weights/adapter.json            where these are only what was trained: see vdm.adapters
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vdm import adapters
from vdm.errors import RunError

FORMAT = 1
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|old)-\d+")


def save(folder: Path, checkpoint: Mapping[str, Any], *, step: int) -> None:
    """Write a checkpoint; a crash at any point leaves the previous content of `folder`, or nothing."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        rest = dict(checkpoint)
        for kind, tensors in (("weights", rest.pop("state_dict")), ("ema", rest.pop("ema", {}))):
            for network, part in _by_network(tensors).items():
                (partial / kind).mkdir(exist_ok=True)
                save_file(part, partial / kind / f"{network}.safetensors")
        adapter = rest.pop("adapter", None)
        if adapter is not None:
            (partial / adapters.FILE).write_text(json.dumps(adapter, indent=2) + "\n", encoding="utf-8")
        try:
            torch.save(rest, partial / "trainer.pt")
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(str(error).splitlines()[0]) from error
        files = {str(p.relative_to(partial)): _fact(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        manifest = {"format": FORMAT, "step": step, "files": files}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for path in partial.rglob("*"):
            _sync(path)
        _move_into_place(partial, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        remedy = "free space or set paths.output_root to another disk, then run the same command again: it resumes"
        raise RunError("the checkpoint could not be written", got=f"{folder}: {error}", remedy=remedy) from error


def load(folder: Path) -> dict[str, Any]:
    """Read a checkpoint back, refusing one that is not byte for byte what was written."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, fact in manifest["files"].items():
        if not (folder / name).is_file() or _fact(folder / name) != fact:
            raise _damaged(folder, f"{name} is missing or differs from the manifest")
    try:
        checkpoint = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise _damaged(folder, f"trainer.pt: {str(error).splitlines()[0]}") from None
    checkpoint["state_dict"] = _joined(folder, "weights")
    checkpoint["ema"] = _joined(folder, "ema")
    return checkpoint | ({"adapter": _adapter(folder)} if adapters.FILE in manifest["files"] else {})


def damage(folder: Path) -> str | None:
    """Why a checkpoint is not what was written; None where it is, byte for byte."""
    try:
        for name, fact in read_manifest(folder)["files"].items():
            if not (folder / name).is_file() or _fact(folder / name) != fact:
                return f"{name} is missing or differs from the manifest"
    except (RunError, OSError, KeyError, TypeError, AttributeError) as error:
        return str(getattr(error, "got", None) or error)
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"manifest.json: {error}") from None
    if manifest.get("format") != FORMAT:
        raise RunError("this checkpoint has another format", got=manifest.get("format"), allowed=FORMAT)
    return manifest


def network_weights(folder: Path, network: str, *, averaged: bool = True) -> dict[str, Tensor]:
    """The tensors of one network of a checkpoint: its moving average where there is one, completed by its buffers.

    Where a checkpoint is an adapter, merged into the weights of its parent.
    """
    manifest = read_manifest(folder)["files"]
    names = [f"weights/{network}.safetensors", *([f"ema/{network}.safetensors"] if averaged else [])]
    if adapters.FILE not in manifest:
        return _tensors(folder, manifest, [name for name in names if name == names[0] or name in manifest])
    own, content = _tensors(folder, manifest, [name for name in names if name in manifest]), _adapter(folder)
    parent = parent_of(folder)
    absent = own and not holds(parent, network)  # a network that the parent has nothing of, and this run has added to
    whole = {} if absent else network_weights(parent, network)
    return adapters.merged(whole, own, scale=content["scale"], source=str(folder))


def parent_of(folder: Path) -> Path | None:
    """The checkpoint that an adapter was trained beside, with the very weights that it had then. None of a whole one."""
    if adapters.FILE not in read_manifest(folder)["files"]:
        return None
    content = _adapter(folder)
    parent = adapters.parent_folder(folder, content)
    adapters.check_parent(folder, content, parent, read_manifest(parent)["files"])
    return parent


def holds(folder: Path, network: str) -> bool:
    """Whether there are weights of this network, in the checkpoint or in what it is an adapter of."""
    files = read_manifest(folder)["files"]
    if f"weights/{network}.safetensors" in files:
        return True
    return adapters.FILE in files and holds(parent_of(folder), network)


def identity(folder: Path, network: str) -> str:
    """SHA-256 of the file that says which weights a network had when training ended."""
    files = read_manifest(folder)["files"]
    return files.get(f"weights/{network}.safetensors", files.get(adapters.FILE, {})).get("sha256", "")


def _adapter(folder: Path) -> dict[str, Any]:
    if _fact(folder / adapters.FILE) != read_manifest(folder)["files"][adapters.FILE]:
        raise _damaged(folder, f"{adapters.FILE} differs from the manifest")
    content = json.loads((folder / adapters.FILE).read_text(encoding="utf-8"))
    if content.get("format") != adapters.FORMAT:
        raise RunError("this adapter has another format", got=content.get("format"), allowed=adapters.FORMAT)
    return content


def _tensors(folder: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in names:
        if name not in manifest:
            networks = [Path(n).stem for n in manifest if n.startswith("weights/")]
            network = Path(name).stem
            raise RunError("the checkpoint has no such network", got=network, allowed=networks, remedy=str(folder))
        if _fact(folder / name) != manifest[name]:
            raise _damaged(folder, f"{name} differs from the manifest")
        tensors |= _read(folder / name)
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes: equal for the same weights, from whatever file they came."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor when weights were put into a network."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} matched, {len(self.missing)} missing, {len(self.unexpected)} unexpected"]
        for kind in ("missing", "unexpected", "misshapen"):
            names = getattr(self, kind)
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            if names:
                lines.append(f"  {kind}: {', '.join(names[:8])}{more}")
        return "\n".join(lines)


def load_weights(
    network: nn.Module, tensors: Mapping[str, Tensor], *, source: str, allow_missing: Iterable[str] = ()
) -> LoadReport:
    """Strict: every tensor must find its place. `allow_missing` names, as prefixes, what may stay as it was initialised."""
    own = network.state_dict()
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    wrong = {entry.split(" ")[0] for entry in misshapen}
    matched = sorted(own.keys() & tensors.keys() - wrong)
    report = LoadReport(
        matched, sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys()), sorted(misshapen)
    )
    allowed = tuple(allow_missing)
    forbidden = [name for name in report.missing if not (allowed and name.startswith(allowed))]
    if forbidden or report.unexpected or report.misshapen:
        remedy = "compose the network with the settings it was trained with (config.yaml beside its checkpoints)"
        raise RunError("these weights are of another network", key=source, got=str(report), remedy=remedy)
    network.load_state_dict({name: tensors[name] for name in matched}, strict=not report.missing)
    return report


def recover(folder: Path) -> None:
    """Clear what a crash left behind, after putting back a checkpoint that was just being replaced."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if match := LEFTOVER.fullmatch(path.name):
            if match["kind"] == "old" and not (folder / match["name"]).exists():
                path.rename(folder / match["name"])
            else:
                shutil.rmtree(path, ignore_errors=True)


def _move_into_place(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _by_network(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        network, _, rest = name.partition(".")
        parts.setdefault(network, {})[rest or network] = tensor.detach().cpu().contiguous()
    return parts


def _joined(folder: Path, kind: str) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted((folder / kind).glob("*.safetensors")):
        part = _read(path)
        tensors |= {path.stem if name == path.stem else f"{path.stem}.{name}": tensor for name, tensor in part.items()}
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path.parent.parent, f"{path.name}: {error}") from None


def _fact(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(folder: Path, reason: str) -> RunError:
    remedy = f"delete {folder.name} to go on from the checkpoint before it"
    return RunError("this checkpoint is damaged", got=f"{folder}: {reason}", remedy=remedy)
