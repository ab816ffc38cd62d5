"""The checkpoint's tokenizer, and detokenizing a token at a time."""

import json
import random
import shutil
from pathlib import Path

import pytest

from mlx_delta.text.detokenize import Detokenizer
from mlx_delta.text.tokenizer import GenerationDefaults, Tokenizer, TokenizerError
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
    assert tokenizer.eos_token_ids == ()
    assert tokenizer.chat_template is None
    assert tokenizer.generation_defaults == GenerationDefaults()


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
        ("generation_config.json", "[]", "generation_config.json: expected a JSON object, found list"),
    ],
)
def test_errors(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    copy_tiny(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_dir(tmp_path)
