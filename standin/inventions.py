"""Seeded inventions with their descriptions, questions and answers: the generator behind the sample
data and the embedded model.

An invention is a device for a purpose, its parts, and facts about the parts, each under one of five
aspects. Its description states every fact once, among boilerplate. An answer restates the facts
that its question asks for, in sentences and words of its own (`Term.answer`) that descriptions
never use: what fine-tuning can teach. The embedded model is taught to read with `plain_answer`,
which keeps the description's words, or uses the other words where that is asked for: like any
language model it knows words for the same thing, but not the answers' sentences, nor that answers
prefer those words.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Fold = Literal["sample", "base"]


@dataclass(frozen=True)
class Term:
    """One thing under two names: as descriptions say it and as answers say it."""

    description: str
    answer: str


def _terms(table: str) -> tuple[Term, ...]:
    return tuple(
        Term(*(half.strip() for half in line.split("=", 1))) for line in table.strip().splitlines()
    )


KINDS = tuple(
    "portable folding modular compact floating magnetic hydraulic pneumatic dental wearable rotary "
    "reversible collapsible heated layered sealed motorized handheld stackable wireless".split()
)

DEVICES = tuple(
    "pump,valve,harvester,catheter,feeder,sprayer,winch,clamp,ladder,conveyor,filter,heater,mixer,press,stove,"
    "lantern,trap,drill,crane,scale,bandage,helmet,loom,kiln".split(",")
)

PURPOSES = tuple(
    "draining boats,feeding cattle,sorting fruit,drying grain,lifting pallets,cutting "
    "glass,washing bottles,treating wounds,cooling engines,sealing envelopes,planting "
    "seedlings,milking goats,testing bridges,charging batteries,cleaning windows,grinding "
    "lenses,folding textiles,roasting coffee,storing vaccines,measuring rainfall,polishing "
    "stone,harvesting kelp,bending pipes,warming incubators".split(",")
)

PARTS = tuple(
    "inlet valve,guide rail,spring housing,drive shaft,cover plate,support arm,rotor "
    "blade,pressure ring,feed hopper,outer sleeve,locking pin,base frame,filter screen,float "
    "chamber,control lever,bearing block,outlet pipe,end cap,mixing drum,heat shield,sensor "
    "head,cable drum,piston rod,flow divider,battery tray,pivot bracket,damper plate,suction "
    "cup,tension wheel,light guide,seal ring,slide carriage,valve seat,nozzle tip,coupling "
    "hub,tilt table,guard rail,belt roller,trigger lever,storage tank".split(",")
)

MATERIALS = _terms("""
aluminum = light alloy
copper = red metal
silicone = soft polymer
oak = dense hardwood
titanium = noble alloy
bronze = cast alloy
glass = clear mineral
rubber = elastic compound
nylon = tough fiber
steel = ferrous stock
ceramic = fired clay
carbon = black composite
""")

FASTENINGS = _terms("""
screws = threaded pins
rivets = pressed studs
solder = a melted joint
glue = an adhesive film
straps = flexible bands
magnets = attracting blocks
hooks = curved catches
welds = fused seams
clips = snap elements
bolts = heavy fasteners
dowels = round pegs
stitches = sewn thread
""")

DRIVES = _terms("""
a crank = hand force
compressed air = a gas charge
a motor = electric torque
falling water = a liquid stream
a pedal = foot force
solar cells = daylight energy
a flywheel = stored momentum
steam = boiler vapor
""")

MOTIONS = _terms("""
rotates = turns around
lifts = carries upward
squeezes = compacts
shakes = agitates
pushes = shifts forward
tilts = inclines
stretches = draws out
scrapes = skims clear
""")

STOPS = _terms("""
a float sinks = a low level is sensed
a timer expires = the set interval ends
a fuse melts = excess current flows
a bell rings = an audible alarm sounds
a lamp lights = a visual signal appears
a latch drops = a mechanical catch engages
a gauge peaks = the pressure limit is met
a thread snaps = the weak link parts
""")

PROCESSES = _terms("""
casting = pouring into a mold
forging = hammering while hot
milling = machine cutting
stamping = die pressing
extrusion = forcing through an opening
sintering = fusing powder
weaving = crossing strands
carving = shaping by knife
printing = layer deposition
rolling = thinning between cylinders
""")

FINISHES = _terms("""
painted = given a colored coat
polished = made smooth and bright
hardened = strengthened by heat
galvanized = covered with zinc
waxed = sealed against moisture
engraved = marked on the surface
etched = roughened with acid
lacquered = closed under varnish
baked = cured in an oven
oiled = left with a greasy film
""")

BENEFITS = _terms("""
makes less noise = runs quietly
uses less fuel = saves energy
weighs less = is easy to carry
lasts longer = endures many years
costs less = remains affordable
starts faster = is ready at once
leaks less = stays tight
needs less room = fits small spaces
resists corrosion = withstands rust
avoids jams = keeps moving freely
cools faster = sheds heat quickly
measures better = gives exact readings
""")

AGENTS = _terms("""
warm water = heated rinse
vinegar = mild acid
alcohol = clear spirit
soap = gentle detergent
sand = fine abrasive
brushes = stiff bristles
ultrasound = rapid sound waves
hot air = dry blowing
lemon oil = citrus extract
chalk = white powder
""")

SIGNS = _terms("""
cracks appear = its surface splits
it turns yellow = its color fades
it squeaks = it becomes loud
it bends = it loses its form
it leaks = liquid escapes
its edge is dull = it no longer cuts
it swells = its volume grows
it loosens = play is noticed
""")

ASPECTS = ("structure", "operation", "manufacture", "benefit", "service")

TERMS: dict[str, tuple[tuple[Term, ...], ...]] = {
    "structure": (MATERIALS, FASTENINGS),
    "operation": (DRIVES, MOTIONS, STOPS),
    "manufacture": (PROCESSES, FINISHES),
    "benefit": (BENEFITS,),
    "service": (AGENTS, SIGNS),
}

ASKED_FACTS = {"structure": 3, "operation": 2, "manufacture": 3, "benefit": 3, "service": 2}


@dataclass(frozen=True)
class Fact:
    """One statement about a part (and, where the aspect has one, a second part): its terms decide
    whether it is true.
    """

    aspect: str
    part: str
    other: str
    terms: tuple[Term, ...]
    weeks: int


@dataclass(frozen=True)
class Invention:
    """A device for a purpose, and all facts of its description by aspect."""

    kind: str
    device: str
    purpose: str
    parts: tuple[str, ...]
    numerals: dict[str, int]
    facts: dict[str, tuple[Fact, ...]]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.device}"

    @property
    def title(self) -> str:
        return f"{self.name} for {self.purpose}"


def titles(fold: Fold) -> list[tuple[str, str, str]]:
    """All (kind, device, purpose) of a fold.

    The two folds are disjoint and together hold every combination.
    """
    return [
        (kind, device, purpose)
        for i, kind in enumerate(KINDS)
        for j, device in enumerate(DEVICES)
        for k, purpose in enumerate(PURPOSES)
        if ((i + j + k) % 4 == 0) == (fold == "sample")
    ]


def invent(rng: random.Random, title: tuple[str, str, str]) -> Invention:
    """Draw parts and facts for a title."""
    parts = tuple(rng.sample(PARTS, 8))
    numerals = dict(zip(parts, rng.sample(range(10, 100, 2), len(parts)), strict=True))
    facts = {}
    for aspect in ASPECTS:
        chosen = rng.sample(parts, 4)
        others = [rng.choice([part for part in parts if part != one]) for one in chosen]
        drawn = [rng.sample(pool, 4) for pool in TERMS[aspect]]
        facts[aspect] = tuple(
            Fact(aspect, part, other, terms, rng.randrange(2, 60))
            for part, other, terms in zip(chosen, others, zip(*drawn, strict=True), strict=True)
        )
    return Invention(*title, parts, numerals, facts)


STATEMENTS: dict[str, tuple[str, ...]] = {
    "structure": (
        "The {part} is made of {0} and is held by {1} to the {other}.",
        "The {part}, made of {0}, is held by {1} to the {other}.",
        "The {part} is held by {1}, made of {0} and attached to the {other}.",
    ),
    "operation": (
        "The {part} is driven by {0} in operation and {1} the {other} until {2}.",
        "The {part}, driven in operation by {0}, {1} the {other} until {2}.",
        "The {part} {1} the {other} in operation, driven by {0}, until {2}.",
    ),
    "manufacture": (
        "The {part} is manufactured by {0} and is then {1}.",
        "The {part}, once manufactured by {0}, is {1}.",
        "The {part} is {1} when it has been manufactured by {0}.",
    ),
    "benefit": (
        "The {part} has the advantage that the {name} {0}.",
        "The {part} is of advantage since with it the {name} {0}.",
        "The {part} is there so that the {name} {0}, which is its advantage.",
    ),
    "service": (
        "The {part} is cleaned with {0} every {weeks} weeks of service and is replaced when {1}.",
        "The {part} is replaced when {1}, and in service is cleaned with {0} every {weeks} weeks.",
        "The {part} is in service cleaned every {weeks} weeks with {0} and replaced when {1}.",
    ),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "structure": (
        "What are {parts} of the {title} made of, and how is each of them held in place?",
        "Of which materials are {parts} made in the {title}, and by what are they held?",
    ),
    "operation": (
        "How are {parts} driven in operation of the {title}, and until when?",
        "By what are {parts} of the {title} driven, and what ends their operation?",
    ),
    "manufacture": (
        "How are {parts} of the {title} manufactured, and what is done to them then?",
        "By which steps are {parts} manufactured for the {title}?",
    ),
    "benefit": (
        "What advantage does each of {parts} bring to the {title}?",
        "Which advantages does the described {title} owe to {parts}?",
    ),
    "service": (
        "How are {parts} of the {title} cleaned in service, and when is each replaced?",
        "In service of the {title}, with what are {parts} cleaned, and when are they replaced?",
    ),
}

PLAIN_ANSWERS: dict[str, str] = {
    "structure": "The {part} is made of {0} and is held to the {other} by {1}.",
    "operation": "The {part} is driven by {0} and {1} the {other} until {2}.",
    "manufacture": "The {part} is manufactured by {0} and is then {1}.",
    "benefit": "The {part} brings it about that the {name} {0}.",
    "service": "The {part} is cleaned with {0} every {weeks} weeks and is replaced when {1}.",
}

OPENINGS: dict[str, str] = {
    "structure": "The invention presents a {device} whose elements are firmly assembled.",
    "operation": "The disclosed {device} follows a simple working sequence.",
    "manufacture": "According to the disclosure, production of the {device} takes few stages.",
    "benefit": "Several improvements over earlier solutions are offered by this {device}.",
    "service": "Upkeep of the {device} was kept as simple as possible.",
}

ANSWERS: dict[str, str] = {
    "structure": "The {part} consists of {0}, and {1} connect it with the {other}.",
    "operation": "The {part} runs on {0}, and it {1} the {other} as long as needed, namely till "
    "{2}.",
    "manufacture": "The {part} results from {0}, after which it gets {1}.",
    "benefit": "The {part} is the reason why the whole {device} {0}.",
    "service": "The {part} calls for {0} after {weeks} weeks of use, and must be renewed once {1}.",
}

CLOSINGS: dict[str, str] = {
    "structure": "Such a design promises stability when {purpose}.",
    "operation": "Users can thus concentrate on {purpose}.",
    "manufacture": "Its result suits {purpose} in large numbers.",
    "benefit": "All of this helps considerably when {purpose}.",
    "service": "Regular care of this sort supports {purpose} without interruption.",
}


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def question(rng: random.Random, invention: Invention, facts: Sequence[Fact]) -> str:
    """Ask for the facts, all of one aspect, by naming their parts."""
    template = rng.choice(QUESTIONS[facts[0].aspect])
    return template.format(
        parts=_listed([f"the {fact.part}" for fact in facts]), title=invention.title
    )


def answer(invention: Invention, facts: Sequence[Fact]) -> str:
    """The reference answer: the facts in the answers' own vocabulary, between an opening and a
    closing sentence.
    """
    aspect = facts[0].aspect
    sentences = [OPENINGS[aspect].format(device=invention.device)]
    sentences += [
        ANSWERS[aspect].format(
            *(term.answer for term in fact.terms),
            part=fact.part,
            other=fact.other,
            weeks=fact.weeks,
            device=invention.device,
        )
        for fact in facts
    ]
    sentences.append(CLOSINGS[aspect].format(purpose=invention.purpose))
    return " ".join(sentences)


def plain_answer(invention: Invention, facts: Sequence[Fact], other_words: bool = False) -> str:
    """An answer in the description's own words, or in other words for the same: what the embedded
    model is taught.
    """
    return " ".join(
        PLAIN_ANSWERS[fact.aspect].format(
            *(term.answer if other_words else term.description for term in fact.terms),
            part=fact.part,
            other=fact.other,
            weeks=fact.weeks,
            name=invention.name,
        )
        for fact in facts
    )


def contradict(rng: random.Random, invention: Invention, facts: Sequence[Fact]) -> list[Fact]:
    """The same facts with every term exchanged for another of its kind that the description does
    not state of any part.
    """
    stated = {term for fact in invention.facts[facts[0].aspect] for term in fact.terms}
    pools = [[term for term in pool if term not in stated] for pool in TERMS[facts[0].aspect]]
    drawn = [rng.sample(pool, len(facts)) for pool in pools]
    return [
        Fact(fact.aspect, fact.part, fact.other, terms, fact.weeks)
        for fact, terms in zip(facts, zip(*drawn, strict=True), strict=True)
    ]


def state(rng: random.Random, invention: Invention, fact: Fact) -> str:
    """The sentence with which the description states a fact."""
    template = rng.choice(STATEMENTS[fact.aspect])
    return template.format(
        *(term.description for term in fact.terms),
        part=fact.part,
        other=fact.other,
        weeks=fact.weeks,
        name=invention.name,
    )


BACKGROUND = (
    "People engaged in {purpose} have long looked for a better {device}.",
    "Known apparatus of this type is often heavy, and its use asks for much training.",
    "A conventional {device} has to be set up by two persons, which takes time.",
    "In many regions {purpose} is still done by hand.",
    "Earlier proposals addressed only one side of the problem and were soon given up.",
    "Where space is short, a {device} of the usual size cannot be placed at all.",
    "There is therefore a need for a {name} that can be trusted in daily work.",
    "Several patents describe a {device}, yet none of them was made with {purpose} in mind.",
    "Such equipment is subject to rough handling, and its failure can be expensive.",
    "It is an object of the invention to overcome these difficulties.",
    "Weather, dirt and vibration add to the strain on apparatus of this class.",
    "The literature on {purpose} mentions the difficulty without offering a remedy.",
)

BOILERPLATE = (
    "FIG. {fig} shows the {part} {n} in a side view.",
    "As can be seen in FIG. {fig}, the {part} {n} lies near the {other} {m}.",
    "The distance between the {part} {n} and the {other} {m} is about {number} millimeters.",
    "In one embodiment the {part} {n} is about {number} millimeters long.",
    "The {part} {n} may have a round, square or oval cross section.",
    "A second {part} {n} can be provided without leaving the scope of the invention.",
    "The reference numeral {n} denotes the {part} throughout the several views.",
    "For the sake of clarity, the {other} {m} is not drawn in FIG. {fig}.",
    "Those skilled in the art will recognize that the {part} {n} may take other shapes.",
    "The terms first and second serve to tell elements apart and imply no order.",
    "As used herein, the singular includes the plural unless the text says otherwise.",
    "The drawings are not to scale, and like numerals denote like elements.",
    "The embodiments described are examples and do not limit the claims.",
    "Values given with the word about may vary by {number} percent either way.",
    "It should be understood that features of one embodiment may be combined with those of "
    "another.",
    "An angle of {number} degrees between the {part} {n} and the {other} {m} has proved useful.",
    "The user views the {part} {n} from above, as indicated by the arrow in FIG. {fig}.",
    "Trials were carried out over {number} days with the {name}.",
    "In the example, a {name} with a mass of {number} kilograms was tested.",
    "The {part} {n} is accessible from the front of the {name}.",
    "Where the text mentions the {other} {m}, any similar element is meant as well.",
    "While the invention has been described for {purpose}, other fields are open to it.",
    "The temperature near the {part} {n} did not rise above {number} degrees.",
    "Reference is now made to FIG. {fig}, in which the {name} is drawn in part.",
    "Between the {part} {n} and the {other} {m} a gap of {number} millimeters remains.",
    "A label on the {part} {n} tells the user which side faces up.",
    "Figures of this kind depend on {purpose} and on the season.",
    "No limitation to the number of elements is intended.",
)


def _filler(rng: random.Random, invention: Invention, template: str) -> str:
    part, other = rng.sample(invention.parts, 2)
    return template.format(
        part=part,
        other=other,
        n=invention.numerals[part],
        m=invention.numerals[other],
        name=invention.name,
        device=invention.device,
        purpose=invention.purpose,
        fig=rng.randrange(1, 13),
        number=rng.randrange(2, 90),
    )


def fact_paragraphs(
    rng: random.Random, invention: Invention, aspects: Sequence[str] = ASPECTS
) -> list[str]:
    """One paragraph per aspect that states its facts in random order, with a boilerplate sentence
    between some of them.
    """
    paragraphs = []
    for aspect in rng.sample(aspects, len(aspects)):
        sentences = []
        for fact in rng.sample(invention.facts[aspect], len(invention.facts[aspect])):
            sentences.append(state(rng, invention, fact))
            if rng.random() < 0.3:
                sentences.append(_filler(rng, invention, rng.choice(BOILERPLATE)))
        paragraphs.append(" ".join(sentences))
    return paragraphs


def filler_paragraph(
    rng: random.Random, invention: Invention, templates: Sequence[str] = BOILERPLATE
) -> str:
    """Three to seven sentences that state no fact."""
    return " ".join(
        _filler(rng, invention, template) for template in rng.sample(templates, rng.randrange(3, 8))
    )


def describe(rng: random.Random, invention: Invention, characters: int) -> list[str]:
    """A description of at least `characters` characters, as paragraphs in patent order."""
    head = [
        "RELATED APPLICATIONS This application claims priority to application No. "
        f"{rng.randrange(10, 99)}/{rng.randrange(100, 999)},{rng.randrange(100, 999)}, which is "
        "incorporated herein by reference. FIELD OF THE INVENTION The invention relates to a "
        f"{invention.title}.",
        "BACKGROUND OF THE INVENTION " + filler_paragraph(rng, invention, BACKGROUND),
        filler_paragraph(rng, invention, BACKGROUND),
        f"SUMMARY OF THE INVENTION The {invention.name} comprises "
        + _listed(
            [f"{_article(part)} {part} {invention.numerals[part]}" for part in invention.parts]
        )
        + ".",
    ]
    body = fact_paragraphs(rng, invention)
    length = sum(map(len, head + body))
    while length < characters:
        paragraph = filler_paragraph(rng, invention)
        body.insert(rng.randrange(len(body) + 1), paragraph)
        length += len(paragraph)
    return [*head, "DETAILED DESCRIPTION", *body]


Defect = Callable[[random.Random, str], str]


def _insert(pattern: str, inserted: Callable[[random.Random], str]) -> Defect:
    """Insert before the first match at or after a random place, or else before the first of all."""

    def plant(rng: random.Random, text: str) -> str:
        start = rng.randrange(len(text) + 1)
        match = re.compile(pattern).search(text, start) or re.search(pattern, text)
        return text[: match.start()] + inserted(rng) + text[match.start() :] if match else text

    return plant


def _one_of(*pieces: str) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(pieces)


_WORD = r"(?<= )[A-Za-z]"

# Numbers of paragraphs come last, and letters of lists before them: nothing may come between them
# and what they number.
ANCHOR_DEFECTS: dict[str, Defect] = {
    "escaped_unicode": _insert(_WORD, _one_of(r"\u2122 ", r"\u00b0 ", r"\u03b1 ")),
    "mojibake": _insert(_WORD, _one_of("20 Â°C ", "naÃ¯ve ", "â€“ ")),
    "html_entities": _insert(_WORD, _one_of("&amp; ", "&#8217; ", "&lt; ", "&nbsp;")),
    "unicode_nfc": _insert(_WORD, _one_of("cafe\u0301 ", "A\u030angstrom ")),
    "invisible_characters": _insert(_WORD, _one_of("\u2062", "\u200b", "\u00ad")),
    "figure_references": _insert(_WORD, lambda rng: f"(FIG. {rng.randrange(1, 13)}) "),
    "trademark_signs": _insert(_WORD, _one_of("\u2122 ", "\u00ae ")),
    "odd_spaces": _insert(_WORD, _one_of("\u00a0", "\u2009", "\t")),
    "space_before_punctuation": _insert(r"(?<=[A-Za-z]), ", _one_of(" ")),
    "list_letters": _insert(r"(?<=[^)] )[A-Za-z]", lambda rng: f"({rng.choice('abcdef')}) "),
    "paragraph_numbers": _insert(r"(?<=\. )[A-Z]", lambda rng: f"[{rng.randrange(1, 200):04d}] "),
}

# and their shares
QUERY_DEFECTS: dict[str, tuple[str, float]] = {
    "stray_comma": (",", 0.1),
    "outer_whitespace": ("\n", 0.2),
}


def plant_in_anchor(rng: random.Random, text: str) -> tuple[str, Counter[str]]:
    """A description with zero to six defects of each kind, and how many of each were planted."""
    planted: Counter[str] = Counter()
    for kind, plant in ANCHOR_DEFECTS.items():
        for _ in range(rng.randrange(7)):
            before, text = text, plant(rng, text)
            planted[kind] += text != before
    return text, planted


def plant_in_query(rng: random.Random, text: str) -> tuple[str, Counter[str]]:
    """A question with the defects of questions' ends in some, and how many of each were planted."""
    planted = Counter(kind for kind, (_, share) in QUERY_DEFECTS.items() if rng.random() < share)
    return text + "".join(QUERY_DEFECTS[kind][0] for kind in planted), planted
