"""Choosing the next token from logits. Exact: no cap on how many tokens `top_p` may keep.

Each sequence throws its own dice, one number a token, so what it draws does not depend on its neighbours in the batch,
nor on the device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mesh.errors import Code, MeshError
from mesh.serving.engine import Generation, Sampling

COLDEST = 1e-4
"""Temperatures below this take the likeliest token: dividing logits by less only overflows."""
MOST_STOPS = 4
MOST_ALTERNATIVES = 20
# How many of the likeliest tokens are sorted first; sorting all takes several times as long and is seldom needed.
_HEAD = 1024


@dataclass(slots=True)
class Draw:
    """How one sequence chooses. `dice` is its own."""

    temperature: float
    top_p: float
    dice: random.Random


def draw_of(sampling: Sampling) -> Draw:
    """The same seed gives the same numbers; without one they are unpredictable."""
    # Random takes a seed's absolute value; a 64-bit one keeps its sign this way.
    seed = None if sampling.seed is None else sampling.seed % 2**64
    return Draw(sampling.temperature, sampling.top_p, random.Random(seed))  # noqa: S311 - dice, not secrets


def check(generation: Generation, *, context: int, vocabulary_size: int) -> None:
    """Refuses what an engine cannot run. What passes can do no harm in the batch.

    Raises:
        MeshError: INVALID_PARAMETER with the field's name (`prompt` for token ids), CONTEXT_LENGTH_EXCEEDED.
    """
    sampling = generation.sampling
    _within("max_tokens", sampling.max_tokens, 1, None, whole=True)
    _within("temperature", sampling.temperature, 0, 2)
    _within("top_p", sampling.top_p, 0, 1)
    if sampling.top_p == 0:
        raise MeshError(Code.INVALID_PARAMETER, param="top_p", hint="It is above 0.")
    if sampling.seed is not None:
        _within("seed", sampling.seed, -(2**63), 2**64 - 1, whole=True)
    if sampling.top_logprobs is not None:
        _within("top_logprobs", sampling.top_logprobs, 0, MOST_ALTERNATIVES, whole=True)
    if len(sampling.stop) > MOST_STOPS or not all(isinstance(stop, str) and stop for stop in sampling.stop):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise MeshError(Code.INVALID_PARAMETER, param="stop", hint=f"Up to {MOST_STOPS} strings, none empty.")
    check_prompt(
        generation.prompt,
        room=context - sampling.max_tokens,
        context=context,
        vocabulary_size=vocabulary_size,
        param="prompt",
    )


def check_prompt(prompt: Sequence[int], *, room: int, context: int, vocabulary_size: int, param: str) -> None:
    """Refuses token ids that are none, too many for `room`, or unknown to the model.

    Raises:
        MeshError: INVALID_PARAMETER with `param`, CONTEXT_LENGTH_EXCEEDED.
    """
    if len(prompt) == 0:
        raise MeshError(Code.INVALID_PARAMETER, param=param, hint="It holds at least one token.")
    if len(prompt) > room:
        raise MeshError(Code.CONTEXT_LENGTH_EXCEEDED, param=param, hint=f"The context is {context} tokens.")
    if not all(type(token) is int and 0 <= token < vocabulary_size for token in prompt):
        raise MeshError(Code.INVALID_PARAMETER, param=param, hint=f"Token ids are 0 to {vocabulary_size - 1}.")


def _within(param: str, value: float, least: float, most: float | None, *, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    if type(value) in kinds and least <= value and (most is None or value <= most):  # nan compares false
        return
    words = f"at least {least}" if most is None else f"{least} to {most}"
    raise MeshError(Code.INVALID_PARAMETER, param=param, hint=f"It is {'a whole' if whole else 'a'} number, {words}.")


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """The next token of each row.

    Args:
        logits: [rows, vocabulary], fp32.
        draws: One a row.

    Returns:
        A token id a row; None where the logits are no distribution (NaN, infinity).
    """
    best, greedy = logits.max(dim=-1)
    chosen: list[int | None] = greedy.tolist()
    for row, peak in enumerate(best.tolist()):  # one transfer for all rows; max lets NaN through
        draw = draws[row]
        if not math.isfinite(peak):
            chosen[row] = None
        elif draw.temperature >= COLDEST:
            shares = torch.softmax((logits[row] - peak) / draw.temperature, dim=-1)
            chosen[row] = _draw(shares, draw.top_p, draw.dice.random())
    return chosen


def _draw(shares: torch.Tensor, top_p: float, coin: float) -> int:
    """Inverts the cumulated distribution at `coin`, in [0, 1)."""
    if top_p >= 1:
        return _invert(shares, coin)
    head, ids = torch.topk(shares, min(_HEAD, shares.numel()))
    if float(head.sum(dtype=torch.float64)) < top_p:
        head, ids = torch.sort(shares, descending=True, stable=True)
    before = head.cumsum(0, dtype=torch.float64) - head
    return int(ids[_invert(head[: max(1, int((before < top_p).sum()))], coin)])


def _invert(shares: torch.Tensor, coin: float) -> int:
    sums = shares.cumsum(0, dtype=torch.float64)
    at = int(torch.searchsorted(sums, coin * sums[-1], right=True))
    return min(at, shares.numel() - 1)


def log_probabilities(logits: torch.Tensor, chosen: int, alternatives: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural log probabilities of the model's own distribution: the softmax of the raw logits.

    Neither temperature nor `top_p` changes them.

    Args:
        logits: [vocabulary], fp32.
        chosen: A token id.
        alternatives: How many of the likeliest tokens to return.

    Returns:
        That of `chosen`, and the likeliest tokens with theirs, likeliest first.
    """
    logs = torch.log_softmax(logits, dim=-1)
    values, ids = torch.topk(logs, alternatives)
    return float(logs[chosen]), list(zip(ids.tolist(), values.tolist(), strict=True))
