"""What an architecture is: all that the rest of the package asks of a family of models, as one value.

A new family is a folder beside ``qwen3_5`` that makes such a value, or ``dataclasses.replace`` of one that is close to
it, and a line in ``registry``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_delta.checkpoint.source import Source
from mlx_delta.checkpoint.tensors import Ranges, Shapes, Tensor, base_name
from mlx_delta.config import ModelConfig, TextConfig
from mlx_delta.model.layers import FeedForward, Layer
from mlx_delta.model.network import Network
from mlx_delta.model.weights import Weights
from mlx_delta.vision.config import VisionConfig

if TYPE_CHECKING:
    from mlx_delta.checkpoint.gguf_file import GGUFFile


@dataclass(frozen=True)
class Components:
    """The rows of every table about a model: row -> the ends of its modules' names, in the order that tables show."""

    rows: Mapping[str, tuple[str, ...]]

    @property
    def labels(self) -> tuple[str, ...]:
        return (*self.rows, "vision", "mtp")

    def of(self, name: str) -> str:
        """The row that a canonical tensor (or its scales, biases) belongs to."""
        if not name.startswith("language_model."):
            return "mtp" if name.startswith("mtp.") else "vision"
        module = base_name(name).removesuffix(".weight")
        return next(label for label, ends in self.rows.items() if module.endswith(ends))


@dataclass(frozen=True)
class Fold:
    """A producer (a norm's weight, or the rows of a matrix) and the matrices that read its output, within a layer.

    channels: for a producer with fewer channels than its readers have columns, the channel behind each column, int [K],
    from the layer's weights by their modules' names, and K.
    """

    producer: str
    consumers: tuple[str, ...]
    channels: Callable[[Callable[[str], mx.array], int], np.ndarray] | None = None


@dataclass(frozen=True)
class Recipes:
    """What the recipes of conversion make of the matrices; patterns of module names are those of the shell.

    linear: every linear layer and the embedding. unsloth: pattern -> bits over the recipe's base. kept: ends of the
    names of tensors that keep their dtype. fixed: ends of the modules that the recipe ``auto`` leaves as they are.
    draft: matrices of the MTP head, which every recipe makes ``draft_bits`` wide: what they say is checked before it
    is used, so that their width costs speed, and never a token.
    """

    linear: tuple[str, ...]
    unsloth: tuple[tuple[str, int], ...]
    kept: tuple[str, ...]
    fixed: tuple[str, ...]
    draft: tuple[str, ...] = ("mtp.fc", "mtp.layers.*_proj")
    draft_bits: int = 4


@dataclass(frozen=True)
class Markup:
    """How the family's chat templates, and its models, mark what is not text.

    thoughts, call, response: the tags around them. call_head, call_end: how the call of the tool {name} begins and how
    a call ends; parameter_head, parameter_end: what is around the value of the parameter {name}. turn: the token that
    opens a turn, and what comes then where it is the assistant's. ends: the tokens that end a turn, and a text: the
    models write them whatever a checkpoint's files name.
    """

    thoughts: tuple[str, str]
    call: tuple[str, str]
    response: tuple[str, str]
    call_head: str
    call_end: str
    parameter_head: str
    parameter_end: str
    turn: tuple[str, str]
    ends: tuple[str, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        return (*self.thoughts, *self.call, *self.response)


Presets = Mapping[str, Mapping[str, float]]  # "thinking", "coding", "instruct" -> sampling options


@dataclass(frozen=True)
class GGUFFormat:
    """What a GGUF file of the architecture holds.

    name: of ``general.architecture``. config: the config.json that the file was made of. source: its tensors under
    canonical names. canonical_name: of a tensor's name and the number of layers; None for no tensor of the text model.
    stored_name: the inverse; KeyError where GGUF has no such tensor. inputs_from, inputs_to: values a channel of what a
    canonical tensor reads, from the file's order and to it.
    """

    name: str
    config: Callable[[GGUFFile], dict[str, Any]]
    source: Callable[[GGUFFile, ModelConfig], Source]
    canonical_name: Callable[[str, int], str | None]
    stored_name: Callable[[str], str]
    inputs_from: Callable[[str, np.ndarray, TextConfig], np.ndarray]
    inputs_to: Callable[[str, np.ndarray, TextConfig], np.ndarray]


@dataclass(frozen=True)
class Part:
    """What of a tensor one of several machines holds: ranges along an axis, in values of the unquantized tensor."""

    axis: int
    ranges: Ranges


@dataclass(frozen=True)
class Share:
    """One rank's share of a model. text: its heads and columns, perhaps none of a kind. vocabulary: its rows.

    part: of a tensor's canonical name; None where the rank holds it whole.
    layers: [first, end) of those that are this rank's alone, the MTP head's being the one after the model's; None where
    ranks share every layer. text then has no others.
    """

    text: TextConfig
    vocabulary: int
    part: Callable[[str], Part | None]
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Architecture:
    """One family of models.

    model_types: of config.json. text_config: config.json -> the text model's dimensions; the file's name is for errors.
    text_shapes, mtp_shapes: every tensor of the unquantized text model, and of its MTP head, by canonical name, in the
    order of a converted file. canonical_name: of a tensor's name in any naming; None in none. canonical_tensors: a
    source's tensors, under canonical names with canonical values; the shapes are the text model's. network: out of
    canonical tensors, activations in a dtype. layer: one alone, by number. feed_forward: of a layer's tensors.
    presets: sampling as the model cards recommend it. gguf: None where no GGUF file is read. source: a checkpoint's
    tensors cut and put together such that each is one canonical tensor; as they are by default. vision: the tower that
    config.json describes, if it does. shares: of so many ranks, from the bytes of each tensor; None where the family is
    not divided. stages: the same, by layers.
    """

    model_types: tuple[str, ...]
    text_config: Callable[[Mapping[str, Any], str], TextConfig]
    text_shapes: Callable[[ModelConfig], Shapes]
    mtp_shapes: Callable[[ModelConfig], Shapes]
    canonical_name: Callable[[str], str | None]
    canonical_tensors: Callable[[Source, ModelConfig, Shapes], dict[str, Tensor]]
    components: Components
    network: Callable[[ModelConfig, Mapping[str, mx.array], mx.Dtype], Network]
    layer: Callable[[ModelConfig, Mapping[str, mx.array], int], Layer]
    feed_forward: Callable[[Weights], FeedForward]
    recipes: Recipes
    folds: tuple[Fold, ...]
    presets: Callable[[TextConfig], Presets]
    markup: Markup
    gguf: GGUFFormat | None
    source: Callable[[Source, ModelConfig], Source] = lambda source, config: source
    vision: Callable[[ModelConfig], VisionConfig | None] = lambda config: None
    shares: Callable[[ModelConfig, int, Mapping[str, int]], tuple[Share, ...]] | None = None
    stages: Callable[[ModelConfig, int, Mapping[str, int]], tuple[Share, ...]] | None = None
