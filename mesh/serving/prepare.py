"""From a call to token ids that fit the model: all that can be refused is refused before it queues."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mesh.errors import Code, MeshError
from mesh.serving.engine import Engine, Generation, Sampling
from mesh.serving.requests import ChatCall, CompletionCall, EmbeddingCall, Options, Prompt

_INLINE_SIZE = 16_384
"""More text than this is parsed and tokenized on a thread: the loop must not stand still for one long body."""
_ITEM_SIZE = 32
"""What a message or a prompt costs besides its text, in characters: a body may hold very many that are empty."""

_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True, repr=False)
class Work:
    """Sequences to generate, prompt by prompt, `n` of each. Sequence `i` continues prompt `i // n`."""

    generations: tuple[Generation, ...]
    n: int

    def prompt_tokens(self, prompt: int) -> int:
        """Tokens of one prompt; its `n` sequences share them."""
        return len(self.generations[prompt * self.n].prompt)


async def prepare_chat(call: ChatCall, engine: Engine) -> Work:
    """Tokenizes a conversation.

    Raises:
        MeshError: CONTEXT_LENGTH_EXCEEDED.
    """
    size = sum(len(text) + _ITEM_SIZE for _, text in call.messages)
    ids = await off_loop(size, lambda: engine.tokenizer.render_chat(call.messages))
    left = engine.context - len(ids)
    asked = call.options.max_tokens
    if left < (asked or 1):
        raise _too_long("messages", engine)
    return Work(_sequences(ids, left if asked is None else asked, call.options), call.options.n)


async def prepare_completion(call: CompletionCall, engine: Engine) -> Work:
    """Tokenizes texts to be continued.

    Raises:
        MeshError: CONTEXT_LENGTH_EXCEEDED; INVALID_PARAMETER for token ids that the model does not have and for more
            sequences than it can ever hold.
    """
    options, stats = call.options, engine.stats()
    if len(call.prompts) * options.n > stats.slots + stats.queue_limit:
        raise MeshError(
            Code.INVALID_PARAMETER,
            param="prompt",
            hint=f"Prompts times n may be up to {stats.slots + stats.queue_limit} for this model.",
        )
    asked = options.max_tokens or 1
    generations: list[Generation] = []
    for ids in await _encode_all(call.prompts, engine, engine.context - asked, call.path):
        generations.extend(_sequences(ids, asked, options))
    return Work(tuple(generations), options.n)


async def prepare_embedding(call: EmbeddingCall, engine: Engine) -> list[Sequence[int]]:
    """Tokenizes texts to be embedded.

    Raises:
        MeshError: As `prepare_completion`.
    """
    return await _encode_all(call.inputs, engine, engine.context, call.path)


async def off_loop(size: int, work: Callable[[], _Made]) -> _Made:
    """Does `work` at once where `size`, in bytes or characters of a body, is small, else on a thread.

    Nothing stops a thread: a caller that is cancelled waits for it, so that what has ended does not go on there.
    """
    if size <= _INLINE_SIZE:
        return work()
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # nobody else will look
        raise


async def _encode_all(
    prompts: Sequence[Prompt], engine: Engine, limit: int, path: Callable[..., str]
) -> list[Sequence[int]]:
    size = sum(len(prompt) + _ITEM_SIZE for prompt in prompts)
    return await off_loop(size, lambda: [_encode(one, engine, limit, i, path) for i, one in enumerate(prompts)])


def _encode(prompt: Prompt, engine: Engine, limit: int, index: int, path: Callable[..., str]) -> Sequence[int]:
    if isinstance(prompt, str):
        ids: Sequence[int] = engine.tokenizer.encode(prompt)
        if not ids:
            raise MeshError(Code.INVALID_PARAMETER, param=path(index), hint="It holds nothing that the model reads.")
    else:
        ids = prompt
    if len(ids) > limit:
        raise _too_long(path(index), engine)
    if ids is prompt:
        size = engine.tokenizer.vocabulary_size
        for i, token in enumerate(ids):
            if token >= size:
                raise MeshError(
                    Code.INVALID_PARAMETER, param=path(index, i), hint=f"Token ids of this model are below {size}."
                )
    return ids


def _sequences(ids: Sequence[int], max_tokens: int, options: Options) -> tuple[Generation, ...]:
    return tuple(
        Generation(
            ids,
            Sampling(
                max_tokens=max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                # Each answer of a prompt needs dice of its own, and the first the very ones that were asked for.
                seed=None if options.seed is None else (options.seed + answer) % 2**64,
                stop=options.stop,
                top_logprobs=options.top_logprobs,
            ),
        )
        for answer in range(options.n)
    )


def _too_long(param: str, engine: Engine) -> MeshError:
    return MeshError(
        Code.CONTEXT_LENGTH_EXCEEDED, param=param, hint=f"The context of this model is {engine.context} tokens."
    )
