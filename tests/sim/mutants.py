"""The protocol with one rule left out, for each rule that the code can express: a part of an episode is replaced.

None of it patches a module: each is a variant (`variants/`) of an object that the episode is put together from, so what
is found is found in the product's own code around it. `NOT_EXPRESSED` says which rules cannot be left out this way, and
why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sim.parts import Parts
from sim.variants import admins, authority, calls, members, records, replicas

from mesh.types import ReplicaId


@dataclass(frozen=True)
class Mutant:
    """A rule left out.

    Attributes:
        parts: How an episode is put together without it.
        seeds: In how many seeds from 1 on, aimed at it, it is found at least once.
    """

    parts: Callable[[], Parts]
    seeds: int = 40


def _without(**given: Any) -> Mutant:
    """The product's parts but for these."""
    return Mutant(partial(Parts, **given))


MUTANTS: dict[str, Mutant] = {
    "t0recv": _without(authority=authority.FromReceipt),
    "watchonly": _without(authority=lambda *_: authority.WhateverApplied(), overdue=authority.Patient),
    "slew": _without(authority=lambda *_: authority.ByBoottime()),
    "static": _without(authority=lambda *_: authority.WithoutWall()),
    "sendhome": _without(authority=authority.at_home_sends),
    "latemember": _without(membership=members.GrantedBeforePut),
    "jumpack": _without(membership=members.AcksWhatIsKnown),
    "twin": _without(membership=members.NoTwin),
    "nodrain": _without(draining=lambda _: dict),
    "cumulative": _without(running=calls.DrainsTheFirst),
    "drainlive": _without(running=calls.DrainsAsGranted),
    "live": _without(leases=replicas.Live),
    "pauseadmit": _without(leases=replicas.LateHops),
    "pingreuse": _without(replica_id=lambda _: ReplicaId("0123456789abcdef")),
    "longstep": _without(measured_step_s=lambda _: -0.1),  # nor the margin: the step alone decides
    "fence": _without(leases=replicas.NoFence),
    "ackclose": _without(hub=replicas.ClosesOnly),
    "lowerack": _without(hub=replicas.LowersAlone),
    "senderdecides": _without(story=calls.BelievesSender),
    "gap": _without(feed=records.NoGap),
    "replay": _without(feed=records.TakesOlder, book=records.NoFloor),
    "unsigned": _without(trust=records.anybody_signs),
    "restore": _without(membership=members.NeverBack, feed=records.TakesOlder, book=records.NoFloor),
    "lostmember": _without(start=admins.BeganLongAgo),
    "silentearly": _without(members=admins.SilentByKey),
    "shortW": _without(outcome=admins.one_second_less),
    "newS": _without(outcome=admins.by_the_new_record),
    "chainS": _without(changes=admins.ForgetsOlder),
    "supersede": _without(barrier=admins.NeverSuperseded),
    "attestearly": _without(hub=replicas.HeardByAll),
    "sweepshort": _without(sweeper=admins.sweeps_after_a_second),
    "sweeprec": _without(sweeper=admins.NoCompare),
    "op-last": _without(op_id=admins.another_op_id),
    "ledgerlate": _without(journal=admins.Late),
    "stalekey": _without(keyring=calls.stale_keyring, story=calls.BelievesKeyring),
    "unsigned move": _without(feed=records.feed_by(records.Claimed), trust=records.anybody_moves),
    "movefallback": _without(feed=records.feed_by(records.FallsBack)),
    "fork": _without(feed=records.feed_by(records.FollowsLast)),
    "both homes' S": _without(changes=admins.moves_by(admins.ForgetsOldHome)),
    "both shards": _without(outcome=admins.by_the_old_home_alone),
    "late question": _without(changes=admins.moves_by(admins.TakesBack)),
}

NOT_EXPRESSED: dict[str, str] = {
    "exact": "It breaks no promise: a busy shard would only be refused. The model has it.",
    "lease": "The store that the product knows has no leases.",
    "twowatch": "The feed has one watch; a second would be another program.",
}
"""Rules that no variant of a part leaves out, and why."""
