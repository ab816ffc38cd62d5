"""A loaded model: it forwards, generates, answers and knows its tokenizer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mlx.core as mx
from typing_extensions import Unpack

from mlx_delta.chat.api import ChatMethods
from mlx_delta.chat.batch import chat_batch
from mlx_delta.chat.messages import Message, check_texts
from mlx_delta.chat.pictures import take_pictures
from mlx_delta.chat.request import Prompt, ends_in_thoughts, render_prompt
from mlx_delta.chat.result import ChatResult
from mlx_delta.chat.session import Session
from mlx_delta.chat.settings import ChatSettings, GenerationSettings
from mlx_delta.chat.stream import ChatStream
from mlx_delta.chat.told import sequence_of
from mlx_delta.config import ModelConfig
from mlx_delta.distributed.ranks import Ranks
from mlx_delta.engine.cuts import Turns
from mlx_delta.engine.engine import Engine
from mlx_delta.engine.identity import model_identity
from mlx_delta.engine.memory import prefix_bytes
from mlx_delta.engine.snapshots import Snapshots
from mlx_delta.errors import ArgumentError
from mlx_delta.model.cache import Cache, KeyValues
from mlx_delta.model.network import Network
from mlx_delta.options import ChatOptions, GenerationOptions, takes
from mlx_delta.text.generation import Generation
from mlx_delta.text.tokenizer import Tokenizer, check_text
from mlx_delta.vision.vision import Vision


class LanguageModel(ChatMethods):
    """A loaded checkpoint. Use ``load_model``.

    path, config, network, tokenizer, vision, engine: its parts; vision is None where the checkpoint has no
    tower. Any number of threads may use it at once: their sequences are decoded together, and none notices the others.
    prefix_cache_bytes, memory_bytes, prefix_cache_dir, prefix_cache_dir_bytes: see ``load_model``.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        network: Network,
        tokenizer: Tokenizer,
        vision: Vision | None = None,
        *,
        prefix_cache_bytes: int | None = None,
        memory_bytes: int | None = None,
        prefix_cache_dir: str | Path | None = None,
        prefix_cache_dir_bytes: int | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.network = network
        self.tokenizer = tokenizer
        self.vision = vision
        start, assistant = tokenizer.markup.turn
        turns = Turns(tokenizer.token_id(start), tuple(tokenizer.encode(assistant)))
        snapshots = None
        if prefix_cache_dir is not None:
            snapshots = Snapshots(
                prefix_cache_dir, model_identity(network, turns), network.kv_bits, prefix_cache_dir_bytes
            )
        self.engine = Engine(
            network, turns, prefix_bytes=prefix_bytes(prefix_cache_bytes), memory=memory_bytes, snapshots=snapshots
        )

    def led(self, ranks: Ranks, failed: Callable[[BaseException], None] | None = None) -> AbstractContextManager[bool]:
        """``with model.led(ranks) as leads``: within the block rank 0 (``leads``) uses the model as if it were alone,
        from any thread, for chats, sessions and generations. On other ranks the block is entered when rank 0 has left
        its own: they have done the same until then. failed: told, on rank 0, of what ended the ranks before that.

        Raises: RankError; RuntimeError of MLX's where a rank is gone.
        """
        return self.engine.follow(ranks, lambda told: sequence_of(told, self.engine, self.tokenizer)).led(failed)

    def make_cache(self) -> Cache:
        """An empty cache, for ``forward``."""
        return self.network.empty_cache()

    def forward(
        self,
        tokens: mx.array | Sequence[Sequence[int]] | Prompt,
        cache: Cache | None = None,
        *,
        mask: mx.array | None = None,
    ) -> mx.array:
        """Logits [B, T, V] of tokens int [B, T], or of a ``prompt`` [1, T, V], lazily: evaluate them in the thread
        that called. V counts the vocabulary's padding rows too.

        cache: advanced by T tokens, and for any thread to go on with; None: a fresh one. mask: bool [B, T] for
        left-padded prompts of unequal length, given with the first call on a cache: false before each sequence begins.
        Raises: ArgumentError naming the argument.
        """
        self._check_alone("forward")
        pictures = None
        if isinstance(tokens, Prompt):
            if mask is not None or (cache is not None and cache.offset):
                raise ArgumentError("tokens: expected a prompt over an empty cache, found a mask or a used cache")
            pictures, tokens = tokens.pictures, [tokens.ids]
        ids = self._ids(tokens)
        if mask is not None and mask.shape != ids.shape:
            raise ArgumentError(f"mask: expected shape {list(ids.shape)}, found {list(mask.shape)}")
        over = self.make_cache() if cache is None else cache
        logits = self.network(ids, over, mask=mask, pictures=pictures)
        if cache is not None:  # so that it can go on in any thread: what is lazy, only this one could evaluate
            mx.async_eval(*cache.arrays())
        return logits

    def mtp_logits(self, tokens: mx.array | Sequence[Sequence[int]]) -> mx.array:
        """What the checkpoint's MTP head predicts of tokens int [B, T] -> logits [B, T - 1, V], lazily.

        Row i is of token i + 2, from the model's hidden state of token i and from token i + 1.
        Raises: ArgumentError where there is no head, or for tokens that are wrong.
        """
        self._check_alone("mtp_logits")
        if self.network.mtp is None:
            raise ArgumentError(f"mtp_logits: expected a checkpoint with an MTP head, found none in {self.path}")
        ids = self._ids(tokens)
        if ids.shape[1] < 2:
            raise ArgumentError(f"tokens: expected at least two in a row, found {ids.shape[1]}")
        *_, x = self.network.hidden_states(ids, self.make_cache())
        return self.network.draft_logits(self.network.draft(ids[:, 1:], self.network.hidden(x)[:, :-1], KeyValues(), 0))

    @takes(GenerationOptions)
    def generate(self, prompt: str | Sequence[int] | Prompt, **options: Unpack[GenerationOptions]) -> Generation:
        """Continue ``prompt``, text or token ids, as it stands (no chat template), or what ``model.prompt`` made: an
        iterator of pieces of text.

        ``for piece in model.generate("..."): print(piece, end="")``; ``model.generate("...").text()`` is all of it.
        At most 256 tokens, unless ``max_new_tokens`` says otherwise. Without a preset, sampling is as the checkpoint
        says (generation_config.json), else greedy.
        Raises: ArgumentError naming the argument; TypeError for an unknown one.
        """
        settings = GenerationSettings(**options)
        pictures = prompt.pictures if isinstance(prompt, Prompt) else None
        if isinstance(prompt, Prompt):
            prompt = prompt.ids
        ids = self._prompt_ids(prompt)
        if ids:
            self._check_ids(ids)
        if pictures is not None:  # here, and not in a step that others wait for
            pictures.look()
        thinking = ends_in_thoughts(
            prompt if isinstance(prompt, str) else self.tokenizer.decode(ids), self.tokenizer.markup
        )
        return Generation(
            self.engine,
            self.tokenizer,
            ids,
            settings.sampling(thinking, self.config.text, self.tokenizer),
            max_new_tokens=settings.max_new_tokens,
            stop=settings.stop,
            drafts=settings.speculate,
            prompt_progress=settings.prompt_progress,
            pictures=pictures,
        )

    def _prompt_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            check_text(prompt, "prompt")
            return self.tokenizer.encode(prompt)
        try:
            if not isinstance(prompt, bytes | bytearray):
                return [operator.index(i) for i in (prompt.tolist() if hasattr(prompt, "tolist") else prompt)]
        except TypeError:
            pass
        raise ArgumentError(f"prompt: expected text or token ids, found {prompt!r:.80}")

    def session(self) -> Session:
        """A conversation, turn by turn: ``session.chat`` and ``session.chat_stream`` as the model's own."""
        return Session(self.engine, self.tokenizer, self.vision)

    @takes(ChatOptions)
    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        settings: ChatSettings | Sequence[ChatSettings] | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[ChatResult]:
        """Answer several conversations at once, each as ``chat`` would answer it alone.

        settings: instead of arguments for all, ``ChatSettings``, which take the same, one for each conversation. A seed
        counts for each by itself.
        Raises: as ``chat``.
        """
        if settings is not None and options:
            raise ArgumentError(f"settings: expected settings or arguments, found both ({', '.join(options)})")
        return chat_batch(self.engine, self.tokenizer, conversations, settings or ChatSettings(**options), self.vision)

    @takes(ChatOptions)
    def prompt(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> Prompt:
        """What ``chat`` would read of these messages: ``ids``, and where they show something ``positions`` int32
        [3, T], ``rope_delta`` and ``features`` [n, hidden]. ``forward`` takes it.

        Raises: as ``chat``.
        """
        return Prompt.build(self.tokenizer, messages, ChatSettings(**options), self.vision)

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_variables: Any,
    ) -> str:
        """The prompt that the checkpoint's template makes of messages, strictly as the template has it.

        Raises: TemplateError in the template's own words; ArgumentError naming what is no text.
        """
        messages, _ = take_pictures(messages)
        check_texts(messages, "messages")
        check_texts(tools, "tools")
        return render_prompt(
            self.tokenizer,
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            variables=template_variables,
        )

    def _start(self, messages: Sequence[Message] | Prompt, settings: ChatSettings) -> ChatStream:
        return Session(self.engine, self.tokenizer, self.vision)._start(messages, settings)

    def _check_alone(self, method: str) -> None:
        """Raises: ArgumentError for a pass that other ranks would not hear of."""
        if self.engine.lead is not None:
            raise ArgumentError(f"{method}: expected a model that one process runs, found ranks that follow the first")

    def _ids(self, tokens: mx.array | Sequence[Sequence[int]]) -> mx.array:
        """tokens as int [B, T]. Raises: ArgumentError."""
        ids = tokens if isinstance(tokens, mx.array) else mx.array(list(tokens))
        if ids.ndim != 2 or ids.size == 0 or not mx.issubdtype(ids.dtype, mx.integer):
            raise ArgumentError(f"tokens: expected non-empty integers [B, T], found {ids.dtype} {list(ids.shape)}")
        if not isinstance(tokens, mx.array):  # those are not looked at: it would wait for them to be computed
            self._check_ids([i for row in tokens for i in row])
        return ids

    def _check_ids(self, ids: Sequence[int]) -> None:
        vocab_size = self.config.text.vocab_size
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise ArgumentError(f"tokens: expected ids from 0 to {vocab_size - 1}, found {wrong}")
