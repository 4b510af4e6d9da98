"""The id of a protocol: a name to read, and a hash of everything that decides the numbers besides the run and the machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RULES = 1  # of the code itself: raised when the same settings begin to give other numbers
OF_THE_MACHINE = ("batch_size", "origin", "licence", "num_workers", "timeout")
OF_A_NETWORK = ("file", "weights", "folder")  # where its weights lie
ABSENT = "(nothing)"


def identity(name: str, decided: Mapping[str, Any]) -> str:
    """Such as ucf101_zero_shot-1f0c2a9b."""
    text = json.dumps({"rules": RULES, **decided}, sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def settings_of_metric(node: Any) -> Any:
    """What of a metric's settings decides its numbers. A network is its hash, wherever its file lies."""
    if isinstance(node, Mapping):
        kept = {name: settings_of_metric(value) for name, value in node.items() if name not in OF_THE_MACHINE}
        place = next((Path(str(node[name])) for name in OF_A_NETWORK if node.get(name) is not None), None)
        if "sha256" in node and place is not None:
            kept |= {name: Path(str(node[name])).name for name in OF_A_NETWORK if node.get(name) is not None}
            kept["sha256"] = node["sha256"] or _of_file(place)
        return kept
    if isinstance(node, list | tuple):
        return [settings_of_metric(value) for value in node]
    return node


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], key: str = "") -> dict[str, tuple[Any, Any]]:
    """By key in dots, the two values where they are not equal. What one side lacks altogether is one difference."""
    found = {}
    for name in sorted({*ours, *theirs}):
        a, b, place = ours.get(name, ABSENT), theirs.get(name, ABSENT), f"{key}.{name}" if key else str(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, place)
        elif a != b:
            found[place] = a, b
    return found


def _of_file(place: Path) -> str | None:
    from vdm.evaluation.networks import digest  # late: comparing needs no torch

    path = place if place.is_file() else place / "model.safetensors"
    return digest(path) if path.is_file() else None
