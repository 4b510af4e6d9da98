"""UCF-101 (Soomro et al., 2012): one folder of avi files a class, three official splits, and a prompt for each class.

The lists and the archive do not spell everything alike (class HandstandPushups has files v_HandStandPushups_...), and
copies that were repacked spell it otherwise again: names are compared without regard to capitals.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.records import Record
from data.tables import checksum, need_file
from data.video_files import say_missing, videos_below
from vdm.bounds import PositiveInt
from vdm.errors import ConfigError, DataError

PROMPTS = Path(__file__).with_name("ucf101_prompts.txt")
FOLDS = (1, 2, 3)
_REST = "*"  # the class of the lines for all that have none of their own
_LISTS = (
    "unpack UCF101TrainTestSplits-RecognitionTask.zip (classInd.txt, trainlist01.txt, testlist01.txt, ...) and say where it "
    "is: data.source.lists=<folder>"
)
_VIDEOS = "unpack UCF101.rar (<class>/v_<class>_g01_c01.avi) and say where it is: data.source.videos=<folder>"
_LINE = re.compile(r"(?:(?P<folder>[^/]+)/)?(?P<stem>[^/]+)\.avi(?:\s+(?P<label>\d+))?", re.IGNORECASE)
_GROUP = re.compile(r"_g(\d+)_c\d+$")


@dataclass(frozen=True, slots=True)
class UcfVideo:
    """One line of a list; `problem` says why it cannot be used."""

    stem: str
    name: str  # of its class, as classInd.txt spells it
    number: int  # of its class, from 0
    path: str  # "": there is no such file
    problem: str

    def __str__(self) -> str:
        return self.stem


class Ucf101Source:
    """The splits train and test of one official fold, and val where groups of train are held out for it.

    Args:
        videos: folder with the avi files, in folders of their classes.
        lists: folder with classInd.txt and the lists of the folds.
        fold: 1, 2 or 3; "all": train has every video of both lists, and there is no test.
        val_groups: groups (25 in each class, each one person or place) of train that become val. A group is never in two
            splits. Without any there is no val.
        prompts: file of lines "<class>: <prompt>"; None: `ucf101_prompts.txt`.
    """

    def __init__(
        self,
        *,
        videos: str,
        lists: str,
        fold: PositiveInt | Literal["all"],
        val_groups: Sequence[int],
        prompts: str | None,
    ):
        if fold != "all" and (fold not in FOLDS or isinstance(fold, bool)):
            raise ConfigError("no such official split", key="data.source.fold", got=fold, allowed=(*FOLDS, "all"))
        groups = tuple(val_groups)
        if any(not isinstance(group, int) or isinstance(group, bool) or group < 1 for group in groups):
            allowed = "a list of numbers from 1 to 25"
            raise ConfigError("no group of UCF-101", key="data.source.val_groups", got=list(groups), allowed=allowed)
        self.videos, self.lists, self.fold, self.val_groups = str(videos), str(lists), fold, groups
        self.prompts = None if prompts is None else str(prompts)
        self._captions: dict[str, tuple[str, ...]] | None = None

    def splits(self) -> tuple[str, ...]:
        val = ("val",) if self.val_groups else ()
        return ("train", *val) if self.fold == "all" else ("train", *val, "test")

    def items(self, split: str) -> Sequence[UcfVideo]:
        classes = class_numbers(self._list("classInd.txt"))
        missing = [name for name in classes if not self._prompts_of(name)]
        if missing:
            remedy = f"give each class a line, or one for all the rest: {_REST}: a video of {{name}}"
            raise DataError("classes without a prompt", key="data.source.prompts", got=", ".join(missing[:10]),
                            remedy=remedy)  # fmt: skip
        files = videos_below(self.videos, what="UCF-101", remedy=_VIDEOS)
        paths = {stem.casefold(): files[stem] for stem in sorted(files)}
        lines = [line for name in self._files(split) for line in _lines(self._list(name))]
        seen: set[str] = set()
        videos = [_video(line, classes, paths, seen) for line in lines]
        if split != "test" and self.val_groups:
            videos = [v for v in videos if (_group(v.stem) in self.val_groups) == (split == "val")]
        if not videos:
            names = ", ".join(self._files(split))
            raise DataError(f"no videos for {split!r}", key="data.source.lists", got=names, remedy=_LISTS)
        say_missing(
            (v.path for v in videos if not v.problem), what=f"UCF-101 {split}", folder=self.videos, remedy=_VIDEOS
        )
        return videos

    def load(self, item: UcfVideo) -> Record:
        if item.problem:
            raise DataError(item.problem.split(":")[0], got=item.problem.partition(": ")[2])
        if not item.path:
            raise DataError("no video file", got=os.path.join(self.videos, item.name, f"{item.stem}.avi"))
        return Record(
            key=item.stem,
            captions=self._prompts_of(item.name),
            path=item.path,
            source={"dataset": "ucf101", "video": item.stem, "class": item.name, "group": _group(item.stem)},
            extras={"class": item.number, "class_name": item.name},
        )

    def fingerprint(self) -> dict:
        """Lists and prompts decide; videos are too many to read twice."""
        folder = Path(self.lists)
        sums = {
            split: [checksum(str(folder / name)) for name in self._files(split) if (folder / name).is_file()]
            for split in self.splits()
        }
        index, prompts = folder / "classInd.txt", self._prompt_file()
        return {
            "dataset": "ucf101",
            "fold": self.fold,
            "val_groups": list(self.val_groups),
            "classes": checksum(str(index)) if index.is_file() else None,
            "prompts": checksum(prompts) if os.path.isfile(prompts) else None,
            "splits": sums,
        }

    def _files(self, split: str) -> tuple[str, ...]:
        """Names of the lists that a split is made of."""
        if self.fold == "all":
            return ("trainlist01.txt", "testlist01.txt")
        return (f"{'test' if split == 'test' else 'train'}list{self.fold:02d}.txt",)

    def _list(self, name: str) -> str:
        path = os.path.join(self.lists, name)
        return need_file(path, key="data.source.lists", what=f"{name} of UCF-101", remedy=_LISTS)

    def _prompts_of(self, name: str) -> tuple[str, ...]:
        if self._captions is None:
            self._captions = read_prompts(self._prompt_file())
        return prompts_of(self._captions, name)

    def _prompt_file(self) -> str:
        return str(PROMPTS) if self.prompts is None else self.prompts


def class_numbers(path: str) -> dict[str, int]:
    """Class -> its number from 0, of the lines "1 ApplyEyeMakeup" in classInd.txt."""
    found: dict[str, int] = {}
    for line in _lines(path):
        number, _, name = line.partition(" ")
        name = name.strip()
        if not number.isdigit() or int(number) < 1 or not name or name in found or int(number) - 1 in found.values():
            raise DataError("not the class index of UCF-101", key="data.source.lists", got=f"{path}: {ascii(line)[:80]}",
                            allowed="lines such as: 1 ApplyEyeMakeup", remedy=_LISTS)  # fmt: skip
        found[name] = int(number) - 1
    if not found:
        raise DataError("the class index of UCF-101 is empty", key="data.source.lists", got=path, remedy=_LISTS)
    return found


def read_prompts(path: str) -> dict[str, tuple[str, ...]]:
    """Class, in small letters, -> its prompts, of lines "<class>: <prompt>". `{name}` stands for the class in words."""
    remedy = "lines such as: ApplyEyeMakeup: A woman puts on eye makeup. Or name none: data.source.prompts=null"
    need_file(path, key="data.source.prompts", what="the file of prompts", remedy=remedy)
    found: dict[str, tuple[str, ...]] = {}
    for line in _lines(path):
        if line.startswith("#"):
            continue
        name, colon, prompt = (part.strip() for part in line.partition(":"))
        if not name or not colon or not prompt:
            got = f"{path}: {ascii(line)[:80]}"
            raise DataError("not a prompt of a class", key="data.source.prompts", got=got, remedy=remedy)
        found[name.casefold()] = (*found.get(name.casefold(), ()), prompt)
    return found


def prompts_of(prompts: dict[str, tuple[str, ...]], name: str) -> tuple[str, ...]:
    """The prompts of a class; those of `*` where it has none of its own."""
    texts = prompts.get(name.casefold(), prompts.get(_REST, ()))
    return tuple(text.replace("{name}", in_words(name)) for text in texts)


def in_words(name: str) -> str:
    """ApplyEyeMakeup as "apply eye makeup"."""
    return " ".join(re.findall(r"[A-Z]?[^A-Z]+|[A-Z]+", name)).lower()


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError("cannot read the file", key="data.source", got=f"{path}: {error}") from error
    return [line for line in map(str.strip, text.splitlines()) if line]


def _video(line: str, classes: dict[str, int], paths: dict[str, str], seen: set[str]) -> UcfVideo:
    match = _LINE.fullmatch(line.replace("\\", "/"))
    if match is None:
        return UcfVideo(line, "", -1, "", f"a damaged line of the list: {ascii(line)[:80]}")
    stem, label = match["stem"], match["label"]
    told = match["folder"] or stem.removeprefix("v_").partition("_")[0]
    name = next((name for name in classes if name.casefold() == told.casefold()), "")
    number = classes.get(name, -1)
    problem = ""
    if not name:
        problem = f"a class that classInd.txt does not have: {ascii(told)[:80]}"
    elif label is not None and int(label) - 1 != number:
        problem = f"the list and classInd.txt number the class otherwise: {label} and {number + 1}"
    elif stem.casefold() in seen:
        problem = f"the same video twice: {stem}"
    seen.add(stem.casefold())
    return UcfVideo(stem, name, number, paths.get(stem.casefold(), ""), problem)


def _group(stem: str) -> int | None:
    match = _GROUP.search(stem)
    return int(match[1]) if match else None
