"""The rules of the protocol that are left out to see whether that is found: each by its name, in one sentence.

Models and simulation call them by the same names, but for those in `OTHER_NAMES`.
"""

from __future__ import annotations

RULES = {
    # Records and reading.
    "gap": "an event that does not join the one that was applied before it makes the reader fetch again",
    "twowatch": "heads and records come by one watch",
    "foreign-home": "a record counts only if the home of its tenant signed it",
    "unsigned": "a signature counts only by a key of the region file of its home",
    "replay of an older record": "a record that is older than one that was seen does not count",
    "unsigned move": "a statement that moves a tenant counts only if the old home signed it",
    "movefallback": "after a move the old home's record never counts again, also where nothing else does",
    "fork": "two statements of one move are both refused",
    "both homes' S": "after a move a removal also waits for as long as the old home's record may be acted on",
    "both shards": "a move is over once everyone has applied what both homes have changed, times that the new one has lowered as well",
    "late question": "a home that the tenant has left, and that is asked late to make ready, does not take its last word back",
    "ledgerlate": "a signed record is in the home's ledger before it is sent",
    # Authority and grants.
    "t0recv": "authority counts from when a grant was asked for, not from when it came",
    "latemember": "a grant is in the store before there is authority by it",
    "lease": "membership is a key without a lease",
    "watchonly": "there is authority only once what the grant's answer named has been applied",
    "exact": "an answer counts also where more than it named was applied meanwhile",
    "sendhome": "sending abroad takes authority for where it is sent to",
    "newS": "how long a removal waits follows from the record that it replaces",
    "chainS": "of several values of authority not yet over the largest is kept",
    "lowerack": "a lower authority is acknowledged once no replica has a later deadline",
    "drainlive": "a later grant does not move the end of what drains",
    "slew": "authority ages by the clock that ran faster",
    "static": "authority ends also where clocks that were read stood still",
    "twin": "a process that finds a grant that is not its own ends",
    # What runs.
    "live": "a replica's deadline counts from when it sent its ping, not from when it heard",
    "pauseadmit": "a hop that was delayed has that much less time",
    "pingreuse": "a ping is named by the process that sent it",
    "longstep": "no step of an engine begins that may not end in time",
    "senderdecides": "who receives a call decides by its own authority",
    "stalekey": "whether a key is good is read anew for each call",
    # Acknowledging and returning.
    "cumulative ack": "an acknowledgement names every change that still drains",
    "jumpack": "only what was applied is acknowledged",
    "nodrain": "what still drains is not acknowledged",
    "fence": "a replica refuses what was sent before a change and arrives after it",
    "ackclose": "a gateway acknowledges once its replicas have confirmed, not once it has closed",
    "silentearly": "how long a member has been silent counts from its newest grant",
    "shortW": "a removal waits for as long as authority may last, and no less",
    "op-last": "an order that is given again is not carried out again",
    "supersede": "a removal that a later change undid does not return as done",
    "sweepshort": "a gateway's grant is swept only after the cap of authority",
    "sweeprec": "a sweep compares that the grant is still the one that was seen unchanged",
    "attestearly": "a process attests the death of the one before it once no replica works for that",
    # Going back in time.
    "restore": "who sees that the store went back drops all authority",
    "lostmember": "after a recovery every removal waits in full, since members may be unknown",
}
OTHER_NAMES = {"cumulative": "cumulative ack", "replay": "replay of an older record"}
"""In the simulation: in the models."""


def rule_of(name: str) -> str:
    """What a rule says.

    Raises:
        KeyError: It has no sentence here.
    """
    return RULES[OTHER_NAMES.get(name, name)]
