"""The HTTP door as the official `openai` client sees it, with only a base URL, a key and the CA."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from e2e.live import CHAT, ELSEWHERE, EMBEDDING, JP, SG, VN, Mesh, messages, wait_until

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def everywhere(mesh: Mesh) -> str:
    """A key that is served in each region, and never sent on."""
    key = mesh.tenant("everywhere", "--allow", "VN,SG,JP")["key"]
    for region in mesh.regions:
        mesh.seen(key, region)
    return key


@pytest.mark.parametrize(("region", "jurisdiction"), [(VN, "VN"), (SG, "SG"), (JP, "JP")])
def test_everything_works_in_each_region(mesh: Mesh, everywhere: str, region: str, jurisdiction: str) -> None:
    with mesh.openai(region, everywhere) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=CHAT, messages=messages("Say hello."), max_tokens=8, temperature=0
        )
        assert (raw.headers["mesh-region"], raw.headers["mesh-jurisdiction"]) == (region, jurisdiction)
        assert int(raw.headers["mesh-policy-revision"]) >= 1
        chat = raw.parse()
        assert chat.id == f"chatcmpl-{raw.headers['x-request-id']}"
        assert chat.model == CHAT
        assert chat.object == "chat.completion"
        assert chat.choices[0].message.role == "assistant"
        assert chat.choices[0].message.content
        assert chat.choices[0].finish_reason in {"stop", "length"}
        assert chat.usage is not None
        assert 1 <= chat.usage.completion_tokens <= 8
        assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens

        pieces = list(
            client.chat.completions.create(
                model=CHAT,
                messages=messages("Say hello."),
                max_tokens=8,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert (
            "".join(c.delta.content or "" for piece in pieces for c in piece.choices) == chat.choices[0].message.content
        )
        assert pieces[-1].choices == []
        assert pieces[-1].usage == chat.usage
        assert all(piece.usage is None for piece in pieces[:-1])
        assert [c.finish_reason for piece in pieces for c in piece.choices if c.finish_reason] == [
            chat.choices[0].finish_reason
        ]

        completion = client.completions.create(model=CHAT, prompt="Hanoi is", max_tokens=6, temperature=0)
        assert completion.choices[0].text
        assert completion.object == "text_completion"

        vectors = client.embeddings.create(model=EMBEDDING, input="reset my password")
        assert math.isclose(math.hypot(*vectors.data[0].embedding), 1, rel_tol=1e-4)


def test_models_are_those_that_the_key_may_use_from_here(mesh: Mesh, acme: str, globex: str) -> None:
    with mesh.openai(VN, acme) as client:
        assert {model.id for model in client.models.list()} == {CHAT, EMBEDDING}
        assert client.models.retrieve(CHAT).id == CHAT
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(ELSEWHERE)
        assert caught.value.code == "model_not_found"
    with mesh.openai(VN, globex) as client:
        assert {model.id for model in client.models.list()} == {CHAT, EMBEDDING, ELSEWHERE}


def test_n_answers_are_numbered_and_counted(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        answer = client.chat.completions.create(
            model=CHAT, messages=messages("Name a colour."), n=3, max_tokens=5, seed=1
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert 3 <= answer.usage.completion_tokens <= 15
        pieces = client.chat.completions.create(
            model=CHAT, messages=messages("Name a colour."), n=2, max_tokens=4, stream=True
        )
        ends = [c.index for piece in pieces for c in piece.choices if c.finish_reason]
        assert sorted(ends) == [0, 1]


def test_seed_repeats_and_another_does_not(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:

        def text(seed: int) -> str | None:
            answer = client.chat.completions.create(
                model=CHAT, messages=messages("Write a poem."), seed=seed, temperature=1.5, max_tokens=16
            )
            return answer.choices[0].message.content

        first = text(7)
        assert text(7) == first
        assert {text(8), text(9)} != {first}


def test_temperature_zero_is_greedy_and_small_top_p_is_too(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:

        def text(**options: Any) -> str:
            return client.completions.create(model=CHAT, prompt="The sea is", max_tokens=10, **options).choices[0].text

        greedy = text(temperature=0)
        assert text(temperature=0) == greedy
        assert text(temperature=1, top_p=1e-6) == greedy


def test_stop_ends_before_the_string_wherever_it_lies(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        whole = (
            client.completions.create(model=CHAT, prompt="1, 2, 3, 4,", max_tokens=12, temperature=0).choices[0].text
        )
        stop = whole[4:7]
        cut = client.completions.create(
            model=CHAT, prompt="1, 2, 3, 4,", max_tokens=12, temperature=0, stop=[stop, "never said"]
        ).choices[0]
        assert cut.text == whole[: whole.index(stop)]
        assert cut.finish_reason == "stop"
        pieces = client.completions.create(
            model=CHAT, prompt="1, 2, 3, 4,", max_tokens=12, temperature=0, stop=stop, stream=True
        )
        assert "".join(c.text for piece in pieces for c in piece.choices) == cut.text


def test_max_tokens_in_both_names(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        for option in ("max_tokens", "max_completion_tokens"):
            limit: dict[str, Any] = {option: 3}
            answer = client.chat.completions.create(
                model=CHAT, messages=messages("Tell a long story."), temperature=0, **limit
            )
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 3
            assert answer.choices[0].finish_reason == "length"


def test_log_probabilities_of_chat(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        answer = client.chat.completions.create(
            model=CHAT, messages=messages("Hi"), max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
        )
        choice = answer.choices[0]
        assert choice.logprobs is not None
        tokens = choice.logprobs.content
        assert tokens is not None
        assert 1 <= len(tokens) <= 4
        for token in tokens:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 3
            # Greedy: what was chosen is the most likely.
            assert token.token == token.top_logprobs[0].token
            assert [one.logprob for one in token.top_logprobs] == sorted(
                (one.logprob for one in token.top_logprobs), reverse=True
            )
        spoken = b"".join(bytes(token.bytes or []) for token in tokens).decode()
        assert spoken.startswith(choice.message.content or "")


def test_log_probabilities_of_completions_have_the_legacy_shape(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        choice = client.completions.create(model=CHAT, prompt="Once", max_tokens=4, temperature=0, logprobs=2).choices[
            0
        ]
        shape = choice.logprobs
        assert shape is not None
        assert shape.tokens
        assert shape.token_logprobs
        assert shape.text_offset
        assert shape.top_logprobs
        lengths = {len(shape.tokens), len(shape.token_logprobs), len(shape.text_offset), len(shape.top_logprobs)}
        assert len(lengths) == 1
        assert "".join(shape.tokens).startswith(choice.text)
        assert shape.text_offset[0] == 0
        assert all(token in top for token, top in zip(shape.tokens, shape.top_logprobs, strict=True))


def test_completions_take_text_ids_and_lists_of_both(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:

        def ask(prompt: Any, **options: Any) -> list[str]:
            answer = client.completions.create(
                model=CHAT,
                prompt=prompt,
                max_tokens=4,
                temperature=0,
                **options,
            )
            assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
            return [choice.text for choice in answer.choices]

        one, other = ask("The moon"), ask("A river")
        assert ask(["The moon", "A river"]) == [*one, *other]
        assert ask(["The moon", "A river"], n=2) == [*one, *one, *other, *other]
        ids = ask([504, 4320, 314])
        assert ask([[504, 4320, 314], [504, 4320, 314]]) == [*ids, *ids]


def test_completions_without_max_tokens_have_sixteen(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        answer = client.completions.create(model=CHAT, prompt="1 2 3 4 5 6", temperature=0, seed=1)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 16 or answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens <= 16


def test_embeddings_are_near_what_means_the_same(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        answer = client.embeddings.create(
            model=EMBEDDING,
            input=["How do I reset my password?", "I forgot my login", "Mangoes are sweet"],
            encoding_format="float",
        )
        vectors = [row.embedding for row in answer.data]
        assert [row.index for row in answer.data] == [0, 1, 2]
        assert all(len(vector) == 384 for vector in vectors)
        assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-4) for vector in vectors)
        near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
        assert near > far + 0.2
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
        # The client asks for base64 by default, and decodes it.
        assert client.embeddings.create(model=EMBEDDING, input="Mangoes are sweet").data[0].embedding == pytest.approx(
            vectors[2], abs=1e-5
        )
        coded = client.embeddings.create(model=EMBEDDING, input="Mangoes are sweet", encoding_format="base64")
        assert isinstance(coded.data[0].embedding, str)


def test_many_at_once_are_each_answered_with_their_own(mesh: Mesh, acme: str) -> None:
    prompts = [f"{word} is" for word in ("Rice", "Tea", "Iron", "Snow", "Music", "Glass", "Fire", "Salt")]
    with mesh.openai(VN, acme) as client:

        def text(prompt: str) -> str:
            return client.completions.create(model=CHAT, prompt=prompt, max_tokens=5, temperature=0).choices[0].text

        alone = [text(prompt) for prompt in prompts]
        with ThreadPoolExecutor(len(prompts)) as pool:
            assert list(pool.map(text, prompts)) == alone


def test_what_means_nothing_is_accepted(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        answer = client.chat.completions.create(
            model=CHAT,
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "name": "an", "content": [{"type": "text", "text": "Hi"}]},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "Bye"},
            ],
            max_tokens=2,
            frequency_penalty=0,
            presence_penalty=0,
            store=False,
            response_format={"type": "text"},
            user="someone",
            extra_body={"tools": [], "metadata": None},
        )
        assert answer.choices


def test_the_key_is_needed_everywhere_but_for_liveness(mesh: Mesh, acme: str) -> None:
    assert mesh.get(VN, "/livez").status == 200
    for path in ("/openapi.json", "/v1/models", "/v1/route", "/v1/nothing", "/metrics", "/readyz"):
        assert mesh.get(VN, path).error["code"] == "invalid_api_key", path
    document = mesh.get(VN, "/openapi.json", acme)
    assert document.status == 200
    assert b'"openapi"' in document.body


def test_an_sdk_does_not_repeat_what_would_fail_again(mesh: Mesh, acme: str) -> None:
    sent: list[httpx2.Request] = []
    with (
        httpx2.Client(verify=mesh.trust(), timeout=60, event_hooks={"request": [sent.append]}) as http,
        openai.OpenAI(base_url=mesh.place(SG)["http"] + "/v1", api_key=acme, http_client=http) as client,
    ):
        assert client.max_retries > 0
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=CHAT, messages=messages("Hi"))
        assert caught.value.status_code == 451
        assert len(sent) == 1
        sent.clear()
        with pytest.raises(openai.InternalServerError) as late:
            client.with_options(base_url=mesh.place(VN)["http"] + "/v1").chat.completions.create(
                model=CHAT,
                messages=messages("Count to a thousand."),
                n=4,
                max_tokens=400,
                extra_headers={"mesh-timeout-ms": "600"},
            )
        assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")
        assert len(sent) == 1


def test_errors_are_the_sdk_s_own_exceptions(mesh: Mesh, acme: str) -> None:
    with mesh.openai(VN, acme) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model=CHAT, messages=messages("Hi"), extra_body={"best_of_all": 1})
        assert (bad.value.code, bad.value.param, bad.value.type) == (
            "unsupported_parameter",
            "best_of_all",
            "invalid_request_error",
        )
        assert bad.value.request_id
    with mesh.openai(VN, "sk-nothing") as client, pytest.raises(openai.AuthenticationError) as who:
        client.models.list()
    assert who.value.code == "invalid_api_key"
    suspended = mesh.tenant("resting", "--allow", "VN")
    mesh.seen(suspended["key"])
    mesh.ask("tenant", "suspend", suspended["tenant"])
    with mesh.openai(VN, suspended["key"]) as client:

        def denied() -> openai.APIStatusError | None:
            try:
                client.models.list()
            except openai.PermissionDeniedError as error:
                return error
            return None

        error = wait_until(denied, "a suspended tenant is refused", deadline_s=5)
    assert (error.status_code, error.code, error.type) == (403, "tenant_suspended", "permission_error")
