"""A checkpoint directory to a ``LanguageModel``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_delta.arch.checkpoint import Checkpoint, open_checkpoint
from mlx_delta.arch.head import head_beside, with_head
from mlx_delta.checkpoint.finite import read_finite
from mlx_delta.checkpoint.tensors import Tensor, base_name, check_tensors
from mlx_delta.distributed.loading import load_shared
from mlx_delta.distributed.ranks import Ranks
from mlx_delta.engine.kernels import compile_kernels
from mlx_delta.engine.memory import check_limits
from mlx_delta.engine.snapshots import checked_directory
from mlx_delta.errors import ArgumentError, ConfigError
from mlx_delta.hub.path import model_path
from mlx_delta.language_model import LanguageModel
from mlx_delta.model.network import EMBEDDING
from mlx_delta.model.weights import Weights
from mlx_delta.ops.matrix import use_huge_pages
from mlx_delta.system import gpu_generation, wire_memory
from mlx_delta.text.tokenizer import Tokenizer
from mlx_delta.vision.config import TOWER, VisionConfig, vision_shapes
from mlx_delta.vision.placed import Placeholders
from mlx_delta.vision.settings import read_settings
from mlx_delta.vision.tower import Tower
from mlx_delta.vision.vision import Sight, Vision

_FIRST_WITH_BFLOAT16 = 15  # generation of GPUs: the M3's
_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def load_model(
    path: str | Path,
    dtype: mx.Dtype | str | None = None,
    *,
    prefix_cache_bytes: int | None = None,
    memory_bytes: int | None = None,
    prefix_cache_dir: str | Path | None = None,
    prefix_cache_dir_bytes: int | None = None,
    kv_bits: int | None = None,
    mtp: str | Path | None = None,
    ranks: Ranks | None = None,
) -> LanguageModel:
    """Load an official, converted or mlx-community Qwen3.5 checkpoint.

    path: a directory, or a model's name on the Hugging Face Hub, ``org/name[@revision]``, which is downloaded at its
    first use (``hub.path.model_path``). dtype: of the activations, float32, float16 or bfloat16. The default is what
    the checkpoint's embedding or its scales have; on the GPU of an M1 or M2 float16 instead of bfloat16, for which
    those have no instructions. Weights stay as they are stored, whatever it is. prefix_cache_bytes: the
    most memory for what is kept of prompts and answers, so that those that begin alike compute only what is new; None:
    an eighth of the machine's; 0 keeps nothing. It changes no answer. prefix_cache_dir: a folder where that is kept in
    files too, so that a restart computes only what is new; it is made for its owner alone, for it holds what was said
    (``engine.snapshots``). prefix_cache_dir_bytes: the most that all files there take; None: 16 GiB. memory_bytes: the
    most for weights, sequences under way and what is kept: a request waits until it fits, or is refused where it never
    would (ArgumentError), and so is a model whose weights do not fit; None: what the system recommends for a GPU, or
    nine tenths of the machine's. kv_bits: 8 keeps keys and values in 8 bits, which is half the memory a token of
    context takes, and half of what attention reads; None: in ``dtype``.
    mtp: an MTP head for ``speculate``, where the model's files lack one: a directory of ``model_type`` "qwen3_5_mtp",
    or the original checkpoint, named as ``path`` is. None: what lies in ``mtp/`` beside the model. ranks: the processes
    that share the weights among them, each of which must then do the same; ``distributed.ranks.Ranks.launched()``.
    Raises: ConfigError, CheckpointError, TokenizerError naming the file and the tensor; HubError, a
    CheckpointError.
    """
    check_dtype(dtype)
    check_kv_bits(kv_bits)
    check_limits(
        prefix_cache_bytes=prefix_cache_bytes,
        memory_bytes=memory_bytes,
        prefix_cache_dir_bytes=prefix_cache_dir_bytes,
    )
    if prefix_cache_dir is not None:
        checked_directory(prefix_cache_dir)
        if ranks is not None:
            raise ArgumentError("prefix_cache_dir: expected a model that one process runs, found several ranks")
    elif prefix_cache_dir_bytes is not None:
        raise ArgumentError("prefix_cache_dir_bytes: expected with prefix_cache_dir, found without")
    checkpoint = open_checkpoint(model_path(path), gguf=False)
    head = head_beside(checkpoint) if mtp is None else model_path(mtp)
    return load_checkpoint(
        checkpoint if head is None else with_head(checkpoint, head),
        dtype,
        prefix_cache_bytes=prefix_cache_bytes,
        memory_bytes=memory_bytes,
        prefix_cache_dir=prefix_cache_dir,
        prefix_cache_dir_bytes=prefix_cache_dir_bytes,
        kv_bits=kv_bits,
        ranks=ranks,
    )


def load_checkpoint(
    checkpoint: Checkpoint,
    dtype: mx.Dtype | str | None = None,
    *,
    prefix_cache_bytes: int | None = None,
    memory_bytes: int | None = None,
    prefix_cache_dir: str | Path | None = None,
    prefix_cache_dir_bytes: int | None = None,
    kv_bits: int | None = None,
    ranks: Ranks | None = None,
) -> LanguageModel:
    """``load_model`` of a checkpoint of any format, a GGUF file's weights and tokenizer too."""
    tokenizer = Tokenizer.of_checkpoint(checkpoint)
    tensors = {**checkpoint.text_tensors(), **checkpoint.mtp_tensors()}
    chosen = _activation_dtype(tensors, dtype, alone=ranks is None)
    size = sum(tensor.nbytes for tensor in tensors.values())
    if ranks is None and memory_bytes is not None and memory_bytes < size:
        raise ArgumentError(f"memory_bytes: expected at least the {size} bytes of the weights, found {memory_bytes}")

    def read(wanted: Mapping[str, Tensor]) -> dict[str, mx.array]:
        weights = read_finite(wanted.values(), checkpoint.path)
        for weight in weights.values():  # now that each has its neighbours, with which it shares pages
            use_huge_pages(weight)
        return weights

    if ranks is None:
        network = checkpoint.architecture.network(checkpoint.config, read(tensors), chosen)
    else:
        network = load_shared(checkpoint, chosen, ranks, read)
    network = replace(network, kv_bits=kv_bits)
    wire_memory()
    compile_kernels(network)
    if ranks is not None:
        ranks.restart()
    vision = open_vision(checkpoint, tokenizer, chosen)
    return LanguageModel(
        checkpoint.path,
        checkpoint.config,
        network,
        tokenizer,
        vision,
        prefix_cache_bytes=prefix_cache_bytes,
        memory_bytes=memory_bytes,
        prefix_cache_dir=prefix_cache_dir,
        prefix_cache_dir_bytes=prefix_cache_dir_bytes,
    )


def open_vision(checkpoint: Checkpoint, tokenizer: Tokenizer, dtype: mx.Dtype) -> Vision | None:
    """The checkpoint's vision, nothing of it read yet; None where there are no tensors of a tower."""
    model = checkpoint.config
    if not any(name.startswith(TOWER) for name in checkpoint.tensors):
        return None

    def read() -> Sight:
        config = checkpoint.architecture.vision(model)
        if config is None:
            raise ConfigError(
                f"{checkpoint.path}: config.json: expected a vision_config, for it has a tower, found none"
            )
        pictures, videos = read_settings(checkpoint.path)
        wanted = (config.patch, config.frames, config.merge)
        for settings in (pictures, videos):
            found = (settings.patch, settings.frames, settings.merge)
            if found != wanted:
                raise ConfigError(
                    f"{checkpoint.path}: preprocessor: expected patch_size, temporal_patch_size and merge_size "
                    f"{wanted}, as config.json has them, found {found}"
                )
        texts = (tokenizer.decode([token]) for token in (config.image_token, config.video_token))
        return Sight(config, Placeholders(config.image_token, config.video_token, *texts), pictures, videos)

    def load(config: VisionConfig) -> Tower:
        shapes = vision_shapes(config)
        check_tensors(checkpoint.tensors, shapes, model, checkpoint.path)
        tensors = [tensor for name, tensor in checkpoint.tensors.items() if base_name(name) in shapes]
        weights = read_finite(tensors, checkpoint.path)
        return Tower.from_weights(config, Weights(model, weights, TOWER), dtype)

    return Vision(read, load)


def _activation_dtype(tensors: Mapping[str, Tensor], dtype: mx.Dtype | str | None, *, alone: bool) -> mx.Dtype:
    """alone: not one of several machines, which have to agree whatever their chips are."""
    if dtype is None:
        stored = tensors.get(f"{EMBEDDING}.scales", tensors[f"{EMBEDDING}.weight"]).dtype
        generation = gpu_generation() if alone else None
        without_bfloat16 = generation is not None and generation < _FIRST_WITH_BFLOAT16
        return mx.float16 if stored == mx.bfloat16 and without_bfloat16 else stored
    return _DTYPES[dtype] if isinstance(dtype, str) else dtype


def check_kv_bits(kv_bits: int | None) -> None:
    """Before anything is read or downloaded."""
    if kv_bits is not None and (kv_bits is True or kv_bits != 8):
        raise ArgumentError(f"kv_bits: expected 8, or None for keys and values in dtype, found {kv_bits!r}")


def check_dtype(dtype: mx.Dtype | str | None) -> None:
    """Before anything is read or downloaded."""
    known = _DTYPES if isinstance(dtype, str) else _DTYPES.values()
    if dtype is not None and dtype not in known:  # MLX's types cannot be compared with None
        raise ArgumentError(f"dtype: expected float32, float16 or bfloat16, found {dtype}")
