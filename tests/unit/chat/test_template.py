"""Chat templates: HF's renderings to the byte and its errors to the letter, from the unmodified template."""

import copy
import json
import re
from datetime import datetime
from typing import Any

import pytest

from mlx_delta.chat.template import render
from mlx_delta.errors import TemplateError
from support import ROOT

TEMPLATE = (ROOT / "examples/tiny/chat_template.jinja").read_text(encoding="utf-8")
ENTRIES = json.loads((ROOT / "tests/golden/chat_template.json").read_text(encoding="utf-8"))
USER = [{"role": "user", "content": "Hi"}]


def render_entry(entry: dict[str, Any]) -> str:
    variables = dict(entry["input"])
    messages = variables.pop("messages")
    tools = variables.pop("tools", None)
    prompt = variables.pop("add_generation_prompt", False)
    return render(TEMPLATE, messages, tools=tools, add_generation_prompt=prompt, variables=variables)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if "text" in entry])
def test_golden_texts(entry: dict[str, Any]) -> None:
    assert render_entry(entry) == entry["text"]


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if "error" in entry])
def test_golden_errors(entry: dict[str, Any]) -> None:
    with pytest.raises(TemplateError, match=f"^{re.escape(entry['error'])}$"):
        render_entry(entry)


def test_every_golden_entry_is_tested() -> None:
    assert [("text" in entry) + ("error" in entry) for entry in ENTRIES] == [1] * 58


@pytest.mark.parametrize("wrapped", [True, False])
def test_json_string_arguments(wrapped: bool) -> None:
    def messages(arguments: object) -> list[dict[str, Any]]:
        call = {"name": "f", "arguments": arguments}
        return [*USER, {"role": "assistant", "content": "", "tool_calls": [{"function": call} if wrapped else call]}]

    parsed = {"city": "Zürich", "days": [1, 2], "deep": {"a": None}}
    sent = messages(json.dumps(parsed))
    before = copy.deepcopy(sent)
    assert render(TEMPLATE, sent) == render(TEMPLATE, messages(parsed))
    assert sent == before
    assert render(TEMPLATE, messages("")) == render(TEMPLATE, messages({}))
    where = r"messages\[1\]\.tool_calls\[0\]" + (r"\.function" if wrapped else "")
    for wrong in ("[1]", "{"):
        with pytest.raises(TemplateError, match=where + r"\.arguments: expected a JSON object, found "):
            render(TEMPLATE, messages(wrong))


def test_environment() -> None:
    assert render("{{ x | tojson }}", [], variables={"x": "é<&'\""}) == '"é<&\'\\""'
    assert render("{% for m in messages %}{% break %}{% endfor %}{{ strftime_now('%Y') }}", USER) == str(
        datetime.now().year
    )
    assert render("a\n  {% if tools %}\n  {% endif %}\nb", [], tools=[]) == "a\nb"
    assert render("{{ add_generation_prompt }}", [], variables={"add_generation_prompt": False}) == "True"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("\n{% if %}", "chat template, line 2: expected Jinja, found: "),
        ("{{ 1 / 0 }}", "found: division by zero"),
        ("{{ messages[0].role + 1 }}", "chat template: expected messages that it can render"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    ],
)
def test_faults_of_the_template(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        render(template, USER)
