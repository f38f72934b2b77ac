"""What operators want in an episode, and when, as a seed draws it; and what clients do meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from sim.admin import Order
from sim.faults import Fault, Palette
from sim.load import Load
from sim.moments import After, At, When
from sim.moving import SG, TEN, VN

Plan = tuple[Fault, ...]
Drawn = tuple[list[Order], Load, Plan]
Script = Callable[[random.Random, Plan], Drawn]


def orders_of(rng: random.Random, aim: str | None, palette: Palette, plan: Plan) -> Drawn:
    """The orders, the load and the faults of an episode."""
    script = SCRIPTS.get(aim or "")
    if script is not None:
        return script(rng, plan)
    if rng.random() < 0.15:
        leave = Fault("leave", (rng.choice((palette.roles["out"], palette.roles["home"])),), _when(rng, palette), 8.0)
        plan = (*plan, leave)
    return _any(rng, _when(rng, palette)), Load(), plan


def _when(rng: random.Random, palette: Palette) -> When:
    """About when a pin begins; half of them soon after a grant."""
    if rng.random() < 0.6:
        return At(palette.pin_s)
    return After("grant_answered", rng.randint(5, 7), palette.roles["out"], None, rng.uniform(0.0, 2.0))


def _any(rng: random.Random, when: When) -> list[Order]:
    kind = rng.choices(("pin", "suspend", "revoke", "authority"), (62, 12, 14, 12))[0]
    drain_s = rng.choice((0.0, 0.0, rng.uniform(0.5, 3.0), 11.0))
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


OUT, HOME, REPLICA, STORE = "gw-sg", "gw-vn", "replica", "etcd-ap-southeast-1"
_STORES = ("etcd-vn-1", "etcd-ap-southeast-1", "etcd-ap-northeast-1")
_LONG = Load(out_s=0.35, long=0.7, steps=40, slow=0.1)
_OFTEN = Load(out_s=0.15, long=0.2, slow=0.1)


def _alone(name: str, when: When, lasts_s: float) -> Plan:
    """A host from the whole store."""
    return tuple(Fault("cut", (name, store), when, lasts_s) for store in _STORES)


def _granted(nth: int, delay_s: float = 0.0, host: str = OUT) -> After:
    return After("grant_answered", nth, host, None, delay_s)


def _rates(plan: Plan) -> Plan:
    return tuple(fault for fault in plan if fault.kind == "rate")


def _cut_at_grant(rng: random.Random, host: str = OUT) -> tuple[After, Plan]:
    """A gateway that hears nothing after a grant, from just before the change on."""
    nth = rng.randint(5, 6)
    return _granted(nth, rng.uniform(0, 0.02), host), _alone(host, _granted(nth, 0.0, host), rng.uniform(9, 14))


def _t0recv(rng: random.Random, plan: Plan) -> Drawn:
    nth = rng.randint(5, 6)
    lag = Fault("lag", (STORE,), _granted(nth - 1, rng.uniform(0.3, 1.2)), 6.0, rng.uniform(0.8, 1.25))
    pin = Order("pin", After("grant_committed", nth, OUT, None, rng.uniform(0, 0.3)))
    return [pin], _OFTEN, (*_rates(plan), lag, *_alone(OUT, _granted(nth), rng.uniform(9, 14)))


def _tight(load: Load) -> Script:
    def script(rng: random.Random, plan: Plan) -> Drawn:
        when, cut = _cut_at_grant(rng)
        return [Order("pin", when)], load, (*_rates(plan), *cut)

    return script


def _slew(rng: random.Random, plan: Plan) -> Drawn:
    when, cut = _cut_at_grant(rng)
    slew = Fault("slew", (OUT,), _granted(2), 25.0, 0.92)
    return [Order("pin", when)], _OFTEN, (*_rates(plan), slew, *cut)


def _static(rng: random.Random, plan: Plan) -> Drawn:
    when, cut = _cut_at_grant(rng)
    freeze = Fault("freeze", (OUT,), replace(when, delay_s=when.delay_s + rng.uniform(0, 0.5)), rng.uniform(6.5, 9))
    return [Order("pin", when)], _OFTEN, (*_rates(plan), freeze, *cut)


def _one_wire(load: Load) -> Script:
    """The watch is stuck, while grants find another member."""

    def script(rng: random.Random, plan: Plan) -> Drawn:
        began_s = rng.uniform(0.6, 1.2)  # soon after a keepalive of the watch, so that it is not missed for long
        cut = Fault("cut", (OUT, STORE), _granted(6, began_s), rng.uniform(9, 14))
        return [Order("pin", _granted(6, began_s + rng.uniform(0, 0.3)))], load, (*_rates(plan), cut)

    return script


def _sendhome(rng: random.Random, plan: Plan) -> Drawn:
    when, cut = _cut_at_grant(rng, HOME)
    return [Order("pin", when)], Load(out_s=2.0, home_s=0.25), (*_rates(plan), *cut)


def _latemember(rng: random.Random, plan: Plan) -> Drawn:
    start = Fault("start", (OUT,), At(12.0 - rng.uniform(0.4, 1.5)), 30.0)
    cut = _alone(OUT, After("change_sent", 1), rng.uniform(7, 12))
    return [Order("pin", At(12.0))], _OFTEN, (*_rates(plan), start, *cut)


def _twin(rng: random.Random, plan: Plan) -> Drawn:
    twin = Fault("twin", (OUT,), _granted(2, rng.uniform(0, 1.9)), 30.0)
    cut = _alone("gw-twin", After("change_sent", 1), 12.0)
    load = replace(_OFTEN, also=("gw-twin",))
    return [Order("pin", At(12.0 + rng.uniform(0, 2)))], load, (*_rates(plan), twin, *cut)


def _drains(rng: random.Random, plan: Plan) -> Drawn:
    return [Order("pin", At(11.0 + rng.random()), drain_s=11.0)], _LONG, plan


def _cumulative(rng: random.Random, plan: Plan) -> Drawn:
    first = Order("pin", At(11.0 + rng.random()), drain_s=11.0)
    again = Order("again", After("change_committed", 1, None, None, rng.uniform(0.3, 0.8)))
    return [first, again, Order("pin", after_s=rng.uniform(0.1, 0.4), drain_s=11.0)], _LONG, _rates(plan)


def _slow_replica(begin: Callable[[random.Random], When], load: Load) -> Script:
    def script(rng: random.Random, plan: Plan) -> Drawn:
        when, cut = _cut_at_grant(rng)
        slow = Fault("slow", (OUT, REPLICA), begin(rng), 20.0, rng.uniform(1.0, 2.0))
        return [Order("pin", when)], load, (*_rates(plan), slow, *cut)

    return script


def _on_the_way(sender: str, to: str, sent: str, rng: random.Random) -> Plan:
    """What is sent while a change is made comes late, and the reset after it is lost."""
    slow = Fault("slow", (sender, to), After("chunk_sent", 1, sender, "change_sent"), 0.005, rng.uniform(0.8, 2.0))
    lost = Fault("one_way", (sender, to), After(sent, 1, sender, "change_sent"), rng.uniform(0.08, 0.16))
    return slow, lost


def _fence(rng: random.Random, plan: Plan) -> Drawn:
    load = replace(_OFTEN, out_s=0.08, long=0.0, slow=0.0)
    return [Order("pin", At(12.0 + rng.random()))], load, (*_rates(plan), *_on_the_way(OUT, REPLICA, "hop_sent", rng))


def _pauseadmit(rng: random.Random, plan: Plan) -> Drawn:
    when, cut = _cut_at_grant(rng)
    slow = Fault("slow", (OUT, REPLICA), replace(when, delay_s=rng.uniform(0, 1.0)), 20.0, rng.uniform(0.8, 1.3))
    lost = Fault("one_way", (OUT, REPLICA), After("hop_sent", rng.randint(1, 3), OUT, "change_committed"), 15.0)
    return [Order("pin", when)], replace(_LONG, slow=0.0), (*_rates(plan), slow, lost, *cut)


def _ackclose(rng: random.Random, plan: Plan) -> Drawn:
    slow = Fault("slow", (OUT, REPLICA), After("change_sent", 1), 4.0, rng.uniform(0.6, 2.0))
    return [Order("pin", At(12.0 + rng.random()))], _LONG, (*_rates(plan), slow)


def _pingreuse(rng: random.Random, plan: Plan) -> Drawn:
    """A life of a replica that is too short for more than a ping; then hops that name it reach the next life.

    They do so before the gateway hears of that life, and it stands still before it could take them back.
    """
    when, cut = _cut_at_grant(rng)
    born_s = rng.uniform(0.3, 0.9)
    gone_s, down_s, slow_s = born_s + rng.uniform(0.35, 0.95), rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.8)
    stands_s = gone_s + down_s + rng.uniform(1.0, 3.0) * slow_s
    born = Fault("kill", (REPLICA,), _granted(when.nth, born_s), 0.1)
    gone = Fault("power", (REPLICA,), _granted(when.nth, gone_s), down_s)
    slow = Fault("slow", (OUT, REPLICA), _granted(when.nth, gone_s - 0.02), 15.0, slow_s)
    stands = Fault("pause", (OUT,), _granted(when.nth, stands_s), 12.0)
    load = replace(_LONG, out_s=0.12, long=0.9, slow=0.0)
    return [Order("pin", when)], load, (*_rates(plan), born, gone, slow, stands, *cut)


def _raised(at: float = 3.0) -> Order:
    return Order("authority", At(at), spans=(12.0, 12.0))


def _lowerack(rng: random.Random, plan: Plan) -> Drawn:
    lower = Order("authority", At(9.0 + rng.random()), spans=(12.0, 3.0))
    cut = Fault("one_way", (OUT, REPLICA), After("change_sent", 2), 14.0)
    alone = _alone(OUT, After("change_committed", 3), 15.0)
    pin = Order("pin", after_s=rng.uniform(0.0, 0.2))
    return [_raised(), lower, pin], _LONG, (*_rates(plan), cut, *alone)


def _new_s(rng: random.Random, plan: Plan) -> Drawn:
    lower = Order("authority", At(8.0 + rng.random()), spans=(12.0, 3.0))
    alone = _alone(OUT, After("change_sent", 2), 20.0)
    pin = Order("pin", After("change_committed", 2, None, None, rng.uniform(0.1, 1.0)))
    return [_raised(), lower, pin], _OFTEN, (*_rates(plan), *alone)


def _chain_s(rng: random.Random, plan: Plan) -> Drawn:
    lower = Order("authority", At(8.0 + rng.random()), spans=(12.0, 6.0))
    again = Order("authority", After("change_committed", 2, None, None, rng.uniform(0.2, 0.5)), spans=(12.0, 3.0))
    pin = Order("pin", After("change_committed", 3, None, None, rng.uniform(0.2, 0.5)))
    return [_raised(), lower, again, pin], _OFTEN, (*_rates(plan), *_alone(OUT, After("change_sent", 2), 20.0))


def _senderdecides(rng: random.Random, plan: Plan) -> Drawn:
    load = Load(out_s=2.0, home_s=0.05, long=0.0, slow=0.0, since_s=10.0)
    return [Order("pin", At(12.0 + rng.random()))], load, (*_rates(plan), *_on_the_way(HOME, OUT, "peer_sent", rng))


def _gap(rng: random.Random, plan: Plan) -> Drawn:
    lost = Fault("lost_event", (STORE,), After("change_committed", 1), 0.0)
    churn = Order("churn", After("change_committed", 1, None, None, rng.uniform(0.1, 1.5)))
    return [Order("pin", At(12.0 + rng.random())), churn], _OFTEN, (*_rates(plan), lost)


def _intruder(kind: str) -> Script:
    def script(rng: random.Random, plan: Plan) -> Drawn:
        fault = Fault(kind, (STORE,), After("returned", 1, None, None, rng.uniform(0.0, 3.0)), 0.0)
        return [Order("pin", At(12.0 + rng.random()))], Load(), (*plan, fault)

    return script


def _restore(rng: random.Random, plan: Plan) -> Drawn:
    fault = Fault("restore", (), After("returned", 1, None, None, rng.uniform(0.0, 3.0)), 0.0, rng.uniform(8, 25))
    return [Order("pin", At(12.0 + rng.random()))], Load(), (*_rates(plan), fault)


def _lostmember(rng: random.Random, plan: Plan) -> Drawn:
    """A gateway that came after the backup, and that nobody reaches: the restored store does not know it."""
    began_s = 8.0 + rng.random()
    start = Fault("start", (OUT,), At(began_s), 30.0)
    alone = _alone(OUT, At(began_s + 2.4), 20.0)
    restore = Fault("restore", (), At(began_s + 2.5), 0.0, rng.uniform(8, 12))
    recover = Fault("recover", (OUT,), At(began_s + 2.7), 0.0)
    orders = [_raised(), Order("recover", At(began_s + 3.0)), Order("pin")]
    return orders, _LONG, (*_rates(plan), start, *alone, restore, recover)


def _silentearly(rng: random.Random, plan: Plan) -> Drawn:
    first = _alone(OUT, _granted(2, rng.uniform(0, 0.2)), rng.uniform(8.0, 9.5))
    pin = Order("pin", _granted(4, rng.uniform(0, 0.1)))
    return [pin], _OFTEN, (*_rates(plan), *first, *_alone(OUT, _granted(4), 12.0))


def _supersede(rng: random.Random, plan: Plan) -> Drawn:
    when, cut = _cut_at_grant(rng)
    again = Order("again", After("change_committed", 1, None, None, rng.uniform(0.3, 3.0)))
    return [Order("pin", when), again], Load(), (*_rates(plan), *cut)


def _sweepshort(rng: random.Random, plan: Plan) -> Drawn:
    alone = _alone(OUT, At(rng.uniform(7.5, 9.5)), 15.0)
    return [_raised(), Order("pin", At(15.4 + rng.random()))], _OFTEN, (*_rates(plan), *alone)


def _sweeprec(rng: random.Random, plan: Plan) -> Drawn:
    first = _alone(OUT, _granted(2), rng.uniform(16.0, 17.6))
    slow = Fault("slow", ("admin-sg", STORE), After("grant_sent", 1, "admin-sg"), 3.0, 1.5)
    pin = Order("pin", After("grant_sent", 1, "admin-sg", None, 1.65))
    return [pin], _OFTEN, (*_rates(plan), *first, slow, *_alone(OUT, _granted(4), 9.0))


def _attestearly(rng: random.Random, plan: Plan) -> Drawn:
    began_s = rng.uniform(10.0, 12.0)
    cut = Fault("one_way", (OUT, REPLICA), At(began_s), 14.0)
    kill = Fault("kill", (OUT,), At(began_s + 0.1), 0.3)
    return [Order("pin", At(began_s + rng.uniform(1.0, 2.5)))], _LONG, (*_rates(plan), cut, kill)


def _op_last(rng: random.Random, plan: Plan) -> Drawn:
    kill = Fault("kill", ("admin",), After("change_committed", 1), rng.uniform(0.1, 0.6))
    again = Order("again", After("change_committed", 1, None, None, rng.uniform(0.0, 0.3)))
    return [Order("pin", At(12.0 + rng.random())), again], Load(out_s=1.0), (*_rates(plan), kill)


def _revoke(rng: random.Random, plan: Plan) -> Drawn:
    return [Order("revoke", At(11.0 + rng.random()))], Load(), plan


def _lie(*kinds: str, moves: bool = True, again: float = 0.0) -> Script:
    """Somebody puts a record that lies about the tenant's home, once it has been pinned; with `again`, before a restart."""

    def script(rng: random.Random, plan: Plan) -> Drawn:
        lie = Fault(rng.choice(kinds), (STORE,), After("returned", 1, None, None, rng.uniform(0.0, 2.0)), 0.0)
        faults = [*_rates(plan), lie]
        if again:
            faults.append(Fault("kill", (OUT,), After("returned", 1, None, None, 2.0 + rng.uniform(0.0, again)), 0.2))
        orders = [Order("move", At(7.0 + rng.random()), to=(TEN,))] if moves else []
        return [*orders, Order("pin", At(12.0 + rng.random()))], _OFTEN, tuple(faults)

    return script


def _both_homes_s(rng: random.Random, plan: Plan) -> Drawn:
    """The gateway in the old home's country hears of nothing from just before the move on, and serves by the longer S."""
    nth = rng.randint(4, 5)
    move = Order("move", _granted(nth, rng.uniform(0, 0.05), HOME), to=(SG,))
    pin = Order("pin", After("leave_committed", 1, None, None, rng.uniform(0, 0.3)))
    load = Load(out_s=2.0, home_s=0.2, long=0.2, slow=0.1, home_model="chat")
    return [move, pin], load, (*_rates(plan), *_alone(HOME, _granted(nth, 0.0, HOME), 20.0))


def _both_shards(rng: random.Random, plan: Plan) -> Drawn:
    """The new home lowers S before the move is over. The gateway in the old one's country knows of the move, and not of that."""
    move, left = Order("move", At(7.0 + rng.random()), to=(SG,)), After("leave_committed")
    lower = Order("authority", replace(left, delay_s=rng.uniform(0.0, 0.1)), spans=(3.0, 3.0))
    pin = Order("pin", replace(left, delay_s=rng.uniform(2.5, 3.5)))
    slow = Fault("slow", ("admin", "operators"), After("leave_sent"), 3.0, rng.uniform(0.5, 1.0))
    alone = _alone(HOME, replace(left, delay_s=rng.uniform(0.15, 0.3)), 20.0)
    load = Load(out_s=2.0, home_s=0.2, long=0.2, slow=0.1, home_model="chat")
    return [_raised(), move, lower, pin], load, (*_rates(plan), slow, *alone)


def _late_question(rng: random.Random, plan: Plan) -> Drawn:
    """What began a move is asked once more in the midst of the next, by which the tenant goes on, suspended; a gateway starts."""
    suspend = Order("suspend", After("move_over", 1, None, None, rng.uniform(0.0, 0.5)))
    on = Order("move", After("returned", 1, None, None, rng.uniform(0.0, 1.0)), to=(SG,))
    left = After("leave_committed", 2)
    late = Order("late", replace(left, delay_s=rng.uniform(0.0, 0.3)), to=(TEN, VN))
    slow = Fault("slow", ("operators", "admin-sg"), left, 3.0, rng.uniform(0.4, 0.8))
    kill = Fault("kill", (OUT,), replace(left, delay_s=rng.uniform(0.6, 1.5)), 0.3)
    return [Order("move", At(6.5 + rng.random()), to=(TEN,)), suspend, on, late], _OFTEN, (*_rates(plan), slow, kill)


def _overtaken(rng: random.Random, plan: Plan) -> Drawn:
    """While the old home waits, the tenant moves, and the new home gives back what was taken."""
    when, cut = _cut_at_grant(rng)
    do, back = rng.choice((("pin", "again"), ("suspend", "resume")))
    move = Order("move", After("change_committed", 1, None, None, rng.uniform(0.1, 1.5)), to=(TEN,))
    given = Order(back, After("leave_committed", 1, None, None, rng.uniform(0.0, 2.0)))
    return [Order(do, when), move, given], Load(), (*_rates(plan), *cut)


def _restored_move(rng: random.Random, plan: Plan) -> Drawn:
    """The store goes back to before the old home's last word."""
    move = Order("move", At(7.0 + rng.random()), to=(TEN,) if rng.random() < 0.5 else (TEN, VN))
    fault = Fault("restore", (), After("returned", 1, None, None, rng.uniform(0.0, 3.0)), 0.0, rng.uniform(8, 60))
    return [move, Order("pin", At(12.0 + rng.random()))], _OFTEN, (*_rates(plan), fault)


def _recovered_move(rng: random.Random, plan: Plan) -> Drawn:
    """The same, in any step of a move, and every home publishes anew what its ledger has."""
    moment = rng.choice(("prepare_committed", "leave_committed", "finish_sent", "returned", "returned"))
    at = After(moment, 1, None, None, rng.choice((0.0, rng.uniform(0.0, 1.0))))
    restore = Fault("restore", (), at, 0.0, rng.uniform(2, 40))
    recover = Fault("recover", ("",), replace(at, delay_s=at.delay_s + 0.3), 0.0)
    orders = [Order("move", At(6.5 + rng.random()), to=(TEN,)), Order("pin", At(9.0 + rng.random()))]
    declared = replace(at, delay_s=at.delay_s + 0.6)
    orders += [Order("recover", declared), Order("pin", replace(at, delay_s=at.delay_s + rng.uniform(1.5, 3.0)))]
    return orders, _OFTEN, (*_rates(plan), restore, recover)


def _missed(rng: random.Random, plan: Plan) -> Drawn:
    """A gateway is not told of one step of a move, and the new home pins."""
    moment = rng.choice(("prepare_committed", "leave_committed", "leave_committed", "finish_sent"))
    lost = Fault("lost_event", (STORE,), After(moment, 1, None, None, 0.0), 0.0)
    lag = Fault("lag", (STORE,), After("leave_sent"), rng.uniform(1, 6), rng.uniform(0.5, 6))
    pin = Order("pin", After("leave_committed", 1, None, None, rng.uniform(0.0, 1.0)))
    return [Order("move", At(11.0 + rng.random()), to=(TEN,)), pin], _OFTEN, (*_rates(plan), rng.choice((lost, lag)))


SERVED_AT_HOME = ("both homes' S", "both shards")
"""Aims that need a replica in the country of the first home."""
SCRIPTS: dict[str, Script] = {
    "t0recv": _t0recv,
    "watchonly": _one_wire(_OFTEN),
    "jumpack": _one_wire(_OFTEN),
    "slew": _slew,
    "static": _static,
    "sendhome": _sendhome,
    "latemember": _latemember,
    "twin": _twin,
    "nodrain": _drains,
    "drainlive": _drains,
    "cumulative": _cumulative,
    "live": _slow_replica(lambda rng: At(rng.uniform(7, 9)), _LONG),
    "pauseadmit": _pauseadmit,
    "pingreuse": _pingreuse,
    "longstep": _tight(_LONG),
    "shortW": _tight(_OFTEN),
    "fence": _fence,
    "ackclose": _ackclose,
    "lowerack": _lowerack,
    "newS": _new_s,
    "chainS": _chain_s,
    "senderdecides": _senderdecides,
    "gap": _gap,
    "replay": _intruder("replay"),
    "unsigned": _intruder("forge"),
    "restore": _restore,
    "lostmember": _lostmember,
    "silentearly": _silentearly,
    "supersede": _supersede,
    "sweepshort": _sweepshort,
    "sweeprec": _sweeprec,
    "attestearly": _attestearly,
    "op-last": _op_last,
    "ledgerlate": _revoke,
    "stalekey": _revoke,
    "unsigned move": _lie("usurp", "claim", moves=False),
    "movefallback": _lie("spoil", "relapse", again=2.0),
    "fork": _lie("fork"),
    "both homes' S": _both_homes_s,
    "both shards": _both_shards,
    "late question": _late_question,
    "last word": _lie("relapse", "usurp", "claim", again=4.0),
    "overtaken by a move": _overtaken,
    "restored move": _restored_move,
    "recovered move": _recovered_move,
    "missed move": _missed,
}
"""Orders, load and faults of seeds that are aimed at a rule: all that must come together for it to show."""
