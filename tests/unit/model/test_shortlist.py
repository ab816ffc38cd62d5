"""Drafts of a large vocabulary come of a part of its rows."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_delta import load_model
from mlx_delta.engine.draft import MtpDrafter
from mlx_delta.model.network import Network
from mlx_delta.model.shortlist import Shortlist
from support import TINY


@pytest.fixture(scope="module")
def network() -> Network:
    return load_model(TINY, dtype="float32").network


def test_the_likeliest_of_a_list_and_of_a_text(network: Network) -> None:
    base = Shortlist.of(network.lm_head, first=96, special=32)
    text = [5, 700, 4090, 900, 700, 64]
    assert base.lacks(text) == [700, 900]
    among = base.with_rows(network.lm_head, [700, 900])
    assert among.tokens.tolist()[:130] == [*range(96), *range(4064, 4096), 700, 900]
    assert sum(matrix.rows for matrix in among.matrices) == len(among.tokens) == 160
    x = mx.random.normal((20, 1, 1, network.config.hidden_size), key=mx.random.key(0))
    for each in x:
        logits = network.draft_logits(each)[0, 0]
        for chosen in (base, among):
            best = max(chosen.tokens.tolist(), key=lambda token: logits[token].item())
            assert network.draft_token(each, chosen).tolist() == [best]
    assert network.draft_token(x[0]).tolist() == [mx.argmax(network.draft_logits(x[0])).item()]


def test_drafts_may_be_tokens_of_the_text(network: Network) -> None:
    """Whose rows the list lacks; those that come later, as soon as they are some."""
    network = replace(network)
    network.__dict__["shortlist"] = Shortlist.of(network.lm_head, first=8, special=8)
    text = [1, 100, 200, 100]
    drafter = MtpDrafter(network, text)

    def tokens() -> list[int]:
        drafter.see(mx.zeros((1, 1, network.config.hidden_size)), len(text))
        drafter.draft(mx.array([1], dtype=mx.int32), 1)
        among = drafter._list()
        assert among is not None
        return sorted(set(among.tokens.tolist()[16:]))

    assert tokens() == [100, 200]
    text += [300]
    assert tokens() == [100, 200]
    text += range(400, 415)
    assert tokens() == [100, 200, 300, *range(400, 415)]
