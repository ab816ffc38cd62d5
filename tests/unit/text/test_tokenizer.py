"""The checkpoint's tokenizer, and detokenizing a token at a time."""

import json
import random
import shutil
from pathlib import Path

import pytest

from mlx_delta.errors import TokenizerError
from mlx_delta.text.detokenize import Detokenizer
from mlx_delta.text.tokenizer import GenerationDefaults, Tokenizer
from support import ROOT

TINY = ROOT / "examples/tiny"
TEXTS = [
    "Hello, world!\n",
    "  leading",
    "日本語 漢字 한국어",
    "👩‍👩‍👧‍👦🦙🇨🇭",
    "é e\u0301 ﷺ",
    "a<think>\n</think><|im_end|>b",
    "\ufffd",
    "\x00\t",
    "",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(TINY)


def detokenize(tokenizer: Tokenizer, ids: list[int], skip_special: bool = False) -> list[str]:
    stream = Detokenizer(tokenizer, skip_special)
    return [stream.push(i) for i in ids] + [stream.finish()]


def test_tiny_checkpoint(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 4096
    assert tokenizer.eos_token_ids == (4072, 4070)
    assert tokenizer.token_id("<think>") == 4094
    assert tokenizer.token_id("<nothing>") is None
    assert tokenizer.token_id("<think>") not in tokenizer.special_ids
    assert tokenizer.special_ids == frozenset(range(4070, 4084))
    assert tokenizer.chat_template == (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    assert tokenizer.generation_defaults == GenerationDefaults(do_sample=True, temperature=0.6, top_p=0.95, top_k=20)


def test_encode(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nHi<think>")
    assert ids[0] == tokenizer.token_id("<|im_start|>")
    assert ids[-1] == tokenizer.token_id("<think>")
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi<think>"
    assert tokenizer.decode(ids, skip_special=True) == "user\nHi<think>"
    goldens = json.loads((ROOT / "tests/golden/chat_template.json").read_text(encoding="utf-8"))
    for text in [*TEXTS[:4], *(entry["text"] for entry in goldens if "text" in entry)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pieces_are_the_text(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        for skip in (False, True):
            pieces = detokenize(tokenizer, ids, skip)
            assert "".join(pieces) == tokenizer.decode(ids, skip)
            assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_random_ids(tokenizer: Tokenizer) -> None:
    """Random ids with many bytes of broken UTF-8 and ids beyond the vocabulary: the pieces are decode()'s text."""
    rng = random.Random(0)
    broken = [i for i in range(tokenizer.vocab_size) if "\ufffd" in tokenizer.decode([i])]
    assert len(broken) > 100
    for _ in range(3000):
        pool = rng.choice([broken, range(tokenizer.vocab_size + 50)])
        ids = [rng.choice(pool) for _ in range(rng.randrange(1, 40))]
        skip = rng.random() < 0.5
        assert "".join(detokenize(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


def test_broken_characters_wait(tokenizer: Tokenizer) -> None:
    single = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1}
    llama = [single[bytes([byte])] for byte in "🦙".encode()]
    assert detokenize(tokenizer, llama) == ["", "", "", "🦙", ""]
    assert detokenize(tokenizer, [*llama[:3], single[b"x"]]) == ["", "", "", "\ufffdx", ""]
    assert detokenize(tokenizer, llama[:3]) == ["", "", "", "\ufffd"]


def copy_tiny(target: Path, *names: str) -> Path:
    for name in ("tokenizer.json", *names):
        shutil.copy(TINY / name, target)
    return target


def test_tokenizer_json_alone(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(copy_tiny(tmp_path))
    assert tokenizer.eos_token_ids == (4072, 4070)
    assert tokenizer.chat_template is None
    assert tokenizer.generation_defaults == GenerationDefaults()


IM_END, END_OF_TEXT, THINK = 4072, 4070, 4094


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({}, (IM_END, END_OF_TEXT)),
        ({"generation_config.json": {"eos_token_id": END_OF_TEXT}}, (END_OF_TEXT, IM_END)),
        ({"generation_config.json": {"eos_token_id": [THINK]}}, (THINK, IM_END, END_OF_TEXT)),
        ({"generation_config.json": {"eos_token_id": None}}, (IM_END, END_OF_TEXT)),
        ({"config.json": {"eos_token_id": THINK, "text_config": {"eos_token_id": 7}}}, (7, THINK, IM_END, END_OF_TEXT)),
        ({"config.json": {"eos_token_id": THINK, "text_config": None}}, (THINK, IM_END, END_OF_TEXT)),
        ({"tokenizer_config.json": {"eos_token": "<think>"}}, (THINK, IM_END, END_OF_TEXT)),
        ({"tokenizer_config.json": {"eos_token": {"content": "<think>"}}}, (THINK, IM_END, END_OF_TEXT)),
        (
            {
                "generation_config.json": {"eos_token_id": [5, 6]},
                "config.json": {"eos_token_id": [6, 7]},
                "tokenizer_config.json": {"eos_token": "<think>"},
            },
            (5, 6, 7, THINK, IM_END, END_OF_TEXT),
        ),
    ],
)
def test_end_tokens_are_those_of_all_files(
    tmp_path: Path, files: dict[str, dict[str, object]], eos: tuple[int, ...]
) -> None:
    copy_tiny(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert Tokenizer.from_dir(tmp_path).eos_token_ids == eos


def test_tags_that_answers_are_read_by_are_never_skipped(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Flagged special, as some files have them: shown all the same. <|im_end|> is not."""
    content = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] |= "tool" in token["content"] or "think" in token["content"]
    assert content["added_tokens"][-1]["special"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    found = Tokenizer.from_dir(tmp_path)
    assert found.special_ids == tokenizer.special_ids
    text = "<think>\na\n</think>\n<tool_call>b</tool_call><tool_response>c</tool_response><|im_end|>"
    ids = found.encode(text)
    assert ids == tokenizer.encode(text)
    shown = text.removesuffix("<|im_end|>")
    assert found.decode(ids, skip_special=True) == "".join(detokenize(found, ids, True)) == shown


def test_null_is_absent(tmp_path: Path) -> None:
    copy_tiny(tmp_path)
    settings = dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "do_sample", "eos_token_id"))
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": null, "chat_template": null}')
    (tmp_path / "config.json").write_text('{"eos_token_id": null, "text_config": null}')
    found = Tokenizer.from_dir(tmp_path)
    assert found.generation_defaults == GenerationDefaults()
    assert found.chat_template is None


def test_settings_of_a_training_run_do_not_cut_prompts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": END_OF_TEXT,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    text = "one two three four five six seven"
    assert Tokenizer.from_dir(tmp_path).encode(text) == tokenizer.encode(text)


def test_the_template_of_a_processor(tmp_path: Path) -> None:
    """The last place that is looked at."""
    copy_tiny(tmp_path)
    (tmp_path / "chat_template.json").write_text('{"chat_template": "p"}')
    assert Tokenizer.from_dir(tmp_path).chat_template == "p"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "t"}')
    assert Tokenizer.from_dir(tmp_path).chat_template == "t"
    (tmp_path / "chat_template.jinja").write_text("j")
    assert Tokenizer.from_dir(tmp_path).chat_template == "j"


def test_fallbacks(tmp_path: Path) -> None:
    """Without generation_config.json and chat_template.jinja: the eos of both configs, and the template of one."""
    copy_tiny(tmp_path, "tokenizer_config.json")
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": 4070}}')
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.eos_token_ids == (4070, 4072)
    assert tokenizer.chat_template == (TINY / "chat_template.jinja").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text('{"eos_token_id": [4072, 4070]}')
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": None, "chat_template": templates}))
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.eos_token_ids == (4072, 4070)
    assert tokenizer.chat_template == "d"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json: expected a checkpoint's tokenizer.json, found nothing"),
        ("tokenizer.json", "{", "tokenizer.json: expected JSON, found "),
        ("tokenizer.json", "{}", "tokenizer.json: expected a tokenizer, found "),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
            "decoder: expected 'ByteLevel', found None",
        ),
        ("generation_config.json", '{"eos_token_id": "4072"}', "eos_token_id: expected ids of .* found '4072'"),
        ("generation_config.json", '{"eos_token_id": [4072, true]}', "eos_token_id: expected ids of .* found True"),
        ("generation_config.json", '{"eos_token_id": [4096]}', "eos_token_id: expected ids of .* found 4096"),
        ("generation_config.json", '{"eos_token_id": -1}', "eos_token_id: expected ids of .* found -1"),
        ("generation_config.json", '{"eos_token_id": 4072.0}', "eos_token_id: expected ids of .* found 4072.0"),
        ("generation_config.json", '{"eos_token_id": {}}', "eos_token_id: expected ids of .* found {}"),
        ("config.json", '{"text_config": {"eos_token_id": [4]}, "eos_token_id": "x"}', "config.json: eos_token_id"),
        ("tokenizer_config.json", '{"eos_token": 4072}', "tokenizer_config.json: eos_token: expected a token"),
        ("tokenizer_config.json", '{"eos_token": "<eos>"}', "eos_token: expected a token .* found '<eos>'"),
        ("tokenizer_config.json", '{"chat_template": 1}', "tokenizer_config.json: chat_template: expected text"),
        ("generation_config.json", '{"temperature": "hot"}', "json: temperature: expected a finite number >= 0"),
        ("generation_config.json", '{"temperature": NaN}', "temperature: expected a finite number >= 0, found nan"),
        ("generation_config.json", '{"temperature": true}', "temperature: expected a finite number >= 0, found True"),
        ("generation_config.json", '{"top_p": 1.5}', "top_p: expected a number > 0 and <= 1, found 1.5"),
        ("generation_config.json", '{"top_k": 2.5}', "top_k: expected a positive integer or 0, found 2.5"),
        ("generation_config.json", '{"do_sample": 1}', "do_sample: expected true or false, found 1"),
        ("generation_config.json", '{"repetition_penalty": 0}', "repetition_penalty: expected a finite number > 0"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: expected UTF-8"),
    ],
)
def test_errors(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    copy_tiny(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_dir(tmp_path)
