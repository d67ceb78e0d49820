"""Two other trades with a language of their own: what continued fine-tuning learns.

Each has a small grammar in which a later sentence follows from an earlier one (the sails from the
wind, the penalty from the offence), so a model that learns it beats one that knows the words only.
"""

import random
import re
from collections.abc import Callable

from course_utils.errors import DataError

# Ship's log -------------------------------------------------------------------------------------
VESSELS = ("brig", "schooner", "frigate", "sloop")
SHIP_NAMES = ("heron", "gannet", "petrel", "curlew")
WINDS = ("northerly", "southerly", "easterly", "westerly")
# weather -> (what the sails do, leagues sailed from..to, how the day ends)
WEATHER = {
    "dead calm": ("all canvas hung slack.", (0, 4), "crew idle."),
    "brisk breeze": ("we set the topsails.", (10, 20), "all well aboard."),
    "howling gale": ("we reefed the mainsail.", (21, 30), "pumps manned until dawn."),
}
# what is sighted -> what is done
SIGHTINGS = {
    "an islet": "we took bearings.",
    "a lighthouse": "we took bearings.",
    "a reef": "we tacked at once.",
    "a whaler": "we hoisted the ensign.",
    "a merchantman": "we hoisted the ensign.",
    "driftwood": "we held our course.",
}
SIDES = ("port bow", "starboard bow", "port quarter", "starboard quarter")
WATCH = ("bosun", "helmsman", "gunner")
CHORES = (
    "the bosun spliced the rigging.",
    "the carpenter caulked the hull.",
    "the purser counted the casks.",
    "the gunner greased the cannon.",
)
_SHIP_LINES = (
    "log of the {vessel} {name}.",
    "day {day} at sea.",
    "{wind} {weather}.",
    "we logged {leagues} leagues.",
    "at {bells} bells the {watch} sighted {sight} off the {side}.",
)

# Court record -----------------------------------------------------------------------------------
SURNAMES = ("ashby", "thorne", "mercer", "holloway", "brandt", "pike")
TRADES = ("miller", "weaver", "drover", "brewer", "chandler", "cobbler")
WITNESSES = ("constable", "bailiff", "innkeeper", "parson")
# offence -> (what the witness saw, the penalty)
OFFENCES = {
    "trespass": ("he crossed the hedge", "he owes {n} shillings."),
    "poaching": ("he snared the hare", "he owes {n} shillings."),
    "forgery": ("he altered the deed", "he serves {n} months in gaol."),
    "perjury": ("he swore falsely", "he serves {n} months in gaol."),
    "larceny": ("he pocketed the purse", "he is exiled for {n} years."),
    "smuggling": ("he hid the brandy", "he is exiled for {n} years."),
}
# plea or ruling -> (what is said, whether the prisoner is punished)
RULINGS = {
    "confessed": ("the prisoner pleads guilty. no jury was sworn.", True),
    "overruled": ("the prisoner pleads innocent. objection overruled. the jury convicts.", True),
    "sustained": ("the prisoner pleads innocent. objection sustained. the jury acquits.", False),
}
_COURT_LINES = (
    "court record, session {n}.",
    "the crown against {surname}, {trade}.",
    "the charge is {offence}.",
    "the {witness} testified under oath that {saw}.",
    "the prisoner is discharged.",
    "the clerk sealed the record.",
)


def ship_log(rng: random.Random) -> str:
    """One day at sea, about 45 words."""
    weather = rng.choice(list(WEATHER))
    sails, leagues, end = WEATHER[weather]
    sight = rng.choice(list(SIGHTINGS))
    title, day, wind, logged, sighted = _SHIP_LINES
    return " ".join(
        (
            title.format(vessel=rng.choice(VESSELS), name=rng.choice(SHIP_NAMES)),
            day.format(day=rng.randint(1, 30)),
            wind.format(wind=rng.choice(WINDS), weather=weather),
            sails,
            logged.format(leagues=rng.randint(*leagues)),
            sighted.format(
                bells=rng.randint(1, 8),
                watch=rng.choice(WATCH),
                sight=sight,
                side=rng.choice(SIDES),
            ),
            SIGHTINGS[sight],
            rng.choice(CHORES),
            end,
        )
    )


def court_record(rng: random.Random) -> str:
    """One trial, about 45 words."""
    offence = rng.choice(list(OFFENCES))
    saw, penalty = OFFENCES[offence]
    ruling, punished = RULINGS[rng.choice(list(RULINGS))]
    title, case, charge, testimony, discharged, seal = _COURT_LINES
    return " ".join(
        (
            title.format(n=rng.randint(1, 30)),
            case.format(surname=rng.choice(SURNAMES), trade=rng.choice(TRADES)),
            charge.format(offence=offence),
            testimony.format(witness=rng.choice(WITNESSES), saw=saw),
            ruling,
            penalty.format(n=rng.randint(2, 14)) if punished else discharged,
            seal,
        )
    )


DOMAINS: dict[str, Callable[[random.Random], str]] = {"ship": ship_log, "court": court_record}


def domain_corpus(name: str, n: int, seed: int = 0) -> list[str]:
    """`n` documents of a domain: plain text without chat tokens; another seed, other documents."""
    if name not in DOMAINS:
        raise DataError(f'unknown domain "{name}": the world has {", ".join(DOMAINS)}')
    rng = random.Random(f"{name}:{seed}")
    return [DOMAINS[name](rng) for _ in range(n)]


def vocabulary() -> set[str]:
    """Every word and number that a document of a domain can contain."""
    texts = (
        *(*VESSELS, *SHIP_NAMES, *WINDS, *SIDES, *WATCH, *CHORES, *_SHIP_LINES),
        *(*WEATHER, *SIGHTINGS, *SIGHTINGS.values()),
        *(text for sails, _, end in WEATHER.values() for text in (sails, end)),
        *(*SURNAMES, *TRADES, *WITNESSES, *OFFENCES, *_COURT_LINES),
        *(text for pair in OFFENCES.values() for text in pair),
        *(text for text, _ in RULINGS.values()),
    )
    words = re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", " ".join(texts)))
    return {*words, *(str(number) for number in range(31))}
