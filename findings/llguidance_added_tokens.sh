#!/usr/bin/env bash
# llguidance: where a document must hold text that is also an added token's, it allows that token alone, and then refuses it.
#
# A Qwen tokenizer has <think>, <tool_call> and the like as added tokens. Where a JSON schema leaves no choice but such a
# text (a constant, a property's name), the mask of what may come next has one token: the added one. Given to the
# matcher, that token is an error ("doesn't satisfy the grammar"), so a sampler that obeys the mask can never write a
# document that the schema has. compute_ff_tokens names the same token. Where there is a choice ("<think>" or "<b>"), the
# text is spelt with ordinary tokens, and accepted. So it is not that such text is forbidden: only the forced way is shut.
# Marking the token as special or not makes no difference.
# A way around it: rename added tokens to what no document has, in the tokenizer that llguidance is given.
#
# Nothing is downloaded but the packages. Exits 0 while it behaves so, 1 when it does not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 tokenizers==0.23.3 numpy==2.2.6 2>/dev/null

"$work/venv/bin/python" <<'PYTHON'
import json, platform, sys
from importlib.metadata import version

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

print(f"llguidance {version('llguidance')}, tokenizers {version('tokenizers')}, Python {platform.python_version()}")


def tokenizer(name, special):
    """One of bytes, with an added token of that name."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    (made.add_special_tokens if special else made.add_tokens)([AddedToken(name, special=special, normalized=False)])
    return made


def written(made, schema, text):
    """Write text, always with the longest token that the mask allows: (the tokens, the error)."""
    size = made.get_vocab_size()
    known = LLTokenizer(made.to_str(), n_vocab=size, eos_token=made.token_to_id("<|end|>"))
    matcher = LLMatcher(known, LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    tokens = []
    while text:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[:size]
        allowed = [made.id_to_token(int(i)) for i in np.flatnonzero(bits)]
        tokens.append(max((token for token in allowed if text.startswith(token)), key=len, default=None))
        if tokens[-1] is None:
            return tokens, f"of all tokens {allowed} alone"
        text = text[len(tokens[-1]) :]
        matcher.consume_token(made.token_to_id(tokens[-1]))
        if matcher.is_error():
            return tokens, f"{len(allowed)} token was allowed; {matcher.get_error().splitlines()[0][:75]}"
    return tokens, None


forced, choice = {"const": "<think>"}, {"enum": ["<think>", "<b>"]}
same = True
for what, schema, name, special, fails in (
    ("a constant", forced, "<think>", False, True),
    ("a constant, special token", forced, "<think>", True, True),
    ("one of two", choice, "<think>", False, False),
    ("a constant, token renamed", forced, "\U000f0000", False, False),
):
    tokens, error = written(tokenizer(name, special), schema, '"<think>"')
    print(f"{what:26} {'-'.join(map(str, tokens)):22} {error or 'accepted'}")
    same &= fails == (error is not None)
    same &= tokens == ['"', "<think>"] if fails else len(tokens) == 9
sys.exit(0 if same else 1)
PYTHON
echo "as described: the one token that is allowed is refused"
