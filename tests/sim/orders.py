"""What operators want in an episode, and when, as a seed draws it; and what clients do meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable

from sim.admin import Order
from sim.faults import Fault, Palette
from sim.load import Load
from sim.moments import After, At, When

Plan = tuple[Fault, ...]
Drawn = tuple[list[Order], Load, Plan]


def orders_of(rng: random.Random, aim: str | None, palette: Palette, plan: Plan) -> Drawn:
    """The orders, the load and the faults of an episode."""
    script = SCRIPTS.get(aim or "")
    if script is not None:
        return script(rng, plan)
    return _any(rng, _when(rng, palette)), Load(), plan


def _when(rng: random.Random, palette: Palette) -> When:
    """About when a pin begins; half of them soon after a grant."""
    if rng.random() < 0.6:
        return At(palette.pin_s)
    return After("grant_answered", rng.randint(5, 7), palette.roles["out"], None, rng.uniform(0.0, 2.0))


def _any(rng: random.Random, when: When) -> list[Order]:
    kind = rng.choices(("pin", "suspend", "revoke", "authority"), (62, 12, 14, 12))[0]
    drain_s = rng.choice((0.0, 0.0, rng.uniform(0.5, 3.0), 15.0))
    orders = [Order(kind, when, drain_s=drain_s)]
    if kind == "authority":
        orders = [Order(kind, when, spans=(rng.uniform(6, 12), rng.uniform(3, 5)))]
        orders.append(Order("pin", after_s=rng.uniform(0.0, 2.0), drain_s=drain_s))
    if rng.random() < 0.15:  # somebody changes their mind while it is waited for
        back = "resume" if kind == "suspend" else "again"
        orders.append(Order(back, After("change_committed", 1, delay_s=rng.uniform(0.05, 4.0))))
    elif rng.random() < 0.4:
        orders.append(Order("resume" if kind == "suspend" else "again", after_s=rng.uniform(0.2, 3.0)))
    if orders[-1].do in ("again", "resume"):
        orders.append(Order("pin", after_s=rng.uniform(0.2, 3.0), drain_s=rng.choice((0.0, 2.0))))
    if rng.random() < 0.1:
        orders += [Order("churn", At(6.0 + at * 0.9), count=at) for at in range(15)]
    return orders


SCRIPTS: dict[str, Callable[[random.Random, Plan], Drawn]] = {}
"""Of aims that need orders or a load of their own."""
