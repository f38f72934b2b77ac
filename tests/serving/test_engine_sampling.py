"""Choosing tokens: exact, each sequence by its own dice."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesh.serving.engine import Sampling
from mesh.serving.sampling import Draw, choose, draw_of, log_probabilities


class Coin(random.Random):
    """Dice that show what they are told to."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


def kept_by(logits: list[float], temperature: float, top_p: float) -> set[int]:
    """The smallest set of the likeliest tokens whose shares reach `top_p`, in plain Python."""
    peak = max(logits)
    weights = [math.exp((logit - peak) / temperature) for logit in logits]
    kept: set[int] = set()
    total, so_far = math.fsum(weights), 0.0
    for number in sorted(range(len(logits)), key=lambda number: -weights[number]):
        if so_far >= top_p:
            break
        kept.add(number)
        so_far += weights[number] / total
    return kept


@given(
    st.lists(st.integers(-60, 60), min_size=1, max_size=40, unique=True),
    st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    st.floats(0.01, 0.99),
    st.floats(0, 1, exclude_max=True),
)
def test_top_p_keeps_exactly_the_likeliest(numbers: list[int], temperature: float, top_p: float, coin: float) -> None:
    logits = [number / 7 for number in numbers]
    (token,) = choose(torch.tensor([logits]), [Draw(temperature, top_p, Coin(coin))])
    # What rounding may add or drop at the edge is within a hair of it.
    allowed = kept_by(logits, temperature, min(1.0, top_p + 1e-5))
    assert token in allowed
    (last,) = choose(torch.tensor([logits]), [Draw(temperature, top_p, Coin(1 - 2**-53))])
    least = min(kept_by(logits, temperature, max(1e-6, top_p - 1e-5)), key=lambda number: logits[number])
    assert last is not None
    assert logits[last] <= logits[least]


def test_top_p_over_a_flat_vocabulary_has_no_cap() -> None:
    """All 49,152 are equally likely: 0.9 of them is far beyond the head that is sorted first."""
    logits = torch.zeros(1, 49152) - torch.arange(49152) * 1e-7
    (token,) = choose(logits, [Draw(1.0, 0.9, Coin(0.99))])
    assert token is not None
    assert 0.985 * 0.9 * 49152 < token < 0.995 * 0.9 * 49152


def test_draws_follow_the_shares() -> None:
    shares = [0.5, 0.3, 0.15, 0.05]
    logits = torch.tensor([shares]).log()
    draw = Draw(1.0, 1.0, random.Random(5))
    drawn = [choose(logits, [draw])[0] for _ in range(4000)]
    for token, share in enumerate(shares):
        assert drawn.count(token) / 4000 == pytest.approx(share, abs=0.03)


def test_a_row_draws_the_same_whatever_its_neighbours() -> None:
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(2))
    samplings = [Sampling(max_tokens=1, temperature=1.3, top_p=top_p, seed=9) for top_p in (1.0, 0.8, 0.5)]
    together = choose(rows, [draw_of(sampling) for sampling in samplings])
    alone = [choose(rows[number : number + 1], [draw_of(one)])[0] for number, one in enumerate(samplings)]
    assert together == alone


def test_seeds_are_64_bits_and_their_sign_counts() -> None:
    coins = [draw_of(Sampling(max_tokens=1, seed=seed)).dice.random() for seed in (1, -1, 0, 2**63, -(2**63) + 5, 7)]
    assert len(set(coins)) == 6
    assert draw_of(Sampling(max_tokens=1)).dice.random() != draw_of(Sampling(max_tokens=1)).dice.random()


def test_rows_that_are_no_distribution_are_told_apart() -> None:
    logits = torch.zeros(5, 4)
    logits[0, 1], logits[1, 2], logits[2], logits[3, 3] = math.nan, math.inf, -math.inf, 2.0
    for temperature in (0.0, 1.0):
        tokens = choose(logits, [Draw(temperature, 0.5, Coin(0.0))] * 5)
        assert tokens[:4] == [None, None, None, 3]
        assert tokens[4] is not None


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-9, 1e-4])
def test_the_coldest_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[0.0, 100.0, 99.5, -1e30]])
    assert choose(logits, [Draw(temperature, 1.0, Coin(0.999))]) == [1]


def test_log_probabilities_sum_to_one() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    own, top = log_probabilities(logits, 7, 50)
    assert math.fsum(math.exp(logprob) for _, logprob in top) == pytest.approx(1, abs=1e-5)
    assert dict(top)[7] == own
    assert log_probabilities(logits, 7, 0) == (own, [])
