"""One sequence of the slot engine: what was asked, how far it is, and what of its text may be shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mesh.serving.engine import Alternative, FinishReason, Generation, Stay, TokenLogprob
from mesh.serving.sampling import draw_of, log_probabilities
from mesh.serving.stopping import TextGate
from mesh.serving.streams import EngineStream
from mesh.serving.tokenizers import Detokenizer


class SlotSequence:
    """Belongs to the engine, which says where it is; its stream is what its reader sees.

    Attributes:
        prompt: Emptied once it was read.
        draw: How its tokens are drawn.
        row: Of the cache, once it runs.
        cached: So many positions of its row are written.
        last: Its last token.
        cancelled: Nobody wants more of it, or it failed.
    """

    __slots__ = (
        "_ends",
        "_gate",
        "_held",
        "_max_tokens",
        "_pieces",
        "_produced",
        "_text",
        "_top_logprobs",
        "_unsaid",
        "cached",
        "cancelled",
        "draw",
        "last",
        "prompt",
        "row",
        "stay",
        "stream",
    )

    def __init__(
        self,
        generation: Generation,
        stay: Stay,
        stream: EngineStream,
        *,
        pieces: Sequence[bytes],
        specials: frozenset[int],
        ends: frozenset[int],
    ) -> None:
        """What was asked, with what its model knows of tokens: their bytes, which are no text, which end an answer."""
        sampling = generation.sampling
        self.prompt = list(generation.prompt)
        self.draw = draw_of(sampling)
        self.stay = stay
        self.stream = stream
        self.row = -1
        self.cached = 0
        self.last = -1
        self.cancelled = False
        self._max_tokens = sampling.max_tokens
        self._top_logprobs = sampling.top_logprobs
        self._text = Detokenizer(pieces, specials)
        self._gate = TextGate(sampling.stop)
        self._pieces = pieces
        self._ends = ends
        self._produced = 0
        self._unsaid = ""
        # (where in the text the token begins, its log probabilities), until that text is let through
        self._held: list[tuple[int, TokenLogprob]] = []

    def take(self, token: int, logits: torch.Tensor) -> FinishReason | None:
        """Adds a token; whether it was the last one. `hand_on` shows what may be shown."""
        self.last = token
        self._produced += 1
        gate = self._gate
        if token in self._ends:
            self._unsaid = gate.push(self._text.flush()) + gate.flush()
            return FinishReason.STOP
        if self._top_logprobs is not None:
            self._held.append((gate.seen, self._logprob(logits, token, self._top_logprobs)))
        self._unsaid = gate.push(self._text.step(token))
        finish: FinishReason | None = None
        if not gate.stopped and self._produced >= self._max_tokens:
            self._unsaid += gate.push(self._text.flush()) + gate.flush()
            finish = FinishReason.LENGTH
        return FinishReason.STOP if gate.stopped else finish

    def hand_on(self, finish: FinishReason | None) -> None:
        """Hands its reader what the last token let through."""
        gate = self._gate
        whole = finish is not None and not gate.stopped
        shown = [logprob for start, logprob in self._held if whole or start < gate.released]
        del self._held[: len(shown)]
        self.stream.put(self._unsaid, self._produced, shown, finish)

    def _logprob(self, logits: torch.Tensor, token: int, alternatives: int) -> TokenLogprob:
        own, top = log_probabilities(logits, token, alternatives)
        return TokenLogprob(self._alternative(token, own), tuple(self._alternative(*one) for one in top))

    def _alternative(self, token: int, logprob: float) -> Alternative:
        piece = self._pieces[token]
        return Alternative(piece.decode("utf-8", errors="replace"), piece, logprob)
