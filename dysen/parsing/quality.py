"""How well a parser does where the truth is known: objects found, identities kept, relations and actions right.

Everything is a count, so that shards add up; `report` makes shares of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dysen.action_plan import Triplet
from dysen.parsing.frames import iou
from dysen.parsing.merging import Parsed
from dysen.parsing.tracking import assign
from vdm.bounds import Fraction

INVERSE = {"right of": "left of", "below": "above", "behind": "in front of"}
SYMMETRIC = ("overlapping", "near")


@dataclass(frozen=True)
class Quality:
    """Counts for one clip.

    Args:
        overlap: intersection over union from which a box is the box of an object.
        same_as: words of the truth for what the parser calls otherwise.
    """

    overlap: Fraction
    same_as: Mapping[str, str]

    def count(self, parsed: Parsed, truth: Parsed) -> Counter[str]:
        """Objects by frame and box; relations and actions by tick, between the objects that were found."""
        counts: Counter[str] = Counter({"clips": 1})
        meetings: Counter[tuple[str, str]] = Counter()
        last: dict[str, str] = {}
        for frame in range(len(next(iter(truth.boxes.values()), ()))):
            wanted = {name: found[frame] for name, found in truth.boxes.items() if found[frame] is not None}
            given = {name: found[frame] for name, found in parsed.boxes.items() if found[frame] is not None}
            counts.update({"objects true": len(wanted), "objects found": len(given)})
            shared = np.array([[iou(a, b) for b in given.values()] for a in wanted.values()])
            for i, j in assign(1 - shared.reshape(len(wanted), len(given))):
                if shared[i, j] < self.overlap:
                    continue
                true, found = list(wanted)[i], list(given)[j]
                counts["objects right"] += 1
                counts["overlap of the right, in thousandths"] += round(1000 * shared[i, j])
                counts["identity switches"] += last.get(true, found) != found
                last[true] = found
                meetings[true, found] += 1
        counts["things true"] += len(truth.boxes)
        counts["things found"] += len(parsed.boxes)
        names = _who_is_who(meetings)
        counts["things right"] += len(names)
        self._count_triplets(counts, names, parsed, truth)
        return counts

    def _count_triplets(self, counts: Counter[str], names: dict[str, str], parsed: Parsed, truth: Parsed) -> None:
        assert len(parsed.dsg) == len(truth.dsg), "both have the same ticks"
        for given, wanted in zip(parsed.dsg, truth.dsg, strict=True):
            for kind in ("actions", "relations"):
                right = {self._plain(t, None) for t in getattr(wanted, kind)}
                said = {self._plain(t, names) for t in getattr(given, kind)}
                for word, triplets in (("true", right), ("found", said), ("right", right & said)):
                    for _, predicate, _ in triplets:
                        counts[f"{kind} {word}: {predicate}"] += 1
            attributes = {entry.name: set(entry.attributes) for entry in wanted.objects}
            for entry in given.objects:
                if entry.name in names:
                    counts["attributes found"] += len(entry.attributes)
                    counts["attributes right"] += len(set(entry.attributes) & attributes.get(names[entry.name], set()))

    def _plain(self, triplet: Triplet, names: Mapping[str, str] | None) -> tuple[str, str, str | None]:
        """One wording of what can be said in two. `names` None: of the truth; else who is not in it is nobody's namesake."""
        subject, target = triplet.subject, triplet.object
        if names is not None:
            subject = names.get(subject, f"not true: {subject}")
            target = None if target is None else names.get(target, f"not true: {target}")
        predicate = self.same_as.get(triplet.predicate, triplet.predicate)
        if predicate in INVERSE:
            return str(target), INVERSE[predicate], subject
        if predicate in SYMMETRIC and target is not None:
            subject, target = sorted((subject, target))
        return subject, predicate, target


def _who_is_who(meetings: Counter[tuple[str, str]]) -> dict[str, str]:
    """The true name of each found object: pairs that share the most frames, one to one."""
    true, found = (list(dict.fromkeys(pair[i] for pair in meetings)) for i in (0, 1))
    shared = np.array([[meetings[a, b] for b in found] for a in true], dtype=float).reshape(len(true), len(found))
    return {found[j]: true[i] for i, j in assign(-shared) if shared[i, j] > 0}


def report(counts: Mapping[str, int]) -> dict[str, Any]:
    """Shares and F1 scores of counts."""
    found = _scores(counts["objects right"], counts["objects found"], counts["objects true"])
    things = _scores(counts["things right"], counts["things found"], counts["things true"])
    right = max(counts["objects right"], 1)
    return {
        "clips": counts["clips"],
        "objects": found | {"overlap": round(counts["overlap of the right, in thousandths"] / right / 1000, 4)},
        "things": things,
        "identity_switches": counts["identity switches"],
        "identity_switches_per_clip": round(counts["identity switches"] / max(counts["clips"], 1), 4),
        "attributes_right": _share(counts["attributes right"], counts["attributes found"]),
        **{kind: _by_predicate(counts, kind) for kind in ("relations", "actions")},
    }


def _by_predicate(counts: Mapping[str, int], kind: str) -> dict[str, Any]:
    """All together, those that the parser and the truth both have a word for, and each."""
    table: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("right", "found", "true"), 0))
    for key, count in counts.items():
        head, _, predicate = key.partition(": ")
        if predicate and head.startswith(f"{kind} "):
            table[predicate][head.removeprefix(f"{kind} ")] = count
    shared = [row for row in table.values() if row["found"] and row["true"]]
    every = {
        predicate: _scores(**row) | {"true": row["true"], "found": row["found"]}
        for predicate, row in sorted(table.items())
    }
    return {"all": _scores(**_sum(table.values())), "in_both_vocabularies": _scores(**_sum(shared)), "each": every}


def _sum(rows: Iterable[dict[str, int]]) -> dict[str, int]:
    total = dict.fromkeys(("right", "found", "true"), 0)
    for row in rows:
        total = {name: total[name] + row[name] for name in total}
    return total


def _scores(right: int, found: int, true: int) -> dict[str, float | None]:
    return {
        "precision": _share(right, found),
        "recall": _share(right, true),
        "f1": _share(2 * right, found + true),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def printed(content: Mapping[str, Any]) -> list[str]:
    """The report in a few lines."""
    objects, things = content["objects"], content["things"]
    lines = [
        f"objects in frames: precision {_number(objects['precision'])}, recall {_number(objects['recall'])}, "
        f"overlap {_number(objects['overlap'])}",
        f"things in clips: precision {_number(things['precision'])}, recall {_number(things['recall'])}; "
        f"identity switches {content['identity_switches']} in {content['clips']} clips; "
        f"attributes right {_number(content['attributes_right'])}",
    ]
    for kind in ("relations", "actions"):
        part = content[kind]
        lines.append(f"{kind}: F1 {_number(part['all']['f1'])}, where both have the word "
                     f"{_number(part['in_both_vocabularies']['f1'])}")  # fmt: skip
        lines += [
            f"  {name:20s} precision {_number(row['precision'])}, recall {_number(row['recall'])}, "
            f"{row['true']:,} true, {row['found']:,} found"
            for name, row in part["each"].items()
        ]
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
