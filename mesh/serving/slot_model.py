"""A model over its cache of slots: runs rows of it, tries it out, and measures how long its steps take.

Knows nothing of sequences. Running ones are in the first rows; behind them is the row where a prompt is read in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mesh.serving.engine import Sampling
from mesh.serving.pace import Pace, timed
from mesh.serving.sampling import choose, draw_of
from mesh.serving.slot_cache import SlotCache
from mesh.serving.tokenizers import TextTokenizer

SMALLEST_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run. `keep` is whatever must live as long as it, such as shared weights."""

    model: PreTrainedModel
    tokenizer: TextTokenizer
    ends: frozenset[int]
    keep: object = None


class SlotModel:
    """One model and its cache. All but the attributes is for one thread, in inference mode.

    Attributes:
        loaded: What runs.
        cache: Keys and values, a row each.
        reading_row: Where a prompt is read in.
    """

    def __init__(self, loaded: Loaded, slots: int, context: int) -> None:
        """Takes the cache's memory: for so many sequences, and one that is read in, of `context` tokens each."""
        self.loaded = loaded
        self.cache = SlotCache(loaded.model, slots, context)
        self.reading_row = slots
        self._context = context

    def forward(self, tokens: list[list[int]], first: int, starts: list[int]) -> torch.Tensor:
        """Runs rows from `first` on, each with its tokens from its start; returns the last logits, fp32."""
        model = self.loaded.model
        count = len(tokens[0])
        positions = torch.tensor(starts, device=model.device).unsqueeze(1) + torch.arange(count, device=model.device)
        length = max(starts) + count
        self.cache.aim(first, positions, length)
        # A 4-dimensional mask is used as it is: each token sees its own row, up to itself.
        mask = torch.arange(length, device=model.device)[None, None, None] <= positions[:, None, :, None]
        output = model(
            input_ids=torch.tensor(tokens, device=model.device),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def try_out(self) -> None:
        """One token in the empty reading row: raises when the model does not work at all, whatever the request."""
        logits = self.forward([[0]], self.reading_row, [0])
        self.cache.wipe(self.reading_row, 1)
        if not bool(torch.isfinite(logits).all()):
            raise ArithmeticError

    def measure(self, most: int) -> tuple[int, float]:
        """The largest chunk, up to `most`, that keeps a step short, and what a step may take, in seconds.

        It is measured at the far end of the context. The rows' other positions are not written: their memory is not
        taken before somebody needs it.
        """
        chunk = min(SMALLEST_CHUNK, most, self._context)
        pace = self.time_chunk(chunk)
        while chunk * 2 <= min(most, self._context) and pace.may_double():
            chunk *= 2
            pace = self.time_chunk(chunk)
        again, decoding = self.time_chunk(chunk), self._time_decode()
        return chunk, max(min(pace.longest_s, again.longest_s), decoding.longest_s)

    def time_chunk(self, chunk: int) -> Pace:
        """Reading a last chunk, and moving the whole row to where it goes on."""
        cache, row = self.cache, self.reading_row
        reading = self._timed(lambda: self.forward([[0] * chunk], row, [self._context - chunk]))
        cache.wipe(row, self._context, self._context - chunk)
        moving = self._timed(lambda: cache.move(row, 0, chunk))
        cache.wipe(0, chunk)
        return reading.plus(moving.times(self._context / chunk))

    def _time_decode(self) -> Pace:
        """One token for a sequence in every slot, chosen in the dearest way."""
        slots = self.reading_row
        draws = [draw_of(Sampling(max_tokens=1, top_p=0.9, seed=0)) for _ in range(slots)]
        starts = [self._context - 1] * slots
        pace = self._timed(lambda: choose(self.forward([[0]] * slots, 0, starts), draws))
        for row in range(slots):
            self.cache.wipe(row, self._context, self._context - 1)
        return pace

    def _timed(self, step: Callable[[], object]) -> Pace:
        device = self.loaded.model.device

        def to_its_end() -> None:
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return timed(to_its_end, on_cpu=device.type == "cpu")
