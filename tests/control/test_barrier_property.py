"""Whatever fails, in whatever order: when a wait is done, nobody can act on what was taken away."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from manual_clock import ManualClock
from member_lab import ABROAD, BOTH, HOME, SG, VN, Gateway, Told, World, drain

from mesh.control.changes import Outcome
from mesh.control.standing import BarrierState, Standing
from mesh.types import TenantId

STEPS = [
    ("pin", 3),
    ("allow", 2),
    ("other", 1),
    ("wait", 6),
    ("cut", 2),
    ("heal", 3),
    ("deaf", 1),
    ("slow", 1),
    ("fast", 2),
    ("late", 1),
    ("kill", 1),
    ("lose", 1),
    ("admin_cut", 1),
    ("admin_heal", 2),
    ("drain", 1),
    ("ended", 2),
]
steps = st.lists(
    st.tuples(
        st.sampled_from([name for name, weight in STEPS for _ in range(weight)]),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.3, 1.0, 2.1, 6.0]),
    ),
    min_size=6,
    max_size=16,
)


@dataclass
class Run:
    """Three gateways abroad, and the waits so far."""

    world: World
    tenant: TenantId
    gateways: list[Gateway]
    dead: set[int] = field(default_factory=set)
    waits: list[tuple[Outcome, Told]] = field(default_factory=list)
    done: int = 0

    async def step(self, name: str, which: int, seconds: float) -> None:
        world, gateway = self.world, self.gateways[which]
        match name:
            case "pin":
                outcome = await world.pin(self.tenant, VN)
                if outcome.changed:
                    told = world.wait(outcome, lambda state: self.check(outcome, state))
                    self.waits.append((outcome, told))
            case "allow":
                await world.pin(self.tenant, *BOTH)
            case "other":
                await world.changes.create_tenant(bytes([which] * 16), BOTH, "never")  # type: ignore[arg-type]
            case "cut":
                gateway.link.set_cut(True)
            case "heal":
                gateway.link.set_cut(False)
                gateway.link.keep_late = False
            case "deaf":
                gateway.link._open.clear()
            case "slow":
                gateway.link.arrive.clear()
            case "fast":
                gateway.link.arrive.set()
            case "late":
                gateway.link.keep_late = not gateway.link.keep_late
                for late in gateway.link.late:
                    await late()
            case "kill":
                if which not in self.dead:
                    self.dead.add(which)
                    world.kill(gateway)
            case "lose":
                world.store.lose_answers += 1
            case "admin_cut":
                world.admin.set_cut(True)
            case "admin_heal":
                world.admin.set_cut(False)
            case "drain":
                policy = gateway.book.tenant(self.tenant)
                if policy is not None:
                    gateway.draining[self.tenant] = drain(policy.revision, 3)
                    gateway.membership.changed()
            case "ended":
                gateway.draining.clear()
                gateway.membership.changed()
            case _:
                pass
        await world.clock.advance(seconds)

    def check(self, outcome: Outcome, state: BarrierState) -> None:
        """When a wait is done, at that very moment, nobody acts on an older policy than the change made."""
        if not state.done:
            return
        acknowledged = {member.member for member in state.members if member.standing is Standing.ACKNOWLEDGED}
        for which, gateway in enumerate(self.gateways):
            policy = gateway.book.tenant(self.tenant)
            if which in self.dead or policy is None or policy.revision >= outcome.revision:
                continue
            assert gateway.left_s(self.tenant, SG) == 0
            assert gateway.membership.member not in acknowledged
        self.done += 1


@given(steps, st.sampled_from([0.999, 1.0, 1.001]))
@settings(max_examples=60)
async def test_when_a_wait_is_done_nobody_acts_on_what_was_taken_away(
    script: list[tuple[str, int, float]], raw_rate: float
) -> None:
    async with World(ManualClock(raw_rate)).running() as world:
        run = Run(world, await world.tenant(), [world.gateway(ABROAD, f"gw{n}") for n in (1, 2, 3)])
        world.gateway(HOME, "gw9")
        await world.clock.advance(1)
        for name, which, seconds in script:
            await run.step(name, which, seconds)
        # In the end all is well again, and every wait ends.
        world.admin.set_cut(False)
        for gateway in run.gateways:
            gateway.link.set_cut(False)
            gateway.link.keep_late = False
            gateway.link.arrive.set()
            gateway.draining.clear()
            gateway.membership.changed()
        await run.step("wait", 0, 9.0)
        assert all(told.state.over for _, told in run.waits)
        for which, gateway in enumerate(run.gateways):
            assert which in run.dead or gateway.membership.grant_age_s is not None
            assert which in run.dead or not gateway.membership.went_back_once
