"""A checkpoint of any format and architecture, opened once and checked: what everything that reads one starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_delta.arch.base import Architecture
from mlx_delta.arch.registry import architecture_of, gguf_architecture, parse_config, read_config
from mlx_delta.checkpoint.safetensors import SafetensorsSource
from mlx_delta.checkpoint.source import Source, TensorInfo, gguf_file
from mlx_delta.checkpoint.tensors import Shapes, Tensor, base_name, check_tensors
from mlx_delta.config import ModelConfig
from mlx_delta.errors import CheckpointError


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
        raise CheckpointError(
            f"{path}: expected a directory of safetensors, found GGUF: convert it first, "
            f"mlx-delta convert -i {path} -o DIRECTORY"
        )
    # Here, for it takes a while to import, and running a converted model never needs it.
    from mlx_delta.checkpoint.gguf_file import GGUFFile

    file = GGUFFile(found)
    architecture = gguf_architecture(file.metadata.get("general.architecture"), found)
    assert architecture.gguf is not None
    config = parse_config(architecture.gguf.config(file), str(found))
    return _checked(config, architecture, architecture.gguf.source(file, config))


def _checked(config: ModelConfig, architecture: Architecture, source: Source) -> Checkpoint:
    shapes = architecture.text_shapes(config)
    tensors = architecture.canonical_tensors(source, config, shapes)
    check_tensors(tensors, shapes, config, source.path)
    return Checkpoint(source.path, config, architecture, shapes, tensors, source)
