"""What one token of the 9B asks of a GPU: how many launches, and which bytes."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_delta import _core, ops
from mlx_delta.arch.registry import parse_config
from mlx_delta.bench.cases import CASES
from mlx_delta.bench.cases.draws import quantized
from mlx_delta.bench.sizes import CONFIGS
from mlx_delta.engine.sample import Sampler, SamplingParams
from mlx_delta.loading import load_model
from mlx_delta.model.cache import Cache
from mlx_delta.model.experts import Experts
from mlx_delta.model.layers import AttentionLayer, DeltaLayer, Mlp
from mlx_delta.model.network import Network
from mlx_delta.model.rows import Span
from mlx_delta.ops import Matrix

OURS = {"qmm", "embedding", "delta_mixer", "attention_prepare", "attention", "attention_rows", "sample"}
NO_BYTES = {"Slice", "Squeeze", "Reshape", "Broadcast", "ExpandDims", "Contiguous"}  # of what is laid end to end
TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 64,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [3, 3, 2]},
}


def nine_b_in_small() -> Network:
    """The 9B's layers and their widths, 32 of them, each a few values wide."""
    text = CONFIGS["9B"]["text_config"]
    config = parse_config({"model_type": "qwen3_5", "text_config": {**text, **TINY}}, "9B in small").text
    rng = np.random.default_rng(0)

    def affine(N: int, bits: int) -> Matrix:
        return quantized(rng, N, 64, bits)

    def whole(N: int, K: int) -> Matrix:
        return Matrix.plain(mx.zeros((N, K), mx.bfloat16))

    mlp = Mlp(mx.ones(64), affine(64, 3), affine(64, 3), affine(64, 4))
    heads, keys = config.num_attention_heads * 64, config.num_key_value_heads * 64
    values = config.linear_num_value_heads
    attention = AttentionLayer(
        config=config,
        norm=mx.ones(64),
        qkv_proj=(affine(2 * heads, 5), affine(keys, 5), affine(keys, 5)),
        q_norm=mx.ones(64),
        k_norm=mx.ones(64),
        o_proj=whole(64, heads),
        feed_forward=mlp,
    )
    delta = DeltaLayer(
        config=config,
        norm=mx.ones(64),
        in_proj=(affine(config.conv_dim, 5), affine(config.value_dim, 5), whole(values, 64), whole(values, 64)),
        conv=mx.ones((config.conv_dim, 4)),
        A_log=mx.zeros(values),
        dt_bias=mx.zeros(values),
        gated_norm=mx.ones(32),
        out_proj=whole(64, config.value_dim),
        feed_forward=mlp,
    )
    layers = tuple(delta if kind == "linear_attention" else attention for kind in config.layer_types)
    return Network(config, mx.bfloat16, affine(64, 5), layers, mx.ones(64), affine(64, 6))


def primitives(*arrays: mx.array) -> Counter[str]:
    """How often each primitive is in the graph of arrays that have not been evaluated."""
    dot = io.StringIO()
    mx.export_to_dot(dot, *arrays)
    return Counter(re.findall(r'label ?="(\w+)", ?shape=rectangle', dot.getvalue()))


@pytest.fixture(scope="module")
def token() -> Counter[str]:
    """The primitives of one decode step, the sampling of its token by a preset included."""
    network = nine_b_in_small()
    cache = Cache.empty(network.config)
    parameters = [leaf for layer in network.layers[:4] for leaf in vars(layer).values() if isinstance(leaf, mx.array)]
    mx.eval(network(mx.array([[1, 2, 3]]), cache), *cache.arrays(), *parameters)
    logits = network(mx.array([[4]]), cache)
    preset = SamplingParams(temperature=0.7, top_k=20, top_p=0.8, presence_penalty=1.5, seed=1)
    sampler = Sampler(preset, network.config.vocab_size)
    return primitives(sampler.sample(logits[:, 0]), *cache.arrays(), *sampler.arrays())


def test_launches_of_a_token_of_the_9b(token: Counter[str]) -> None:
    """By the plans of the 9B's own shapes, at a context of 16000, where attention is split and takes two."""
    assert token["delta_mixer"] == 24
    assert token["attention"] == token["attention_prepare"] == 8
    large = ("9b-lm_head", "9b")  # 248320 rows take seconds to draw and are planned as others are
    planned = {c.op: c for c in CASES if c.real or c.op == "embedding" if c.name not in large}
    launches = 0
    for name, count in token.items():
        each = 0 if name in NO_BYTES else 2 if name == "ScatterAxis" else 1  # a copy, and the tokens that it marks
        if name in planned:
            arguments = planned[name].arguments(mx.bfloat16)
            each = len(_core.plan(planned[name].run(arguments)[0])[0].launches)
        launches += count * each
    assert launches <= 5 * 24 + 7 * 8 + 2 + 4, token


def test_a_token_is_our_kernels_and_the_choice_of_the_token(token: Counter[str]) -> None:
    assert token["qmm"] == 4 * 32 + 1
    assert set(token) - OURS <= {"ScatterAxis"} | NO_BYTES, token


def test_launches_of_a_pass_that_checks_drafts(token: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three drafts: matrices are read once, states once for these and for the tokens that were pending, and attention
    takes the rows in one launch: as many launches as of a token."""
    gpu = mx.Device(mx.DeviceType.gpu, 0)
    monkeypatch.setattr(mx, "default_device", lambda: gpu)
    network, rows = nine_b_in_small(), mx.array([4, 5, 6, 7])
    cache = Cache.empty(network.config)
    mx.eval(network(mx.array([[1, 2, 3]]), cache), *cache.arrays())
    for _ in range(2):
        mx.eval(cache.arrays())
        cache.begin_drafts()
        x, _ = network.advance(rows, None, [Span(cache, 0, 4)])
        assert x is not None
        checking = primitives(network.logits(x), *cache.arrays())
        cache.end_drafts(2, 4)
    assert {name: checking[name] for name in ("qmm", "delta_mixer", "embedding")} == {
        name: token[name] for name in ("qmm", "delta_mixer", "embedding")
    }
    assert checking["attention_rows"] == network.config.layer_types.count("full_attention")
    assert set(checking) - OURS <= NO_BYTES, checking


def test_launches_of_a_step_of_eight_sequences(token: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as of one: matrices and mixers take all sequences, so that nothing has to be laid end to end."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.DeviceType.gpu, 0))
    network, tokens = nine_b_in_small(), mx.array([*range(8)])
    caches = [Cache.empty(network.config) for _ in range(8)]
    mx.eval(network.decode(tokens, caches), *(array for cache in caches for array in cache.arrays()))
    logits = network.decode(tokens, caches)
    step = primitives(logits, *(array for cache in caches for array in cache.arrays()))
    assert (step["qmm"], step["delta_mixer"], step["embedding"]) == (token["qmm"], token["delta_mixer"], 1)
    assert step["attention_rows"] == network.config.layer_types.count("full_attention")
    assert set(step) - OURS <= NO_BYTES, step
    assert {launch.file for launch in _core.launches([logits])} >= {"delta_mixer_rows", "attention_rows"}


def test_launches_of_attention_of_several_sequences() -> None:
    """As many as of one: two with what prepares it; from nine on twice as many."""
    case = next(c for c in CASES if c.op == "attention_rows" and c.name.startswith("9h"))
    nine = case.arguments(mx.bfloat16)
    for sequences, launches in ((9, 6), (8, 3)):
        of_each = {name: nine[name][:sequences] for name in ("projection", "keys", "values", "offsets")}
        plan, _ = _core.plan(ops.attention_rows(**{**nine, **of_each})[0])
        assert len(plan.launches) == launches


def test_launches_of_layers_with_experts(experts: Path) -> None:
    """7 of a gated-delta layer, and 9 of one with attention in two parts."""
    model = load_model(experts)
    cache = model.make_cache()
    token = primitives(model.network(mx.array([[1]]), cache), *cache.arrays())
    layers = model.config.text.num_layers
    assert (token["route"], token["experts"], token["qmm"]) == (layers, layers, 2 * layers + 1)
    assert (
        set(token)
        <= {"qmm", "embedding", "delta_mixer", "attention_prepare", "attention", "route", "experts", "Full"} | NO_BYTES
    )
    ff = model.network.layers[0].feed_forward
    assert isinstance(ff, Experts)
    x = mx.zeros((1, 1, 256), mx.bfloat16)
    chosen, weights = ff.route(x, 1e-6)
    y = ops.experts(x, chosen, weights, ff.experts, ff.shared, ff.norm)
    assert [len(_core.plan(result)[0].launches) for result in (chosen, y)] == [2, 2]


def test_no_kernel_is_compiled_in_the_middle_of_an_answer() -> None:
    """What the first token asks for is all that later ones need, at any length and with a mask that comes later."""

    def kernels(result: mx.array) -> list[str]:
        return [launch.kernel for launch in _core.plan(result)[0].launches]

    def attention(length: int) -> list[str]:
        cache = mx.zeros((1, 4, 8192, 256), mx.bfloat16)
        q, projection = mx.zeros((1, 16, 1, 256), mx.bfloat16), mx.zeros((1, 1, 10240), mx.bfloat16)
        return kernels(ops.attention(q, projection, cache, cache, length=length, scale=1.0))

    first = attention(1)
    assert len(first) == 2
    assert all(attention(length) == first for length in (128, 129, 1000, 8000))
    logits, mask = mx.zeros((1, 2000), mx.bfloat16), mx.ones((1, 2000), mx.bool_)
    random = mx.zeros(1, mx.uint64)
    sampled = kernels(ops.sample(logits, random, top_k=20))
    assert kernels(ops.sample(logits, random, top_k=20, allowed=mask, generated=mask, presence_penalty=1.0)) == sampled
