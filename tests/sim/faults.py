"""Fault plans: what breaks, and when, drawn from a seed, and aimed at a rule if that is asked for.

A plan is drawn before the episode begins and is data, so that it can be shown and made smaller. Half of the faults of
a plain plan lie log-uniformly around the pin, the rest are tied to moments of the protocol. `breaker.py` carries it out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sim.aims import AIMS, RHO, Recipe
from sim.moments import After, At, When

WEIGHTS = {
    "cut": 6, "one_way": 3, "flap": 3, "slow": 5, "loss": 2, "reorder": 2, "partition": 2, "pause": 4, "suspend": 1,
    "kill": 2, "power": 1, "slew": 1, "step": 1, "lag": 5, "watch_cut": 1, "compact": 1, "election": 2, "lost_answer": 2,
    "member_off": 1,
}  # fmt: skip
"""How often a plain plan draws each. `restore`, `twin` and `start` are drawn only where they are aimed."""
ON_WIRES = ("cut", "one_way", "flap", "slow", "loss", "reorder")
ON_MACHINES = ("pause", "suspend", "kill", "power", "slew", "step", "partition")
ON_MEMBERS = ("lag", "member_off")
MOMENTS = (
    "grant_sent", "grant_committed", "grant_answered", "change_sent", "change_committed", "ack_sent", "ack_committed",
    "judge_committed", "hop_sent", "hop_arrived", "step_began", "fleet_message", "fence_sent", "fence_confirmed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: What breaks.
        on: Host names: the two ends of a wire (the first is the sender of `one_way`), one machine, one member, or none.
        when: When it begins.
        lasts_s: Until it is mended.
        size: Seconds slower, share lost, rate, seconds stepped, or revisions back, as the kind has it.
    """

    kind: str
    on: tuple[str, ...]
    when: When
    lasts_s: float
    size: float = 0.0


@dataclass(frozen=True)
class Palette:
    """What of an episode may break.

    Attributes:
        wires: Pairs of hosts; one that is named twice breaks twice as often.
        machines: Hosts with programs, likewise.
        members: Hosts of the store.
        roles: What `AIMS` calls `out` (a gateway in a removed jurisdiction), `home` (one that stays), `replica` (that of
            `out`), `admin`, `store` (the member that `out` asks): host names.
        pin_s: About when the pin begins.
        length_s: Of the episode.
    """

    wires: tuple[tuple[str, str], ...]
    machines: tuple[str, ...]
    members: tuple[str, ...]
    roles: dict[str, str]
    pin_s: float
    length_s: float


def draw(seed: object, palette: Palette, aim: str | None = None) -> tuple[Fault, ...]:
    """A plan: hosts' crystals, and either a rule's own faults with one or two others, or two to nine of any kind."""
    rng = random.Random(f"{seed}/faults")
    plan = [
        Fault("rate", (name,), At(0.0), palette.length_s, 1 + rng.uniform(-RHO, RHO))
        for name in dict.fromkeys(palette.machines)
    ]
    if aim is not None:
        plan += [_cook(rng, recipe, palette) for recipe in AIMS[aim] if rng.random() < 0.85]
    count = rng.randint(0, 2) if aim is not None else rng.randint(2, 9)
    plan += [_any(rng, palette) for _ in range(count)]
    return tuple(plan)


def _cook(rng: random.Random, recipe: Recipe, palette: Palette) -> Fault:
    def between(limits: tuple[float, float]) -> float:
        return rng.uniform(*limits)

    on = tuple(palette.roles[role] for role in recipe.on)
    when: When
    if recipe.moment is None:
        when = At(_near(rng, palette))
    else:
        host = palette.roles[recipe.at] if recipe.at else None
        when = After(recipe.moment, rng.randint(*recipe.nth), host, recipe.since, between(recipe.delay_s))
    return Fault(recipe.kind, on, when, between(recipe.lasts_s), between(recipe.size))


def _any(rng: random.Random, palette: Palette) -> Fault:
    kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    on: tuple[str, ...] = ()
    if kind in ON_WIRES:
        on = rng.choice(palette.wires)
        on = on if rng.random() < 0.5 else (on[1], on[0])
    elif kind in ON_MACHINES:
        on = (rng.choice(palette.machines),)
    elif kind in ON_MEMBERS:
        on = (rng.choice(palette.members),)
    when: When
    if rng.random() < 0.5:
        since = rng.choice((None, "change_sent", "change_committed"))
        nth = rng.randint(1, 4) if since else rng.randint(2, 25)
        when = After(rng.choice(MOMENTS), nth, None, since, rng.choice((0.0, 10 ** rng.uniform(-2, 0.5))))
    else:
        when = At(_near(rng, palette) if rng.random() < 0.75 else rng.uniform(3, max(6.0, palette.length_s - 20)))
    # Either short, or about as long as an authority.
    lasts_s = 10 ** rng.uniform(-1.3, 0) if rng.random() < 0.4 else rng.uniform(3, 12)
    size = {
        "slow": 10 ** rng.uniform(-1, 0.7),
        "reorder": 10 ** rng.uniform(-1.5, 0),
        "loss": rng.uniform(0.05, 0.5),
        "slew": rng.choice((0.92, 1.08)),
        "step": rng.choice((-1, 1)) * 10 ** rng.uniform(-1, 2),
        "lag": lasts_s,
    }.get(kind, 0.0)
    return Fault(kind, on, when, lasts_s, size)


def _near(rng: random.Random, palette: Palette) -> float:
    """Log-uniform around the pin, from 30 ms to 10 s, rather before than after."""
    return max(0.0, palette.pin_s + rng.choice((-1, -1, 1)) * 10 ** rng.uniform(-1.5, 1))


def phases(history: list[dict[str, object]]) -> set[tuple[str, str]]:
    """Each fault of an episode with the phase of its first pin in which it began: `before`, `waiting`, `after`."""
    commit, end = (
        next((float(str(line["t"])) for line in history if line["do"] == what), 1e9) for what in ("commit", "returned")
    )
    return {
        (
            str(line["kind"]),
            "before" if float(str(line["t"])) < commit else "waiting" if float(str(line["t"])) < end else "after",
        )
        for line in history
        if line["do"] == "fault"
    }
