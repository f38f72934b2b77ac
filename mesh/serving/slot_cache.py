"""Keys and values of running sequences, a row each: what the slot engine gives a model as its `past_key_values`."""

from __future__ import annotations

import mmap

import torch
from transformers import PreTrainedModel


class SlotCache:
    """Keys and values, [layers, slots + 1, heads, context, width], as the model's `past_key_values`."""

    # What transformers asks a cache for.
    is_compileable = False
    layers: tuple[object, ...] = ()
    is_sliding = (False,)

    def __init__(self, model: PreTrainedModel, slots: int, context: int) -> None:
        config = model.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, slots + 1, config.num_key_value_heads, context, width)
        self.keys = _zeros(shape, model.dtype, model.device)
        self.values = _zeros(shape, model.dtype, model.device)
        self._first = self._count = self._length = 0
        self._rows = self._positions = torch.empty(0, dtype=torch.long, device=model.device)

    def aim(self, first: int, positions: torch.Tensor, length: int) -> None:
        """Says what the next forward reads and writes: rows from `first`, at `positions` [rows, tokens] each."""
        self._first, self._count, self._length = first, positions.shape[0], length
        self._positions = positions
        self._rows = torch.arange(first, first + self._count, device=positions.device).unsqueeze(1)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's layers call this with [rows, heads, tokens, width]."""
        for store, new in ((self.keys, keys), (self.values, values)):
            store[layer].transpose(1, 2)[self._rows, self._positions] = new.transpose(1, 2)
        rows = slice(self._first, self._first + self._count)
        return self.keys[layer, rows, :, : self._length], self.values[layer, rows, :, : self._length]

    def get_seq_length(self, *_: object) -> int:
        """Tokens before the next forward."""
        return max(0, self._length - 1)

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of a row, then wipes them where they were."""
        for store in (self.keys, self.values):
            store[:, target, :, :length] = store[:, source, :, :length]
            store[:, source, :, :length].zero_()

    def wipe(self, row: int, length: int, start: int = 0) -> None:
        """Zeroes the positions of a row from `start` to before `length`."""
        for store in (self.keys, self.values):
            store[:, row, :, start:length].zero_()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on the CPU in pages that take no memory until something is written there."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, dtype.itemsize * torch.Size(shape).numel(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would reach into rows that are not used
    return torch.frombuffer(pages, dtype=dtype).view(shape)
