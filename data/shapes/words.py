"""The words of the captions: synonyms and verb forms. Pure data, read by the writer and by the parser."""

from __future__ import annotations

from data.shapes.script import ACTIONS, COLOURS, DIRECTIONS, SHADES, SHAPES, SIZES, TEXTURES

COLOUR_WORDS = {colour: (colour,) for colour in COLOURS} | {
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
}
SHAPE_WORDS = {shape: (shape,) for shape in SHAPES} | {"circle": ("circle", "disc"), "bar": ("bar", "rod")}
SHAPE_WORDS |= {"ring": ("ring", "hoop")}
SIZE_WORDS = dict(
    zip(SIZES, (("small", "tiny", "little"), ("medium-sized", "mid-sized"), ("large", "big")), strict=True)
)
TEXTURE_WORDS = dict(
    zip(
        TEXTURES,
        (("plain",), ("gradient",), ("striped",), ("checkered",), ("dotted", "spotted"), ("cloudy",)),
        strict=True,
    )
)
SHADE_WORDS = {shade: (shade,) for shade in SHADES} | {"light": ("light", "pale")}

_WAYS = {
    "move_left": ("left", "to the left", "leftward"),
    "move_right": ("right", "to the right", "rightward"),
    "move_up": ("up", "upward"),
    "move_down": ("down", "downward"),
    "move_up_left": ("up and to the left", "to the upper left", "diagonally up and left"),
    "move_up_right": ("up and to the right", "to the upper right", "diagonally up and right"),
    "move_down_left": ("down and to the left", "to the lower left", "diagonally down and left"),
    "move_down_right": ("down and to the right", "to the lower right", "diagonally down and right"),
}
# "{T}" is the other thing, always last.
VERBS: dict[str, tuple[str, ...]] = {
    action: tuple(f"{verb} {way}" for verb in ("move", "slide", "drift", "glide", "travel") for way in _WAYS[action])
    for action in DIRECTIONS
}
VERBS |= {
    "grow": ("grow", "expand", "get bigger", "get larger", "become bigger", "become larger"),
    "shrink": ("shrink", "contract", "get smaller", "become smaller"),
    "rotate": ("rotate", "spin", "turn"),
    "blink": ("blink", "flash", "flicker", "blink on and off"),
    "appear": ("appear", "come into view", "show up", "become visible"),
    "vanish": ("vanish", "disappear", "disappear from view", "become invisible"),
    "approach": ("approach {T}", "move towards {T}", "come closer to {T}", "get closer to {T}", "head for {T}"),
    "leave": ("move away from {T}", "go away from {T}", "drift away from {T}", "retreat from {T}"),
    "orbit": ("orbit {T}", "revolve around {T}", "go around {T}", "travel around {T}", "move around {T}"),
    "follow": ("follow {T}", "trail {T}", "chase {T}", "move along behind {T}"),
    "stay": ("stay still", "stay in place", "remain still", "rest", "keep still"),
}
assert set(VERBS) == set(ACTIONS), "every action needs its words"

_IRREGULAR = {  # third person, participle, gerund
    "get": ("gets", "got", "getting"),
    "become": ("becomes", "become", "becoming"),
    "slide": ("slides", "slid", "sliding"),
    "grow": ("grows", "grown", "growing"),
    "shrink": ("shrinks", "shrunk", "shrinking"),
    "spin": ("spins", "spun", "spinning"),
    "come": ("comes", "come", "coming"),
    "show": ("shows", "shown", "showing"),
    "go": ("goes", "gone", "going"),
    "keep": ("keeps", "kept", "keeping"),
    "travel": ("travels", "travelled", "travelling"),
}
# Clause forms: what stands between subject and verb, and the form of the verb (0 base, 1 -s, 2 participle, 3 -ing).
FORMS = {
    "now": ("", 1),
    "perfect": ("has ", 2),
    "going": ("is ", 3),
    "base": ("", 0),
    "both": ("both ", 0),
    "verb": ("", 1),  # the rest have no subject of their own
    "ing": ("", 3),
    "having": ("", 2),
    "still": ("is still ", 3),  # the last two speak of an event that was told before
    "done": ("has finished ", 3),
}
SUBJECTLESS = ("verb", "ing", "having")
RETOLD = ("still", "done")


def conjugate(phrase: str) -> tuple[str, str, str, str]:
    """Base, third person, participle and gerund of a verb phrase."""
    verb, _, rest = phrase.partition(" ")
    if verb in _IRREGULAR:
        forms = (verb, *_IRREGULAR[verb])
    else:
        stem = verb.removesuffix("e")
        forms = (verb, verb + ("es" if verb.endswith(("sh", "ch")) else "s"), stem + "ed", stem + "ing")
    base, third, participle, gerund = (f"{form} {rest}" if rest else form for form in forms)
    return base, third, participle, gerund


# (action, form) -> phrases
VERB_PHRASES = {
    (action, form): tuple(before + conjugate(phrase)[column] for phrase in phrases)
    for action, phrases in VERBS.items()
    for form, (before, column) in FORMS.items()
}
# Verbs of rest sound wrong in most of the -ing forms.
VERB_PHRASES |= {
    ("stay", "going"): ("is resting", "is staying in place"),
    ("stay", "still"): ("is still resting", "is still staying in place"),
    ("stay", "done"): ("has finished resting",),
}

INTRODUCTIONS = ("the video shows", "the clip shows", "the scene contains", "we see")
GROUNDS = ("on a", "against a")
