"""Changes that may take something away: asked for once, followed until they hold everywhere, resumed after a cut.

Whoever waits sees a line for each gateway process: what it has acknowledged, what it still drains, until when it may at
the latest act on what it last saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from google.protobuf.message import Message
from rich.live import Live
from rich.text import Text

from mesh.cli.context import Here
from mesh.cli.output import words
from mesh.cli.running import Running, running
from mesh.control.ops import new_op_id
from mesh.errors import Code, MeshError
from mesh.runtime import SystemClock, SystemEntropy
from mesh.types import RegionId
from mesh.v1.admin_pb2 import MemberProgress, MemberState, Patience, ShrinkProgress

AWAY_TRIES = 30
"""How often a change that was asked for is asked for again, a second apart, while its home's admin is away."""
_AGAIN_S = 1.0
_WORDS = {
    MemberState.MEMBER_STATE_WAITING: "has not answered; it may act on what it saw last until {until}",
    MemberState.MEMBER_STATE_DRAINING: "refuses, and ends what runs by {until}",
    MemberState.MEMBER_STATE_ACKNOWLEDGED: "acknowledged",
    MemberState.MEMBER_STATE_LAPSED: "had no authority left",
    MemberState.MEMBER_STATE_TIMED_OUT: "did not answer; its authority has run out",
}
_LISTED = {
    "acked": MemberState.MEMBER_STATE_ACKNOWLEDGED,
    "lapsed": MemberState.MEMBER_STATE_LAPSED,
    "timed_out": MemberState.MEMBER_STATE_TIMED_OUT,
}


class Ask(Protocol):
    """Finds out whom to ask, and for what."""

    def __call__(self, mesh: Running, patience: Patience) -> Awaitable[tuple[RegionId, str, Message]]:
        """The region, the method, and the request."""
        ...


@dataclass(slots=True)
class _Seen:
    """How far it has come, for whoever interrupts it."""

    op_id: str
    asked: bool = False
    progress: ShrinkProgress | None = None
    members: dict[str, MemberProgress] = field(default_factory=dict)
    recovering: bool = False


def change(
    here: Here,
    ask: Ask,
    *,
    resume: str,
    op_id: str | None = None,
    strict: bool = False,
    timeout_s: float | None = None,
    receipt: bool = False,
) -> ShrinkProgress:
    """Makes a change and waits until it holds everywhere.

    Args:
        here: Whose mesh.
        ask: Makes the request.
        resume: The command to go on waiting with, up to the op's id.
        op_id: Of the change that is to be resumed.
        strict: Acknowledgements and attestations only.
        timeout_s: For how long to wait.
        receipt: Whether to have it certified.

    Raises:
        MeshError: What the admin says; DEADLINE_EXCEEDED after `timeout_s`.
    """
    patience = Patience(
        op_id=op_id or new_op_id(SystemClock(), SystemEntropy()),
        strict=strict,
        timeout_ms=0 if timeout_s is None else max(1, int(timeout_s * 1000)),
        receipt=receipt,
    )
    seen = _Seen(patience.op_id)
    try:
        asyncio.run(_follow(here, ask, patience, seen))
    except KeyboardInterrupt:
        _say_what_stands(seen, resume)
        raise
    except MeshError as error:
        if seen.asked and error.code in (Code.DEADLINE_EXCEEDED, Code.REGION_UNREACHABLE):
            _say_what_stands(seen, resume)
        raise
    assert seen.progress is not None  # noqa: S101 - a stream without an answer is an error
    return seen.progress


def waited(progress: ShrinkProgress) -> dict[str, object]:
    """How long it took, and how each member was accounted for."""
    lists: dict[str, object] = {"op_id": progress.op_id, "waited_ms": progress.waited_ms}
    for name, state in _LISTED.items():
        lists[name] = [
            {"region": member.region, "gateway": member.gateway, "member": member.member}
            for member in progress.members
            if member.state == state
        ]
    return lists


async def _follow(here: Here, ask: Ask, patience: Patience, seen: _Seen) -> None:
    async with running(here, here.supervisor.sites(here.home).regions) as mesh:
        region, method, request = await ask(mesh, patience)
        seen.asked = True  # whoever does not answer from here on may have made it
        async with _shown(seen) as show:
            for attempt in range(AWAY_TRIES + 1):
                try:
                    async for progress in mesh.follow(region, method, request, ShrinkProgress):
                        show(progress)
                    _check_done(seen)
                except MeshError as error:
                    # Until it is known to be made nobody waits for an admin that is away; then it is only asked again.
                    if error.code is not Code.REGION_UNREACHABLE or seen.progress is None or attempt == AWAY_TRIES:
                        raise
                else:
                    return
                if attempt == 0:
                    words().print("The home's admin is away; the change is made. Asking again …", style="yellow")
                await asyncio.sleep(_AGAIN_S)


def _check_done(seen: _Seen) -> None:
    if seen.progress is None or not seen.progress.done:
        raise MeshError(Code.REGION_UNREACHABLE)


@asynccontextmanager
async def _shown(seen: _Seen) -> AsyncGenerator[Callable[[ShrinkProgress], None]]:
    """Shows progress on stderr: live lines on a terminal, else a line for each change."""
    console = words()

    def take(progress: ShrinkProgress) -> Mapping[str, MemberProgress]:
        before, seen.progress = seen.members, progress
        seen.members = {member.member: member for member in progress.members}
        return before

    if not console.is_terminal:

        def tell(progress: ShrinkProgress) -> None:
            before = take(progress)
            waits = seen.recovering
            seen.recovering = progress.recovery_left_ms > 0
            if seen.recovering and not waits:
                console.print(_recovery(progress))
            for member in progress.members:
                known = before.get(member.member)
                if known is None or known.state != member.state:
                    console.print(_line(member))

        yield tell
        return
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def draw(progress: ShrinkProgress) -> None:
            take(progress)
            lines = [_line(member) for member in progress.members]
            if progress.recovery_left_ms:
                lines.append(_recovery(progress))
            live.update(Text("\n").join(lines), refresh=True)

        yield draw


def _recovery(progress: ShrinkProgress) -> Text:
    text = "The control store was restored: who else may act on what was is not known, so this waits until {until}"
    return Text(text.format(until=_until(progress.recovery_left_ms)), style="yellow")


def _until(left_ms: int) -> str:
    return (datetime.now() + timedelta(milliseconds=left_ms)).strftime("%H:%M:%S")  # noqa: DTZ005 - a person's own clock


def _line(member: MemberProgress) -> Text:
    until = _until(member.left_ms)
    done = member.state in _LISTED.values()
    style = "green" if member.state == MemberState.MEMBER_STATE_ACKNOWLEDGED else "dim" if done else "yellow"
    text = _WORDS.get(member.state, "is not accounted for yet").format(until=until)
    return Text(f"{member.region}  {member.gateway}  {member.member[:8]}  {text}", style=style)


def _say_what_stands(seen: _Seen, resume: str) -> None:
    console = words()
    if seen.progress is None:
        console.print("It is not known whether the change was made. To find out, and wait for it:", style="yellow")
    else:
        held = [member for member in seen.members.values() if member.state in _LISTED.values()]
        console.print(
            f"The change is made and stays: {len(held)} of {len(seen.members)} gateway processes are accounted for, "
            "and whoever knows of it refuses. That it holds everywhere is not promised yet. To go on waiting:",
            style="yellow",
        )
    console.print(f"  {resume} --resume {seen.op_id}", soft_wrap=True)
