"""Which faults, at which moments of the protocol, come close to where leaving a rule out would show.

A rule's name is the protocol's. The ranges are what a seed draws from; roles stand for hosts, as the episode's palette
says.
"""

from __future__ import annotations

from dataclasses import dataclass

RHO = 1e-3


@dataclass(frozen=True)
class Recipe:
    """A fault of a family: ranges that a seed draws from, and roles for hosts."""

    kind: str
    on: tuple[str, ...] = ()
    moment: str | None = None
    at: str | None = None
    since: str | None = None
    nth: tuple[int, int] = (1, 1)
    delay_s: tuple[float, float] = (0.0, 0.0)
    lasts_s: tuple[float, float] = (5.0, 12.0)
    size: tuple[float, float] = (0.0, 0.0)


def _cut_off(**when: object) -> Recipe:
    return Recipe("partition", ("out",), **when)  # pyright: ignore[reportArgumentType]


AIMS: dict[str, tuple[Recipe, ...]] = {
    # An answer to a grant that is long under way, and then silence: authority must count from before it was asked for.
    "t0recv": (
        Recipe("slow", ("store", "out"), "grant_sent", "out", None, (3, 8), lasts_s=(0.5, 4), size=(0.8, 3.5)),
        Recipe("one_way", ("store", "out"), "grant_answered", "out", None, (4, 9), lasts_s=(8, 14)),
    ),
    # A gateway without authority that its replica still hears.
    "live": (
        Recipe("cut", ("out", "store"), "grant_answered", "out", None, (3, 8), (0, 0.5), (9, 15)),
        Recipe("slow", ("out", "replica"), "grant_answered", "out", None, (3, 8), (0, 4), (2, 8), (0.2, 3)),
    ),
    "pauseadmit": (
        Recipe("pause", ("out",), "hop_sent", "out", "change_sent", (1, 2), (0, 0.1), (5, 9)),
        Recipe("pause", ("replica",), "hop_arrived", "replica", None, (10, 60), (0, 0.1), (5, 9)),
    ),
    "pingreuse": (
        Recipe("kill", ("replica",), "ping_sent", "replica", None, (20, 60), (0, 0.3), (0.1, 1)),
        Recipe("slow", ("replica", "out"), "ping_sent", "replica", None, (18, 58), lasts_s=(2, 5), size=(0.5, 3)),
    ),
    "longstep": (
        Recipe("cut", ("out", "store"), "grant_answered", "out", None, (3, 8), (0, 0.5), (9, 15)),
        Recipe("cut", ("out", "replica"), "grant_answered", "out", None, (3, 8), (3, 6), (3, 8)),
    ),
    # A member whose grant is committed beside the change.
    "latemember": (
        Recipe("start", ("out",), "change_sent", None, None, (1, 1), (0, 0.3)),
        Recipe("slow", ("out", "store"), "change_sent", None, None, (1, 1), (0, 0.2), (0.5, 3), (0.1, 1.5)),
        Recipe("cut", ("out", "store"), "grant_answered", "out", "change_sent", (1, 2), (0, 0.3), (7, 12)),
    ),
    "slew": (
        Recipe("slew", ("out",), "grant_sent", "out", None, (1, 3), size=(0.92, 0.92)),
        Recipe("cut", ("out", "store"), "grant_answered", "out", "change_sent", (1, 1), (0, 0.3), (8, 14)),
        Recipe("cut", ("out", "store"), "grant_answered", "out", None, (4, 9), (0, 0.1), (8, 14)),
    ),
    "static": (
        Recipe("step", ("out",), "grant_answered", "out", None, (3, 9), (0, 0.5), size=(-3, 3)),
        Recipe("suspend", ("out",), "grant_answered", "out", None, (3, 9), (0, 0.5), (3, 9)),
        Recipe("cut", ("out", "store"), "grant_answered", "out", None, (3, 9), (0, 0.5), (8, 14)),
    ),
    "shortW": (
        Recipe("rate", ("out",), "grant_sent", "out", None, (1, 1), size=(1 - RHO, 1 - RHO)),
        Recipe("rate", ("admin",), "grant_sent", "out", None, (1, 1), size=(1 + RHO, 1 + RHO)),
        Recipe("cut", ("out", "store"), "grant_committed", None, "change_sent", (1, 2), (0, 0.1), (8, 14)),
    ),
    # A hop that is still on its way when the gateway says that all has ended.
    "fence": (
        Recipe("cut", ("out", "replica"), "hop_sent", "out", "change_sent", (1, 1), lasts_s=(0.5, 4)),
        Recipe("slow", ("out", "replica"), "hop_sent", "out", None, (10, 40), lasts_s=(1, 4), size=(0.5, 3)),
        Recipe("pause", ("replica",), "change_committed", None, None, (1, 1), (0, 0.2), (0.5, 4)),
    ),
    "ackclose": (
        Recipe("pause", ("replica",), "change_sent", None, None, (1, 1), (0, 0.2), (1, 5)),
        Recipe("one_way", ("out", "replica"), "change_sent", None, None, (1, 1), (0, 0.2), (1, 5)),
    ),
    "drainlive": (
        Recipe("cut", ("out", "replica"), "change_committed", None, None, (1, 1), (0, 0.2), (6, 12)),
        Recipe("slow", ("out", "store"), "ack_sent", "out", "change_sent", lasts_s=(4, 10), size=(0.5, 2)),
    ),
    "nodrain": (Recipe("slow", ("out", "replica"), "change_committed", None, None, lasts_s=(2, 8), size=(0.3, 3)),),
    "gap": (
        Recipe("lag", ("store",), "change_sent", None, None, (1, 1), lasts_s=(1, 6), size=(1, 6)),
        Recipe("watch_cut", (), "change_committed", None, None, (1, 1), (0, 0.1)),
        Recipe("compact", (), "change_committed", None, None, (1, 1), (0, 0.2)),
    ),
    "watchonly": (
        Recipe("lag", ("store",), "change_sent", None, None, (1, 1), lasts_s=(4, 12), size=(3, 12)),
        Recipe("one_way", ("out", "store"), "grant_answered", "out", "change_sent", (1, 2), lasts_s=(6, 12)),
    ),
    "exact": (Recipe("lag", ("store",), "change_sent", None, None, (1, 1), lasts_s=(4, 12), size=(1, 6)),),
    # A member that was silent for a while and comes back just before the change.
    "silentearly": (
        Recipe("cut", ("out", "store"), "grant_answered", "out", None, (2, 4), lasts_s=(5, 9)),
        Recipe("cut", ("out", "store"), "grant_answered", "out", None, (4, 6), (0, 0.3), (7, 12)),
    ),
    "twin": (
        Recipe("twin", ("out",), "grant_answered", "out", None, (3, 8), (0, 1.9)),
        Recipe("cut", ("out", "store"), "grant_answered", "out", None, (4, 9), (0, 1), (7, 14)),
    ),
    "sendhome": (
        Recipe("partition", ("home",), "grant_answered", "home", None, (3, 8), (0, 0.5), (8, 14)),
        Recipe("cut", ("home", "store"), "grant_answered", "home", None, (3, 8), (0, 0.5), (8, 14)),
    ),
    "senderdecides": (
        _cut_off(moment="change_sent", delay_s=(0.0, 0.2), lasts_s=(7.0, 12.0)),
        Recipe("slow", ("home", "out"), "peer_sent", "home", None, (3, 20), lasts_s=(2, 8), size=(0.5, 5)),
    ),
    "supersede": (Recipe("slow", ("out", "store"), "change_committed", None, None, lasts_s=(2, 8), size=(0.3, 3)),),
    "newS": (Recipe("cut", ("out", "store"), "change_committed", None, None, (1, 3), (0, 0.1), (8, 20)),),
    "restore": (Recipe("restore", (), "change_committed", None, None, (1, 3), (0, 3), (0.2, 2), (1, 12)),),
    "lostmember": (
        Recipe("restore", (), "grant_committed", None, None, (4, 20), (0, 1), (0.2, 2), (1, 30)),
        Recipe("cut", ("out", "store"), "grant_answered", "out", None, (3, 10), (0, 1), (8, 20)),
    ),
    "lost_answer": (Recipe("lost_answer", (), "change_sent", None, None, (1, 3)),),
}  # fmt: skip
