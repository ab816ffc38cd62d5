"""Prompts: an answer that is begun, thoughts by other names, text that is none, a template's surroundings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mlx_delta import ChatSettings, create_tool_definition, load_model
from mlx_delta.chat.messages import prepare_messages
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.template import TemplateError, render
from mlx_delta.language_model import LanguageModel
from mlx_delta.text.tokenizer import Tokenizer

COUNT = [{"role": "user", "content": "Count to 7."}]
ADD = create_tool_definition("add", "Add", {"a": {"type": "integer"}}, ["a"])
OPEN = "<|im_start|>user\nCount to 7.<|im_end|>\n<|im_start|>assistant\n"
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


@pytest.fixture(scope="module")
def tokenizer(model: LanguageModel) -> Tokenizer:
    return model.tokenizer


def begun(**message: Any) -> list[dict[str, Any]]:
    return [*COUNT, {"role": "assistant", **message}]


@pytest.mark.parametrize(
    ("message", "end", "written", "thinking"),
    [
        ({"content": "1 2"}, "<think>\n\n</think>\n\n1 2", "1 2", False),
        ({"content": "1 2 "}, "<think>\n\n</think>\n\n1 2 ", "1 2 ", False),
        ({"content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "2"}]}, "\n\n1 2", "1 2", False),
        ({"content": "1", "tool_calls": None}, "</think>\n\n1", "1", False),
        ({"content": "1", "tool_calls": []}, "</think>\n\n1", "1", False),
        ({"content": "1", "reasoning_content": "Easy."}, "<think>\nEasy.\n</think>\n\n1", "1", False),
        ({"content": "1", "reasoning": "Easy."}, "<think>\nEasy.\n</think>\n\n1", "1", False),
        ({"content": "<think>\nEasy.\n</think>\n\n1"}, "<think>\nEasy.\n</think>\n\n1", "1", False),
        ({"content": "", "reasoning_content": "I think"}, "<think>\nI think", "I think", True),
        ({"content": None, "thinking": "I think\n"}, "<think>\nI think\n", "I think\n", True),
        ({"content": "<think>\nI think"}, "<think>\nI think", "I think", True),
    ],
)
def test_an_answer_that_is_begun(
    tokenizer: Tokenizer, message: dict[str, Any], end: str, written: str, thinking: bool
) -> None:
    for settings in (ChatSettings(), ChatSettings(enable_thinking=False), ChatSettings(strict=True)):
        prompt = Prompt.build(tokenizer, begun(**message), settings)
        text = tokenizer.decode(prompt.ids)
        assert text.startswith(OPEN)
        assert text.endswith(end)
        assert text.count("assistant") == 1
        assert (prompt.written, prompt.thinking) == (written, thinking)


def test_nothing_written_is_no_beginning(tokenizer: Tokenizer) -> None:
    plain = Prompt.build(tokenizer, COUNT, ChatSettings())
    for message in ({"content": ""}, {"content": None}, {"content": "", "reasoning_content": ""}, {"content": []}):
        assert Prompt.build(tokenizer, begun(**message), ChatSettings()) == plain
    called = begun(content="", tool_calls=[{"function": {"name": "add", "arguments": {"a": 1}}}])
    text = tokenizer.decode(Prompt.build(tokenizer, called, ChatSettings()).ids)
    assert text.endswith("</function>\n</tool_call><|im_end|>\n<|im_start|>assistant\n<think>\n")


def test_answers_go_on(model: LanguageModel) -> None:
    """The text is the new text alone; streamed, in a session and in a batch too."""
    whole = model.chat(COUNT, **GREEDY, enable_thinking=False).text
    assert whole == "1 2 3 4 5 6 7"
    for start in ("1 2", "1 2 3 4 5 6"):
        messages = begun(content=start)
        result = model.chat(messages, **GREEDY, enable_thinking=False)
        assert start + result.text == whole
        assert (result.thinking, result.finish_reason, result.warnings) == ("", "stop", [])
        streamed = list(model.chat_stream(messages, **GREEDY, enable_thinking=False))
        assert "".join(event.text for event in streamed) == result.text
        assert model.session().chat(messages, **GREEDY, enable_thinking=False).text == result.text
        assert model.chat_batch([messages, COUNT], **GREEDY, enable_thinking=False)[0].text == result.text
    cut = model.chat(COUNT, temperature=0, max_new_tokens=3)
    assert cut.thinking == "This is easy"
    rest = model.chat([*COUNT, cut.message], **GREEDY)
    free = model.chat(COUNT, **GREEDY)
    assert (cut.thinking + rest.thinking, rest.text) == (free.thinking, free.text)


def test_a_begun_document_and_a_begun_call(model: LanguageModel) -> None:
    pytest.importorskip("llguidance")
    number = {"type": "integer", "maximum": 99}
    schema = {"type": "object", "properties": {"n": number}, "required": ["n"], "additionalProperties": False}
    for start in ('{"n": ', '{"n": 4'):
        rest = model.chat(begun(content=start), **GREEDY, json_schema=schema, enable_thinking=False).text
        assert isinstance(json.loads(start + rest)["n"], int)
    with pytest.raises(ValueError, match=r"messages: expected the beginning of a JSON document, found 'So'"):
        model.chat(begun(content="So"), json_schema=schema, enable_thinking=False)
    start = "<tool_call>\n<function=add>\n<parameter=a>\n"
    result = model.chat(begun(content=start), **GREEDY, tools=[ADD], enable_thinking=False)
    assert [call.name for call in result.tool_calls] == ["add"] or result.text.startswith(start)
    fenced = model.chat(begun(content="```\n<tool_"), **GREEDY, tools=[ADD], enable_thinking=False)
    assert not fenced.tool_calls


def test_thoughts_by_any_name(tokenizer: Tokenizer) -> None:
    def text(**message: Any) -> str:
        call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
        chat = [*COUNT, {"role": "assistant", "tool_calls": [call], **message}, {"role": "tool", "content": "1"}]
        return tokenizer.decode(Prompt.build(tokenizer, chat, ChatSettings(tools=[ADD])).ids)

    right = text(content="", reasoning_content="I add.")
    assert "<think>\nI add.\n</think>" in right
    for message in (
        {"content": None, "reasoning": "I add."},
        {"content": "", "thinking": "I add."},
        {"content": "", "reasoning_content": None, "reasoning": "I add."},
        {"content": "", "reasoning_content": "I add.", "reasoning": "Not this."},
        {"content": [], "reasoning": "I add.", "audio": None, "refusal": None, "function_call": None},
    ):
        assert text(**message) == right


def test_null_arguments_are_none(tokenizer: Tokenizer) -> None:
    for arguments in (None, "", "null", "{}", {}):
        call = {"type": "function", "id": "x", "function": {"name": "add", "arguments": arguments}}
        chat = [*COUNT, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "1"}]
        text = tokenizer.decode(Prompt.build(tokenizer, chat, ChatSettings()).ids)
        assert "<function=add>\n</function>" in text


HALF = "half an emoji \ud83d"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": HALF}, r"messages\[1\]\.content: expected text that is UTF-8, found '\\ud83d' at 14"),
        ({"content": b"bytes"}, r"messages\[1\]\.content: expected text or a list of parts, found bytes"),
        ({"content": 7}, r"messages\[1\]\.content: expected text or a list of parts, found int"),
        ({"content": {"text": "x"}}, r"messages\[1\]\.content: expected text or a list of parts, found dict"),
        ({"content": [{"type": "text", "text": HALF}]}, r"messages\[1\]\.content\[0\]\.text: expected text that is"),
        ({"content": [{"type": "text", "text": None}]}, r"messages\[1\]\.content\[0\]: expected a part with text"),
        ({"content": ["x"]}, r"messages\[1\]\.content\[0\]: expected a part with text, found 'x'"),
        ({"content": "", "reasoning": ["x"]}, r"messages\[1\]\.reasoning: expected text, found list"),
        ({"content": "", "reasoning_content": HALF}, r"messages\[1\]\.reasoning_content: expected text that is UTF-8"),
        ({"content": "", "tool_calls": {}}, r"messages\[1\]\.tool_calls: expected a list, found dict"),
        (
            {"content": "", "tool_calls": ["f"]},
            r"messages\[1\]\.tool_calls\[0\]: expected a function with a name, found",
        ),
        ({"content": "", "tool_calls": [{"function": {"name": None}}]}, r"tool_calls\[0\]: expected a function with"),
        (
            {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]},
            r"messages\[1\]\.tool_calls\[0\]\.function\.arguments: expected a mapping or its JSON, found list",
        ),
        (
            {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": {"b": [HALF]}}}}]},
            r"messages\[1\]\.tool_calls\[0\]\.function\.arguments\.a\.b\[0\]: expected text that is UTF-8",
        ),
        (
            {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": b"x"}}}]},
            r"arguments\.a: expected text, found bytes",
        ),
        ({"content": "", HALF: "x"}, r"messages\[1\]: a name: expected text that is UTF-8"),
    ],
)
def test_messages_that_are_none(model: LanguageModel, message: dict[str, Any], error: str) -> None:
    for role in ("assistant", "tool"):
        with pytest.raises(ValueError, match=error):
            model.chat([*COUNT, {"role": role, **message}, *COUNT])
    with pytest.raises(ValueError, match=error):
        prepare_messages([*COUNT, {"role": "system", **message}], strict=True)


def test_text_that_is_none(model: LanguageModel) -> None:
    """One check at the tokenizer's door, whatever leads to it."""
    with pytest.raises(ValueError, match=r"^prompt: expected text that is UTF-8, found '\\udce9' at 3$"):
        model.generate(b"caf\xe9".decode("utf-8", "surrogateescape"))
    for no_prompt in (None, b"x", 3, [1.5], ["x"], {"a": 1}):
        with pytest.raises(ValueError, match=r"^prompt: expected text or token ids, found "):
            model.generate(no_prompt)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^conversations\[1\]: messages\[0\]\.content: expected text that is UTF-8"):
        model.chat_batch([COUNT, [{"role": "user", "content": HALF}]])
    with pytest.raises(ValueError, match=r"^text: expected text that is UTF-8, found '\\ud83d' at 0$"):
        model.tokenizer.encode("\ud83d")
    for wrong in (b"x", None, 3, ["x"]):
        with pytest.raises(ValueError, match=r"^text: expected text, found "):
            model.tokenizer.encode(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^messages\[0\]\.content: expected text that is UTF-8"):
        model.render_chat([{"role": "user", "content": HALF}])
    with pytest.raises(ValueError, match=r"^tools\[0\]\.function\.description: expected text that is UTF-8"):
        model.chat(COUNT, tools=[create_tool_definition("f", HALF, {})])
    assert model.tokenizer.encode("\U0001f999\ufffd\x00") is not None


GENERATION = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}\n"
    "{% generation %}{% set x = 1 %}{{ m.content }}{{ eos_token }}{% endgeneration %}\n{{ x }}{% endfor %}"
)


def variant(tiny: Path, folder: Path, template: Any = None, **settings: Any) -> LanguageModel:
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").unlink()
    found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    found = {**found, "chat_template": template, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(found), encoding="utf-8")
    return load_model(folder)


def test_what_templates_see(tiny: Path, tmp_path: Path) -> None:
    """As Hugging Face has it."""
    tokens = {"bos_token": {"content": "<s>"}, "pad_token": "<p>", "unk_token": None, "add_bos_token": True}
    further = {"extra_special_tokens": {"image_token": "<i>"}}
    model = variant(tiny, tmp_path, GENERATION, **tokens, **further)
    assert model.tokenizer.special_tokens == {
        "bos_token": "<s>", "pad_token": "<p>", "eos_token": "<|im_end|>", "image_token": "<i>"
    }  # fmt: skip
    expected, _ = render_jinja_template([COUNT], chat_template=GENERATION, **model.tokenizer.special_tokens)
    assert model.render_chat(COUNT) == expected[0] == "<s>user\nCount to 7.<|im_end|>"
    given = model.render_chat(COUNT, bos_token="!")
    assert given.startswith("!user")


def test_named_templates(tiny: Path, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools|length }}"}]
    model = variant(tiny, tmp_path / "list", named)
    assert (model.render_chat(COUNT), model.render_chat(COUNT, tools=[ADD])) == ("D", "T1")
    assert model.tokenizer.decode(Prompt.build(model.tokenizer, COUNT, ChatSettings(tools=[ADD])).ids) == "T1"
    folder = tmp_path / "list" / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("FILE", encoding="utf-8")
    (tmp_path / "list" / "chat_template.jinja").write_text("JINJA", encoding="utf-8")
    model = load_model(tmp_path / "list")
    assert (model.render_chat(COUNT), model.render_chat(COUNT, tools=[ADD])) == ("JINJA", "FILE")
    model = variant(tiny, tmp_path / "other", [{"name": "rag", "template": "R"}])
    with pytest.raises(TemplateError, match=r"expected a default one in the checkpoint's files, found rag"):
        model.render_chat(COUNT)


def test_null_is_what_it_is_elsewhere() -> None:
    source = (
        "{% for m in messages %}{{ m.content is none }}{{ m.content is string }}{% endfor %}{{ documents is none }}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    expected, _ = render_jinja_template([messages], chat_template=source)
    assert render(source, messages) == expected[0] == "FalseTrueTrueFalseTrue"


@pytest.mark.parametrize(
    "body", ["{{ m.content }}", "{% if m.x %}{{ m.x }}{% endif %}", "", "a\n  {%- set y = 2 %}{{ y }}\n"]
)
def test_generation_blocks_are_what_they_hold(body: str) -> None:
    source = f"{{% for m in messages %}}[\n  {{%- generation %}}\n {body}{{%- endgeneration -%}}\n]{{% endfor %}}"
    messages = [{"role": "user", "content": "<b>", "x": "1"}, {"role": "assistant", "content": "é"}]
    expected, _ = render_jinja_template([messages], chat_template=source)
    assert render(source, messages) == expected[0]
