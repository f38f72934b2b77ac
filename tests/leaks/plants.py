"""Leaks made on purpose: each is one part of the small mesh, replaced by one that a careless change could have made.

None of it patches a module. `IN_PROCESS` and `ALONE` are played here; `IN_SIMULATION` are among the simulation's own
mutants, since they show only when things happen in an unlucky order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leaks import crossing, said
from leaks.parts import Parts
from leaks.traffic import DETECTORS

LEGS, FILES, METRICS, ANSWERS, VOLUME, UNREAD = DETECTORS


@dataclass(frozen=True)
class Leak:
    """A leak.

    Attributes:
        detector: What must find it.
        parts: How the mesh is put together with it.
        everywhere: Whether prompts of every script take it.
    """

    detector: str
    parts: Callable[[], Parts]
    everywhere: bool = True


IN_PROCESS: Mapping[str, Leak] = {
    "a log line takes any field": Leak(FILES, said.LogField),
    "a library's own log, as it comes": Leak(FILES, said.LibraryLog),
    "an exception's text, written down": Leak(FILES, said.ErrorText),
    "a crash dump with variables": Leak(FILES, said.CrashDump),
    "a trace attribute": Leak(FILES, said.SpanAttribute),
    "an exception recorded as a span's event": Leak(FILES, said.SpanEvent),
    "a metric's label": Leak(METRICS, said.MetricLabel),
    "a column of the usage ledger": Leak(FILES, said.UsageColumn),
    "an exception's text in an HTTP answer": Leak(ANSWERS, said.explains("http")),
    "an exception's text in a gRPC status": Leak(ANSWERS, said.explains("grpc")),
    "an unknown model named in an error": Leak(ANSWERS, said.ErrorParameter),
    "an answer kept, and given to another tenant": Leak(ANSWERS, crossing.sends_by(said.Remembers)),
    "a body spooled to a temporary file": Leak(FILES, said.SpooledBody),
    "an access log with path and query": Leak(FILES, said.access_log(lambda r: f"{r.method} {r.path}?{r.query}")),
    "an access log with the credential": Leak(FILES, said.access_log(lambda r: str(r.header(b"authorization")))),
    "the check comes after the body was read": Leak(VOLUME, crossing.ChecksLate, everywhere=False),
    "forwarded without asking the pin": Leak(LEGS, crossing.ForwardsFirst),
    "a stale copy of the policy": Leak(LEGS, crossing.StalePolicy),
    "a retry goes to whatever region answers": Leak(LEGS, crossing.sends_by(crossing.TriesAnywhere)),
    "a packed copy of each call for comparison": Leak(LEGS, crossing.sends_by(crossing.Mirrors)),
    "the same, packed as nobody here can read": Leak(
        UNREAD, crossing.sends_by(crossing.MirrorsUnread), everywhere=False
    ),
    "another tenant's prompt in a hop's header, base64": Leak(LEGS, crossing.sends_by(crossing.Notes)),
    "a border message with an unknown field": Leak(LEGS, crossing.BorderField),
    "token ids in a border message": Leak(LEGS, crossing.BorderNumbers, everywhere=False),
}

ALONE: Mapping[str, Leak] = {
    "a note in a gateway's record in the control store": Leak(FILES, crossing.NotesInStore),
    "a hop that is given up is closed, not reset": Leak(LEGS, crossing.ClosesPolitely, everywhere=False),
}
"""Of parts that the small mesh has no place for; each with a test of its own."""

IN_SIMULATION: Mapping[str, str] = {
    "a key's state is kept after it was revoked": "stalekey",
    "a policy that its home did not sign is taken": "unsigned",
    "an older signed policy is taken again": "replay",
    "the receiver believes what the sender decided": "senderdecides",
    "sent abroad for as long as it may serve at home": "sendhome",
    "a hop that comes late is taken": "fence",
}
"""Leak: the simulation's mutant that makes it."""
