"""Weights into torch: mapped from their file, once a process, however many engines run them.

Each engine has a module of its own over the same tensors, so that no state of one can reach another. The classes are
named here, never looked up from what a file says, and nothing asks a hub.
"""

from __future__ import annotations

import threading
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mesh.errors import Code, MeshError


class Weights:
    """The tensors of one file on one device. Kept in memory while an engine holds this."""

    def __init__(self, path: Path, device: str) -> None:
        """On the CPU the tensors are the mapped file, shared by all processes; elsewhere they are copied."""
        self.tensors: dict[str, torch.Tensor] = load_file(path, device=device)


_loaded: WeakValueDictionary[tuple[Path, str], Weights] = WeakValueDictionary()
_loading = threading.Lock()


def weights_of(folder: Path, device: str) -> Weights:
    """The weights of `folder` on `device` (`cpu`, `cuda`), those already there if any. Any thread."""
    path = (folder / "model.safetensors").resolve()
    with _loading:
        weights = _loaded.get((path, device))
        if weights is None:
            weights = _loaded[path, device] = Weights(path, device)
        return weights


def llama(folder: Path, weights: Weights, device: str) -> LlamaForCausalLM:
    """A module for generating, over shared weights. Its forward keeps no state: the caller brings the cache."""
    config = LlamaConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "sdpa"  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no public setter
    with torch.device("meta"):  # no memory of its own
        model = LlamaForCausalLM(config)
    _assign(model, weights, extra=(), tied=("lm_head.weight",) if config.tie_word_embeddings else ())
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    # Its tables are computed, not stored: the file does not hold them.
    with torch.device(device):
        model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model.requires_grad_(False).eval()


def bert(folder: Path, weights: Weights, device: str) -> BertModel:
    """A module for embedding, over shared weights, without the pooling that embeddings do not use."""
    config = BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "sdpa"  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no public setter
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    _assign(model, weights, extra=("embeddings.position_ids", "pooler."), tied=())
    length = config.max_position_embeddings
    for name, table in (
        ("position_ids", torch.arange(length, device=device).unsqueeze(0)),
        ("token_type_ids", torch.zeros(1, length, dtype=torch.long, device=device)),
    ):
        setattr(model.embeddings, name, table)
    return model.requires_grad_(False).eval()


def _assign(model: torch.nn.Module, weights: Weights, *, extra: tuple[str, ...], tied: tuple[str, ...]) -> None:
    """Puts the tensors into the module as they are, and refuses a file that is not this model's."""
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not name.startswith(extra)}
    result = model.load_state_dict(tensors, strict=False, assign=True)
    if set(result.missing_keys) - set(tied) or result.unexpected_keys:
        raise MeshError(Code.START_FAILED, hint="A model's weights do not fit its configuration.")
