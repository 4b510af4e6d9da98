"""The embedded world as a source of records: clip `index` of a split, rendered when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from data.records import Record
from data.shapes.grammar import REORDERED, scene_captions, scenes, tell
from data.shapes.lessons import draw_lexicon, retell
from data.shapes.motion import frame_times, trajectory
from data.shapes.render import paint
from data.shapes.sampling import SPLITS, check, sample_script
from data.shapes.script import ScriptSettings
from data.shapes.truth import truth
from vdm.errors import ConfigError

WORLD = 1  # raise it when the same seed and index give another clip
SMALLEST_PICTURE = 24  # pixels; the shapes cannot be told apart below


class ShapesSource:
    """Deterministic in (seed, split, index); a longer split begins with the clips of a shorter one."""

    def __init__(
        self,
        *,
        seed: int,
        num_train: int,
        num_val: int,
        num_test: int,
        num_heldout: int,
        height: int,
        width: int,
        frames: int,
        fps: float,
        ticks: int,
        min_things: int,
        max_things: int,
        min_events: int,
        max_events: int,
        textured: float,
        shades: Sequence[str],
        scatter: float,
        tilted: bool,
        rests: bool,
        sizes: Sequence[str],
        num_captions: int,
        reordered: float,
        new_verbs: int,
    ):
        self.seed, self.height, self.width, self.frames, self.fps = seed, height, width, frames, fps
        self.num_captions, self.reordered = num_captions, reordered
        self.counts = dict(zip(SPLITS, (num_train, num_val, num_test, num_heldout), strict=True))
        self.settings = ScriptSettings(
            ticks,
            min_things,
            max_things,
            min_events,
            max_events,
            textured,
            tuple(shades),
            scatter,
            tilted,
            rests,
            tuple(sizes),
        )
        check(self.settings)
        if seed < 0:
            raise ConfigError("the seed of the world is negative", key="data.source.seed", got=seed, allowed=">= 0")
        if min(height, width) < SMALLEST_PICTURE or height != width:
            raise ConfigError(
                "pictures of the shapes world are square",
                key="data.source.height, data.source.width",
                got=f"{height}x{width}",
                allowed=f"equal, >= {SMALLEST_PICTURE}",
            )
        if frames < ticks + 1:
            raise ConfigError(
                "too few frames to see every tick",
                key="data.source.frames",
                got=frames,
                allowed=f">= ticks + 1 = {ticks + 1}",
            )
        if num_captions < 1:
            raise ConfigError(
                "a clip needs a caption", key="data.source.num_captions", got=num_captions, allowed=">= 1"
            )
        if not 0 <= reordered <= 1:
            what = "a share of the captions"
            raise ConfigError(what, key="data.source.reordered", got=reordered, allowed="0 to 1")
        if not fps > 0:
            raise ConfigError("no clip has this frame rate", key="data.source.fps", got=fps, allowed="> 0")
        self.lexicon = draw_lexicon(seed, new_verbs, things=max_things, late=rests, key="data.source.new_verbs")

    def splits(self) -> tuple[str, ...]:
        """Those that have clips."""
        return tuple(split for split, count in self.counts.items() if count > 0)

    def items(self, split: str) -> Sequence[tuple[str, int]]:
        """(split, index) of every clip."""
        return [(split, index) for index in range(self.counts[split])]

    def load(self, item: tuple[str, int]) -> Record:
        """Render one clip with its captions and its truth."""
        split, index = item
        script = sample_script(self.seed, index, self.settings, split)
        states = trajectory(script, frame_times(self.frames, script.ticks))
        picture = paint(script, states, self.height, self.width)
        extras, arrays = truth(script, picture)
        if self.lexicon:
            captions = retell(script, self.seed, self.num_captions, self.reordered, self.lexicon)
        else:
            told = tell(script, self.seed, self.num_captions, self.reordered)
            captions = tuple(caption.text for caption in told)
            # Which words speak of which thing, in which order the events are told: one entry for each caption.
            extras["caption_truth"] = [caption.to_json() for caption in told]
        parts = zip(scenes(script), scene_captions(script, self.seed), strict=True)
        extras["scenes"] = [
            {"start": scene.start, "end": scene.end, "events": list(scene.events), "caption": caption}
            for scene, caption in parts
        ]
        return Record(
            key=f"shapes-{split}-{index:07d}",
            captions=captions,
            frames=picture.frames,
            fps=self.fps,
            source={"world": WORLD, "seed": self.seed, "split": split, "index": index},
            extras=extras,
            arrays=arrays,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the content."""
        plain = ScriptSettings(*[None] * 6)  # what is as usual is not named, so older shards stay what they are
        names = [f.name for f in fields(ScriptSettings)]
        script = {n: getattr(self.settings, n) for n in names if getattr(self.settings, n) != getattr(plain, n)}
        return {
            "world": WORLD,
            "seed": self.seed,
            "size": [self.frames, self.height, self.width],
            "fps": self.fps,
            "script": {name: list(value) if isinstance(value, tuple) else value for name, value in script.items()},
            "counts": self.counts,
            "num_captions": self.num_captions,
        } | self._unusual()

    def _unusual(self) -> dict[str, Any]:
        reordered = {} if self.reordered == REORDERED else {"reordered": self.reordered}
        return reordered | ({"lexicon": dict(self.lexicon)} if self.lexicon else {})
