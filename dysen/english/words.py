"""The words the rules know, and the forms of verbs. Everything that is not listed here is taken for a noun."""

# ruff: noqa: SIM905 - lists of words are read more easily than lists of strings

from __future__ import annotations

import functools

VERBS = """
accelerate add adjust advance aim answer appear applaud apply approach arrange arrive ask assemble attack back bake
balance bark bat bathe beat become beg begin bend bite blend blink block bloom blow board boil bounce bow bowl box
brake break brush build bump burn burst bury buy call caress carry carve catch celebrate change chase chat cheer chew
chop clap clean clear climb clip close collect collide comb come compete conduct continue contract cook cool cover
crack crash crawl cross cruise crumble crush cry cuddle curl cut cycle dance dangle dash decorate deliver demonstrate
descend describe dig dip direct disappear discuss display dive do drag draw dribble drift drill drink drip drive drop
dry duck dunk dust eat embrace emerge empty enter erupt escape examine exchange exercise exit expand explain explode
explore extend face fade fall feed fetch fight fill find finish fish fix flap flash flick flicker flip float flow fly
focus fold follow fry gallop gather get give glide glow go grab graze greet grill grin grind grip groom grow guide
hammer hand handle hang harvest head hide hike hit hold hop hover howl hug hunt hurry ice ignite inflate insert
inspect iron jog join juggle jump keep kick kiss knead kneel knit knock land laugh launch lay lead lean leap leave
lick lie lift light line listen load look lower make march massage measure meditate meet melt merge mix mount move mow
nap nod observe open orbit pace pack paddle paint park pass pat pause pedal peel perform pet pick pinch place plant
play plow point polish pop pose pour practice praise pray prepare present press proceed prune pull pump punch push put
race rain raise reach read recede record relax release remain remove repair repeat rest retreat return reveal revolve
ride ring rinse rip rise roar roast roll rotate row rub run sail salute sand saw say scatter scoop scratch scream
scroll scrub sculpt see seem sell send serve sew shake sharpen shave shift shine shoot shop shout shovel show shower
shrink shut sing sip sit skate sketch ski skip slam sled sleep slice slide slip slow smash smell smile smoke snap
sneak sneeze sniff snow snowboard soak soar spar speak spill spin splash split spray spread sprinkle sprint squat
squeeze stack stand stare start stay steal steam steer step stick stir stitch stop strap stretch stride strike stroke
stroll strum study stumble surf swallow sway sweep swim swing switch take talk tap taste teach tear text throw tickle
tie tilt toast toss touch tow trace train transform travel tremble trail trim trip trot try tumble turn twirl twist
type unfold unload unlock unpack unwrap use vacuum vanish visit wade wag wait wake walk wander warm wash watch water
wave wax wear weave weep weigh weld whip whisk whisper whistle win wind wink wipe work wrap wrestle write yawn yell
zoom
""".split()
# Base: third person, past, participle, gerund; what is missing is made by rule.
IRREGULAR = {
    row.split()[0]: row.split()[1:]
    for row in """
beat - beat beaten; become - became become; begin - began begun; bend - bent bent; bite - bit bitten; blow - blew blown;
break - broke broken; build - built built; burst - burst burst; buy - bought bought; catch - caught caught; come - came come;
cut - cut cut; dig - dug dug; do does did done; draw - drew drawn; drink - drank drunk; drive - drove driven; eat - ate eaten;
fall - fell fallen; feed - fed fed; fight - fought fought; find - found found; fly - flew flown; get - got got;
give - gave given; go goes went gone; grind - ground ground; grow - grew grown; hang - hung hung; hide - hid hidden;
hit - hit hit; hold - held held; keep - kept kept; kneel - knelt knelt; knit - knit knit; lay - laid laid; lead - led led;
leave - left left; lie - lay lain lying; light - lit lit; lose - lost lost; make - made made; meet - met met;
put - put put; read - read read;
ride - rode ridden; ring - rang rung; rise - rose risen; run - ran run; say - said said; see - saw seen; sell - sold sold;
send - sent sent; set - set set; sew - sewed sewn; shake - shook shaken; shine - shone shone; shoot - shot shot;
show - showed shown; shrink - shrank shrunk; shut - shut shut; sing - sang sung; sit - sat sat; sleep - slept slept;
slide - slid slid; speak - spoke spoken; spin - spun spun; split - split split; spread - spread spread; stand - stood stood;
steal - stole stolen; stick - stuck stuck; strike - struck struck; sweep - swept swept; swim - swam swum; swing - swung swung;
take - took taken; teach - taught taught; tear - tore torn; throw - threw thrown; tie - tied tied tying; try - tried tried;
wake - woke woken; wear - wore worn; weave - wove woven; weep - wept wept; win - won won; wind - wound wound;
write - wrote written; travel - travelled travelled travelling; shovel - shovelled shovelled shovelling
""".split(";")
}
VERBS = [*VERBS, "set", "score", "lose", "speed", "pan", "dial", "film", "order"]
ENDS_SOFT = {"answer", "bake", "conduct", "cover", "deliver", "emerge", "enter", "exercise", "explore", "fasten",
"flicker", "focus",
             "gather", "gallop", "hammer", "hover", "lower", "open", "listen", "offer", "visit", "wander", "water", "whisper",
             "sharpen", "shower", "scatter", "shoulder", "remember", "repeat", "clear", "present", "exit", "edit",
             "disappear", "appear", "repair", "clean", "cheer", "orbit", "steer", "pedal", "inspect", "reveal"}  # fmt: skip
# Not verbs although they end so.
GERUND_NOUNS = set(
    """
building buildings ceiling ring king wing string thing something nothing anything everything morning evening wedding
clothing earring lightning railing sibling darling duckling dumpling pudding sting during outing icing inning herring
bowling shilling spring meeting-room living
""".split()
)
NOUNS_AFTER_ALL = set(
    """
left right back front top bottom face head hand hands water park light lights train trains fish line lines box boxes
boards board plants plant paint row rows shop shops waves wave ring rings iron saw bat bats duck ducks pet pets bow
show shows steam smoke snow rain ice dust toast text record records present stick sticks strap trail trails trip skate
skates step steps weights shot shots cover covers cross crosses end ends surf clip clips drill
""".split()
)
AUXILIARY = set(
    """
is are was were be been being am has have had having do does did will would can could may might must shall should 's
're
""".split()
)
COPULA = set("is are was were be been being am 's 're".split())
# "starts to run": the verb after these is the one that counts.
LIGHT_VERBS = {"start", "begin", "continue", "try", "stop", "finish", "proceed", "prepare", "seem", "keep", "help"}
LINKING = {
    "become",
    "get",
    "turn",
    "stay",
    "remain",
    "keep",
    "grow",
    "look",
    "seem",
    "come",
    "stand",
    "lie",
    "sit",
    "fall",
}
# They hold until their agent does something that ends them.
STATES = {"sit", "stand", "lie", "wear", "hold", "lean", "kneel", "sleep", "hang", "carry", "squat"}
ENDING_STATES = {"sit", "stand", "lie", "sleep", "kneel", "lean", "squat"}
MOVES = set(
    """
walk run leave jump stand get rise climb go exit enter fall dance fly dive drive ride swim crawl jog skate ski sprint move
step sit lie stroll wander
""".split()
)
# Participles that describe.
DESCRIBING = set(
    """
dressed covered filled surrounded made called named located topped decorated shown based painted lined parked colored
coloured striped seated set wooded
""".split()
)

DETERMINERS = set(
    """
a an the this that these those his her its their my your our some any each every both all no another other several
many few various multiple one's
""".split()
)
POSSESSIVES = {"his", "her", "its", "their", "my", "your", "our"}
OTHERS = {"another", "other", "second"}
NUMBERS = set("one two three four five six seven eight nine ten dozens hundreds".split())
PRONOUNS = set(
    "he she it they him her them who which that someone somebody himself herself itself themselves we us i you".split()
)
SUBJECT_PRONOUNS = {"he", "she", "it", "they", "we", "i", "you"}
REFLEXIVE = {"himself", "herself", "itself", "themselves", "other"}
RELATIVE = {"who", "which", "that", "whose"}
MALE = set("man boy guy gentleman father dad king actor waiter grandfather uncle brother son husband".split())
FEMALE = set(
    "woman girl lady mother mom queen actress waitress grandmother aunt sister daughter wife bride female".split()
)
PEOPLE = (
    MALE
    | FEMALE
    | set(
        """
person people friend child children kid kids baby player players chef dancer singer dancers worker workers men women
boys girls couple crowd teacher student students athlete cyclist surfer skier rider driver doctor audience musician
artist farmer toddler teenager adult skateboarder runner swimmer climber team band family
""".split()
    )
)
PLURALS = {
    "people",
    "men",
    "women",
    "children",
    "fish",
    "sheep",
    "police",
    "deer",
    "geese",
    "mice",
    "feet",
    "teeth",
    "couple",
}
# "a group of people" are people; "close-up of a flower" is about the flower.
CONTAINERS = set(
    """
group groups pair couple lot lots number series herd flock crowd team bunch row rows variety kind type piece pieces
view shot motion footage video clip closeup close-up timelapse time-lapse image picture scene photo portrait display top
inside pack line pile sort
""".split()
)
FRAMES = ("there is", "there are", "there's", "we see", "we can see", "you can see", "we watch", "the video shows",
"the clip shows",
          "the scene contains", "the scene shows", "the camera shows", "the camera follows", "this is a video of",
          "a video of", "footage of", "a clip of", "this video shows", "video of")  # fmt: skip
LONG_PREPOSITIONS = {phrase: phrase.replace(" ", "-") for phrase in ("in front of", "next to", "on top of", "out of")}
PREPOSITIONS = set(LONG_PREPOSITIONS.values()) | set(
    """
in on at to into onto from with without of over under above below beside besides behind near by for through across
around along against between among inside outside towards toward upon beneath off out up down past via after before
within atop amid
""".split()
)
PARTICLES = set(
    """
up down out off away back over around forward forwards backward backwards upward downward leftward rightward upwards
downwards together apart along aside left right still ahead inside outside diagonally sideways in on towards toward
closer behind through past along
""".split()
)
WAYS = set(
    "left right top bottom side upper lower place front view sight".split()
)  # "to the left", "in place": part of the action
COLOURS = set(
    """
red orange yellow green blue purple pink cyan white black grey gray brown violet turquoise golden silver beige magenta
teal navy blonde blond brunette colorful colourful
""".split()
)
SIZES = set(
    """
small tiny little big large huge giant tall short long medium medium-sized mid-sized narrow wide thin thick miniature
enormous massive
""".split()
)
AGES = set("young old elderly middle-aged adult teenage newborn new ancient".split())
ADJECTIVES = (
    COLOURS
    | SIZES
    | AGES
    | set(
        """
beautiful happy sad cute pretty lovely wooden empty full open closed hot cold warm cool fresh dark bright light wet
dry dirty clean green round flat soft hard heavy fast slow busy quiet calm modern traditional professional asian
african american indian chinese japanese european caucasian female male attractive bearded bald slim fit sunny cloudy
snowy rainy foggy misty sandy rocky grassy muddy dusty striped spotted checkered plain pale blurry delicious ripe raw
frozen vintage rustic urban rural tropical colored visible invisible larger bigger smaller closer higher faster louder
brighter darker different same single lone entire whole main real fluffy furry shiny outdoor indoor public deep
shallow high low strong gentle angry scared excited tired asleep awake still alone ready black-and-white curly
""".split()
    )
)
CATEGORIES = (COLOURS, SIZES, AGES)
ADVERBS = set(
    """
then now also just very really quite almost slowly quickly finally suddenly only first already ever once too so
simultaneously together meanwhile later afterwards eventually gently carefully happily there here nearby as completely
still again while currently clearly repeatedly twice outdoors indoors
""".split()
)


NOUNS_IN_LY = set("family belly jelly lily butterfly dragonfly firefly bully assembly reply italy".split())


@functools.cache
def forms() -> dict[str, tuple[str, str]]:
    """Form of a verb -> (base, kind), kind one of base, third, past, gerund."""
    found: dict[str, tuple[str, str]] = {}
    for base in VERBS:
        listed = [*IRREGULAR.get(base, ()), "-", "-", "-", "-"]
        third = listed[0] if listed[0] != "-" else _third(base)
        past = listed[1] if listed[1] != "-" else _suffixed(base, "ed")
        participle = listed[2] if listed[2] != "-" else past
        gerund = listed[3] if listed[3] != "-" else _suffixed(base, "ing")
        for form, kind in ((past, "past"), (participle, "past"), (third, "third"), (gerund, "gerund"), (base, "base")):
            found[form] = (base, kind)
        found.setdefault(base.removesuffix("e") + "ing", (base, "gerund"))
        found.setdefault(base + "ing", (base, "gerund"))
        found.setdefault(base + "ed", (base, "past"))
    return found


def verb(word: str) -> tuple[str, str] | None:
    """(base, kind) of a word that can be a verb. Unknown words that end in -ing are verbs, too."""
    known = forms().get(word)
    if known is not None or word in GERUND_NOUNS:
        return known
    if word.endswith("ing") and len(word) > 4 and any(letter in "aeiouy" for letter in word[:-3]):
        stem = word[:-3]
        if len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in "sl":
            stem = stem[:-1]
        elif stem[-1] in "vczu" or (
            len(stem) > 2 and stem[-1] in "tkgd" and stem[-2] in "aiou" and stem[-3] not in "aeiou"
        ):
            stem += "e"
        return stem, "gerund"
    return None


def is_plural(noun: str) -> bool:
    """By its looks."""
    return noun in PLURALS or (noun.endswith("s") and not noun.endswith(("ss", "us", "is")))


def is_adjective(word: str) -> bool:
    return (
        word in ADJECTIVES
        or word in NUMBERS
        or (len(word) > 6 and word.endswith(("ful", "ous", "less", "ish", "able")) and word not in ("fish", "table"))
    )


def is_adverb(word: str) -> bool:
    """By its ending."""
    return word.endswith("ly") and len(word) > 4 and word not in NOUNS_IN_LY


def _third(base: str) -> str:
    if base.endswith(("s", "sh", "ch", "x", "z", "o")):
        return base + "es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + "s"


def _suffixed(base: str, ending: str) -> str:
    if base.endswith("ie") and ending == "ing":
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith(("ee", "ye", "oe")):
        return base[:-1] + ending
    if base.endswith("y") and base[-2] not in "aeiou" and ending == "ed":
        return base[:-1] + "ied"
    is_short = len(base) > 2 and base[-1] in "bdgklmnprtv" and base[-2] in "aeiou" and base[-3] not in "aeiou"
    if is_short and base not in ENDS_SOFT:
        return base + base[-1] + ending
    return base + ending
