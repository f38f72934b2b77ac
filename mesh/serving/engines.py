"""Makes the engine of a model of the catalogue. The only place that knows which packages there are engines for."""

from __future__ import annotations

from pathlib import Path

import torch

from mesh.errors import Code, MeshError
from mesh.serving import loading
from mesh.serving.embedding import EmbeddingEngine, LoadedEncoder
from mesh.serving.engine import Engine
from mesh.serving.slot_model import Loaded
from mesh.serving.slots import SlotEngine
from mesh.serving.tokenizers import TextTokenizer
from mesh.serving.weights import prepare
from mesh.settings import Model
from mesh.types import ModelKind


def make_engine(model: Model, models_dir: Path, accelerator: str, threads: int) -> Engine:
    """An engine that is not started; `start` converts the weights first where nobody has yet.

    Models of the same package share their weights in memory.

    Args:
        model: From the settings.
        models_dir: Where converted weights are kept.
        accelerator: `cpu` or `cuda`; fp32 on both.
        threads: CPU threads that torch may use in this process.

    Raises:
        MeshError: INVALID_SETTINGS for another accelerator, START_FAILED for `cuda` where there is none.
    """
    if accelerator not in {"cpu", "cuda"}:
        raise MeshError(Code.INVALID_SETTINGS, hint="An accelerator is cpu or cuda.")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise MeshError(Code.START_FAILED, hint="The settings ask for cuda and this process sees no such device.")

    def load_chat() -> Loaded:
        folder = prepare(model.package, models_dir)
        weights = loading.weights_of(folder, accelerator)
        causal = loading.llama(folder, weights, accelerator)
        ends = causal.config.eos_token_id
        ids = frozenset([ends] if isinstance(ends, int) else ends or [])
        return Loaded(causal, TextTokenizer(folder), ids, keep=weights)

    def load_encoder() -> LoadedEncoder:
        folder = prepare(model.package, models_dir)
        weights = loading.weights_of(folder, accelerator)
        return LoadedEncoder(loading.bert(folder, weights, accelerator), TextTokenizer(folder), keep=weights)

    match model.kind:
        case ModelKind.CHAT:
            return SlotEngine(
                load_chat, context=model.context, slots=model.slots, queue_limit=model.queue, threads=threads
            )
        case ModelKind.EMBEDDING:
            return EmbeddingEngine(
                load_encoder, context=model.context, slots=model.slots, queue_limit=model.queue, threads=threads
            )
