"""A checkpoint of any format and architecture, opened once and checked: what everything that reads one starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from mlx_delta.arch.base import Architecture
from mlx_delta.arch.registry import architecture_of, gguf_architecture, parse_config, read_config
from mlx_delta.checkpoint.safetensors import SafetensorsSource
from mlx_delta.checkpoint.scaled import ScaledSource
from mlx_delta.checkpoint.source import Source, TensorInfo, convert_first, gguf_file
from mlx_delta.checkpoint.tensors import Shapes, Tensor, base_name, check_tensors
from mlx_delta.config import ModelConfig, scaled_block
from mlx_delta.errors import CheckpointError
from mlx_delta.model.network import EMBEDDING, HEAD


@dataclass(frozen=True)
class Checkpoint:
    """Its text model fits its config.

    shapes: of the text model's tensors, unquantized, in the order of a converted file. tensors: all there are, by
    canonical name. stored: how each of them lies in its file, by canonical name too.
    """

    path: Path
    config: ModelConfig
    architecture: Architecture
    shapes: Shapes
    tensors: Mapping[str, Tensor]
    source: Source

    @property
    def stored(self) -> dict[str, TensorInfo]:
        return {name: self.source.tensors[tensor.source_name] for name, tensor in self.tensors.items()}

    def text_tensors(self) -> dict[str, Tensor]:
        """The text model's, scales and biases among them."""
        return {name: tensor for name, tensor in self.tensors.items() if base_name(name) in self.shapes}

    def mtp_tensors(self) -> dict[str, Tensor]:
        """The MTP head's, scales and biases among them; none where the config or the files have no head.

        Raises: CheckpointError where a part of it is missing.
        """
        if not any(name.startswith("mtp.") for name in self.tensors):
            return {}
        shapes = self.mtp_shapes()
        return {name: tensor for name, tensor in self.tensors.items() if base_name(name) in shapes}

    def mtp_shapes(self) -> Shapes:
        """Of the MTP head's tensors, which are checked to be there; none where the config has no head.

        Raises: CheckpointError naming those that are not.
        """
        shapes = self.architecture.mtp_shapes(self.config)
        check_tensors(self.tensors, shapes, self.config, self.path)
        return shapes

    def side_files(self) -> dict[str, bytes]:
        """Tokenizer, template and the like: file name -> content."""
        return self.source.side_files()


def open_checkpoint(path: Path, *, gguf: bool = True) -> Checkpoint:
    """The checkpoint at ``path``: a directory of safetensors, a .gguf file, or a directory that holds just one.

    gguf: False refuses the latter two. Headers are read, and no tensor.
    Raises: ConfigError, CheckpointError naming the file and the tensor or key.
    """
    found = gguf_file(path)
    if found is None:
        config = read_config(path)
        return _checked(config, architecture_of(config), SafetensorsSource(path))
    if not gguf:
        raise CheckpointError(convert_first(path))
    # Here, for it takes a while to import, and running a converted model never needs it.
    from mlx_delta.checkpoint.gguf_file import GGUFFile

    file = GGUFFile(found)
    architecture = gguf_architecture(file.metadata.get("general.architecture"), found)
    assert architecture.gguf is not None
    config = parse_config(architecture.gguf.config(file), str(found))
    return _checked(config, architecture, architecture.gguf.source(file, config))


def _checked(config: ModelConfig, architecture: Architecture, source: Source) -> Checkpoint:
    if (block := scaled_block(config.raw)) is not None:
        source = ScaledSource(source, block)
    source = architecture.source(source, config)
    config = _tied_as_stored(config, architecture, source)
    shapes = architecture.text_shapes(config)
    tensors = architecture.canonical_tensors(source, config, shapes)
    check_tensors(tensors, shapes, config, source.path)
    return Checkpoint(source.path, config, architecture, shapes, tensors, source)


def _tied_as_stored(config: ModelConfig, architecture: Architecture, source: Source) -> ModelConfig:
    """The config, not tied where a head is stored that is not the embedding once more: the tensors count.

    Such files come of training a head of its own and leaving the config as it was. A head that is the embedding, which
    some programs write, is left out with the tie.
    """
    if not config.text.tie_word_embeddings:
        return config
    stored: dict[str, dict[str, str]] = {HEAD: {}, EMBEDDING: {}}  # module -> what of it -> name in the source
    for name in source.tensors:
        module, _, what = (architecture.canonical_name(name) or "").rpartition(".")
        if module in stored:
            stored[module][what] = name
    head, embedding = stored[HEAD], stored[EMBEDDING]
    if not head or (head.keys() == embedding.keys() and all(_equal(source, head[w], embedding[w]) for w in head)):
        return config
    raw = {**config.raw, "tie_word_embeddings": False}  # which is written again when this is converted
    if isinstance(raw.get("text_config"), dict):
        raw["text_config"] = {**raw["text_config"], "tie_word_embeddings": False}
    return replace(config, text=replace(config.text, tie_word_embeddings=False), raw=raw)


def _equal(source: Source, a: str, b: str) -> bool:
    one, other = source.tensors[a], source.tensors[b]
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(mx.array_equal(source.load(a).view(mx.uint8), source.load(b).view(mx.uint8)))
