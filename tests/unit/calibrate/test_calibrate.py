"""The calibration run: against llama.cpp's own, through both formats, interrupted and resumed; and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from typer.testing import CliRunner

from mlx_delta.calibrate.chunks import read_chunks
from mlx_delta.calibrate.importance import Progress, measure_importance
from mlx_delta.cli.main import app
from mlx_delta.conversion.imatrix import read_imatrix, write_imatrix
from mlx_delta.language_model import LanguageModel
from mlx_delta.loading import load_model

LAYER = "language_model.model.layers.0."


@pytest.fixture(scope="module")
def model(tiny: Path) -> LanguageModel:
    return load_model(tiny, "float32")


@pytest.fixture(scope="module")
def chunks(model: LanguageModel, golden: Path) -> list[list[int]]:
    return read_chunks([golden / "heldout.txt"], model.tokenizer, context=128, max_chunks=3)


def test_sums_are_their_formula(model: LanguageModel, chunks: list[list[int]]) -> None:
    """Of the first matrices, whose input is the embedding, and of the last: in float64."""
    run = measure_importance(model, chunks)
    assert (run.chunks, run.chunk_size, len(run.sums)) == (3, 128, 63)
    states = [list(model.network.hidden_states(mx.array([chunk]), model.make_cache())) for chunk in chunks]
    for layer, norm, module in (
        (0, model.network.layers[0].norm, f"{LAYER}linear_attn.in_proj_z"),
        (-1, model.network.norm, "language_model.lm_head"),
    ):
        x = np.concatenate([np.array(state[layer][0], np.float64) for state in states])
        h = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.array(norm, np.float64)
        assert np.allclose(run.sums[module], (h**2).sum(0), rtol=1e-5)
    assert np.array_equal(run.sums[f"{LAYER}linear_attn.in_proj_qkv"], run.sums[f"{LAYER}linear_attn.in_proj_a"])


def test_sums_are_those_of_hugging_face(model: LanguageModel, golden: Path) -> None:
    """From its hidden states: what the first matrices of every layer read, and lm_head (the last is normed already)."""
    stored = mx.load(str(golden / "model.safetensors"))
    assert isinstance(stored, dict)
    ids, hidden = stored["0.ids"].tolist(), np.array(stored["0.hidden"].astype(mx.float32), np.float64)
    run = measure_importance(model, [ids])
    last = hidden[-1].reshape(-1, hidden.shape[-1])
    assert np.allclose(run.sums["language_model.lm_head"], (last**2).sum(0), rtol=1e-4)
    for index, layer in enumerate(model.network.layers):
        x = hidden[index].reshape(-1, hidden.shape[-1])
        h = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.array(layer.norm, np.float64)
        kind = "linear_attn.in_proj_b" if hasattr(layer, "in_proj") else "self_attn.k_proj"
        found = run.sums[f"language_model.model.layers.{index}.{kind}"]
        assert np.allclose(found, (h**2).sum(0), rtol=1e-4), index


def test_both_formats_hold_the_means(model: LanguageModel, chunks: list[list[int]], tmp_path: Path) -> None:
    """The order of value heads is llama.cpp's in the file, and ours again once read."""
    run = measure_importance(model, chunks)
    for form in ("gguf", "dat"):
        path = tmp_path / f"imatrix.{form}"
        write_imatrix(path, run, model.config, form)
        found = read_imatrix(path, model.config)
        assert found.keys() == run.sums.keys()
        for name, values in found.items():
            assert np.allclose(values, run.sums[name] / run.tokens, rtol=1e-6), (form, name)


def test_interrupted_run_goes_on(model: LanguageModel, chunks: list[list[int]], tmp_path: Path) -> None:
    """To the same bits; and what another text left is not taken."""
    state = tmp_path / "state"

    def stop(step: Progress) -> None:
        if step.chunks == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_importance(model, chunks, state=state, progress=stop)
    assert state.is_file()
    steps: list[int] = []
    resumed = measure_importance(model, chunks, state=state, progress=lambda step: steps.append(step.chunks))
    assert steps == [2, 3]
    whole = measure_importance(model, chunks)
    assert all(np.array_equal(values, whole.sums[name]) for name, values in resumed.sums.items())
    other: list[int] = []
    measure_importance(model, chunks[:1], state=state, progress=lambda step: other.append(step.chunks))
    assert other == [0, 1]
    state.write_bytes(state.read_bytes()[:1000])
    assert measure_importance(model, chunks[:1], state=state).chunks == 1


def test_chunks_of_chats_and_text(model: LanguageModel, golden: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    question = {"messages": [{"role": "user", "content": "Count to 7."}, {"role": "assistant", "content": "1, 2, 3"}]}
    chats.write_text((json.dumps(question) + "\n\n") * 8 + json.dumps({"text": "plain"}) + "\n")
    chunks = read_chunks([golden / "heldout.txt", chats], model.tokenizer, context=64, max_chunks=4)
    assert [len(chunk) for chunk in chunks] == [64] * 4
    plain, chat = (model.tokenizer.decode(chunks[i]) for i in (0, 1))
    assert (golden / "heldout.txt").read_text().startswith(plain)
    assert chat.startswith("<|im_start|>user\nCount to 7.<|im_end|>\n<|im_start|>assistant\n")
    assert model.tokenizer.token_id("<|im_start|>") == chunks[1][0]
    for content, message in (
        ("{", r"chats\.jsonl:1: expected JSON"),
        ('\n{"messages": 3}', r'chats\.jsonl:2: expected an object with "messages" or "text"'),
        ('{"messages": []}', r"chats\.jsonl:1: "),
        ('{"text": "few"}', r"chats\.jsonl: expected at least a chunk of 64 tokens, found \d"),
    ):
        chats.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_chunks([chats], model.tokenizer, context=64)


def test_command_line(tiny: Path, golden: Path, tmp_path: Path) -> None:
    out = tmp_path / "imatrix.dat"
    arguments = ["imatrix", "-m", str(tiny), "-t", str(golden / "heldout.txt"), "--context", "64", "--max-chunks", "2"]
    done = CliRunner().invoke(app, [*arguments, "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"\x3f\x00\x00\x00")  # .dat by its name: a count, not GGUF's magic
    assert [left.name for left in tmp_path.iterdir()] == ["imatrix.dat"]
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    new = str(tmp_path / "new.gguf")
    for wrong, message in (
        (["-o", str(out)], "found it there already (--force replaces it)"),
        (["-o", str(tmp_path / "absent" / "x")], "expected a directory"),
        (["-o", new, "--format", "csv"], "--format: expected gguf or dat, found csv"),
        (["-o", new, "--context", "1"], "--context: expected at least 2 tokens, found 1"),
        (["-o", new, "--max-chunks", "0"], "--max-chunks: expected at least 1, found 0"),
        (["-o", new, "-t", str(tmp_path / "latin")], "latin: expected UTF-8, found the byte 0xe9"),
        (["-o", new, "-t", str(tmp_path / "none")], "none"),
    ):
        refused = CliRunner().invoke(app, [*arguments, *wrong])
        assert refused.exit_code == 1, wrong
        assert message in refused.output.replace("\n", ""), refused.output
    assert sorted(left.name for left in tmp_path.iterdir()) == ["imatrix.dat", "latin"]
