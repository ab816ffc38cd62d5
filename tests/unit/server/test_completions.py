"""Completions and the tokenizer: prompts as they stand, echoes, likelihoods, token ids in and out."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from starlette.testclient import TestClient

from mlx_delta.language_model import LanguageModel
from support.serving import frames

PATH = "/v1/completions"
PROMPT = "<|im_start|>user\nCount to 7.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    """The completion; its stream has the same texts and likelihoods."""
    asked = {"prompt": PROMPT, "temperature": 0, **body}
    whole = client.post(PATH, json=asked)
    assert whole.status_code == 200, whole.text
    found: dict[str, Any] = whole.json()
    stream = client.post(PATH, json={**asked, "stream": True, "stream_options": {"include_usage": True}})
    chunks = [data for _, data in frames(stream.text.splitlines())]
    assert chunks.pop() == "[DONE]"
    assert chunks.pop()["usage"] == found["usage"]
    for choice in found["choices"]:
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        for name, values in (choice["logprobs"] or {}).items():
            assert name == "text_offset" or [each for part in parts for each in part["logprobs"][name]] == values
    return found


def test_continuations_are_the_librarys(client: TestClient, model: LanguageModel) -> None:
    ids = model.tokenizer.encode(PROMPT)
    found = ask(client, prompt=[PROMPT, "1 2 3"], n=2, max_tokens=20, temperature=1.0, seed=3, stop="5")
    texts = [
        model.generate(prompt, max_new_tokens=20, temperature=1.0, seed=3 + i, stop="5").text()
        for prompt in (PROMPT, "1 2 3")
        for i in range(2)
    ]
    assert [choice["text"] for choice in found["choices"]] == texts
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    for prompt in (ids, [ids]):
        whole = ask(client, prompt=prompt, max_tokens=40)
        assert (whole["choices"][0]["text"], whole["choices"][0]["finish_reason"]) == ("1 2 3 4 5 6 7", "stop")
    assert ask(client)["usage"]["total_tokens"] <= len(ids) + 16


def test_echo_and_likelihoods(client: TestClient, model: LanguageModel) -> None:
    ids = model.tokenizer.encode("1 2 3 4 5 6 7 " * 12)
    text = model.tokenizer.decode(ids)
    choice = ask(client, prompt=ids, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "length")
    logits = model.forward([ids])[0, :, : model.tokenizer.vocab_size].astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    expected = [logprobs[i, token].item() for i, token in enumerate(ids[1:])]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=0.05)
    assert "".join(choice["logprobs"]["tokens"]) == text
    assert choice["logprobs"]["text_offset"][-1] == len(text) - len(choice["logprobs"]["tokens"][-1])
    both = ask(client, max_tokens=3, echo=True, logprobs=2)["choices"][0]
    assert both["text"].startswith(PROMPT)
    assert len(both["logprobs"]["tokens"]) == len(model.tokenizer.encode(PROMPT)) + 3
    assert max(both["logprobs"]["top_logprobs"][-1].values()) == both["logprobs"]["token_logprobs"][-1]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 0}, "n"),
        ({"prompt": ["a"] * 40, "n": 10}, "n"),
    ],
)
def test_what_is_wrong_is_named(client: TestClient, wrong: dict[str, Any], param: str) -> None:
    response = client.post(PATH, json={"prompt": "a", "max_tokens": 1, **wrong})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].startswith(param)
    assert error["message"].startswith(param)


def test_tokens_and_their_text(client: TestClient, model: LanguageModel) -> None:
    ids = model.tokenizer.encode(PROMPT)
    for name in ("prompt", "content"):
        assert client.post("/tokenize", json={name: PROMPT}).json()["tokens"] == ids
    messages = [{"role": "user", "content": "Count to 7."}]
    off = {"enable_thinking": False}
    found = client.post("/tokenize", json={"messages": messages, "chat_template_kwargs": off}).json()
    assert (found["tokens"], found["count"]) == (ids, len(ids))
    assert client.post("/detokenize", json={"tokens": ids}).json() == {"prompt": PROMPT, "content": PROMPT}
    for path, wrong in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "content": "b"}),
        ("/detokenize", {"tokens": [-1]}),
    ):
        assert client.post(path, json=wrong).status_code == 400
