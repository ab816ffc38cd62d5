"""A rank's part of a checkpoint: what of each tensor it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version

import mlx.core as mx

from mlx_delta.arch.base import Part, Share
from mlx_delta.arch.checkpoint import Checkpoint
from mlx_delta.checkpoint.tensors import Ranges, Tensor, base_name, taken
from mlx_delta.distributed.network import SharedNetwork, shared_network
from mlx_delta.distributed.ranks import Ranks
from mlx_delta.errors import ArgumentError

Read = Callable[[Mapping[str, Tensor]], dict[str, mx.array]]


def load_shared(checkpoint: Checkpoint, dtype: mx.Dtype, ranks: Ranks, read: Read) -> SharedNetwork:
    """This rank's network. read: tensors into memory.

    Raises: RankError where versions or the checkpoint are not the same on all ranks; ArgumentError where the
    architecture is not divided, or not among so many; CheckpointError.
    """
    ranks.check_same({"mlx": version("mlx"), "mlx-delta": version("mlx-delta"), "the checkpoint": _facts(checkpoint)})
    ranks.check_same({"the division": "by layers" if ranks.by_layers else "of layers"})
    architecture, held = checkpoint.architecture, {**checkpoint.text_tensors(), **checkpoint.mtp_tensors()}
    divided = architecture.stages if ranks.by_layers else architecture.shares
    if divided is None:
        raise ArgumentError(f"model: expected one that is divided among ranks, found {checkpoint.config.model_type}")
    sizes: dict[str, int] = {}
    for name, tensor in held.items():
        sizes[base_name(name)] = sizes.get(base_name(name), 0) + tensor.nbytes
    shares = divided(checkpoint.config, ranks.size, sizes)
    share = shares[ranks.rank]
    mine = {name: part for name, tensor in held.items() if (part := _part(checkpoint, share, tensor)) is not None}
    return shared_network(architecture, checkpoint.config, shares, read(mine), dtype, ranks)


def _facts(checkpoint: Checkpoint) -> str:
    """What tells one checkpoint from another without reading it: its tensors' names, shapes and dtypes, its config."""
    tensors = sorted((t.name, t.shape, str(t.dtype)) for t in checkpoint.tensors.values())
    return hashlib.sha256(repr((tensors, sorted(checkpoint.config.raw.items()))).encode()).hexdigest()


def _part(checkpoint: Checkpoint, share: Share, tensor: Tensor) -> Tensor | None:
    """What the rank holds of a tensor; None where that is nothing."""
    part = share.part(base_name(tensor.name))
    if part is None:
        return tensor
    axis, ranges = part.axis, _stored(checkpoint, tensor, part)
    count = sum(stop - start for start, stop in ranges)
    if not count:
        return None
    shape = list(tensor.shape)
    shape[axis] = count
    if tensor.load_part is not None:
        load = partial(tensor.load_part, axis, ranges)
    else:
        load = partial(_loaded, tensor, axis, ranges)
    return replace(tensor, shape=tuple(shape), load=load)


def _loaded(tensor: Tensor, axis: int, ranges: Ranges) -> mx.array:
    return taken(tensor.load(), axis, ranges)


def _stored(checkpoint: Checkpoint, tensor: Tensor, part: Part) -> Ranges:
    """The ranges in the elements of the stored tensor, which holds several values each where it is quantized."""
    width = checkpoint.config.module_quantization(base_name(tensor.name).removesuffix(".weight"))
    scaled = f"{base_name(tensor.name).removesuffix('.weight')}.scales" in checkpoint.tensors
    if part.axis != -1 or width is None or not scaled:
        return part.ranges
    by_group = tensor.name != base_name(tensor.name)
    numerator, denominator = (1, width.group_size) if by_group else (width.bits, 32)
    return tuple((start * numerator // denominator, stop * numerator // denominator) for start, stop in part.ranges)
