"""llama.cpp's two files of an importance matrix. Little-endian; names and values as they stand in the file.

GGUF   (``llama-imatrix``) per tensor ``<name>.in_sum2`` F32 [K], the sum over tokens of x^2, and ``<name>.counts`` F32
       [1], the tokens; of experts [E, K] and [E, 1]; ``general.type`` imatrix, ``imatrix.datasets``, ``.chunk_count``
       and ``.chunk_size``.
.dat   (older) int32 count of entries; each int32 length, name, int32 calls, int32 K, float32 [K] of mean * calls; then,
       in newer files, int32 chunks, int32 length, name of the text. A call is a chunk. Of experts E * K means, and how
       many tokens each had is not told.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from mlx_delta.checkpoint.gguf_file import open_gguf
from mlx_delta.errors import ImatrixError


@dataclass(frozen=True)
class Calibration:
    """A calibration run: sums of x^2 [K] over ``chunks`` chunks of ``chunk_size`` tokens, by a tensor's name.

    counts: of experts, whose sums are [E, K], how many of the tokens each had, [E].
    """

    sums: Mapping[str, np.ndarray]
    chunks: int
    chunk_size: int
    datasets: tuple[str, ...]
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.chunks * self.chunk_size


@dataclass(frozen=True)
class Means:
    """Mean over tokens of x^2 of one tensor's inputs, float32 [K], or [E, K] of experts; 0 where there were no tokens.

    tokens: how many there were, [1] or [E]; None where the file does not say.
    """

    values: np.ndarray
    tokens: np.ndarray | None


def read_means(path: Path) -> dict[str, Means]:
    """Tensor -> means, of either format.

    A tensor that no token reached, whose sums are all zero, has none. Experts of the older format are [E * K].
    Raises: ImatrixError when the file is missing or is of neither format, and for what no sum of squares can be.
    """
    if not path.is_file():
        raise ImatrixError(f"{path}: expected an importance matrix, found no such file")
    with path.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    means = _read_gguf(path) if is_gguf else _read_legacy(path)
    for name, each in means.items():
        values = each.values.reshape(-1)
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if wrong.size:
            what = f"{path}: {name}: expected finite means of squares, found {values[wrong[0]]}"
            raise ImatrixError(f"{what} for channel {wrong[0]} and {wrong.size - 1} more of {values.size}")
    seen = {name: each for name, each in means.items() if each.values.any()}
    if means and not seen:
        raise ImatrixError(f"{path}: expected means of squares, found nothing but zeros in {len(means)} tensors")
    return seen


def write_gguf(path: Path, run: Calibration) -> None:
    """Raises: OSError naming the file."""
    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(run.datasets))
    writer.add_uint32("imatrix.chunk_count", run.chunks)
    writer.add_uint32("imatrix.chunk_size", run.chunk_size)
    for name, values in sorted(run.sums.items()):
        counts = run.counts.get(name)
        tokens = np.array([run.tokens]) if counts is None else counts[:, None]
        writer.add_tensor(f"{name}.in_sum2", values.astype(np.float32))
        writer.add_tensor(f"{name}.counts", tokens.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_dat(path: Path, run: Calibration) -> None:
    """Raises: OSError naming the file."""
    parts = [struct.pack("<i", len(run.sums))]
    for name, values in sorted(run.sums.items()):
        text = name.encode()
        parts.append(struct.pack(f"<i{len(text)}sii", len(text), text, run.chunks, values.size))
        # mean * chunks
        counts = run.counts.get(name)
        means = values / run.tokens if counts is None else values / np.maximum(counts, 1)[:, None]
        parts.append((means * run.chunks).astype("<f4").tobytes())
    dataset = ", ".join(run.datasets).encode()
    parts.append(struct.pack(f"<ii{len(dataset)}s", run.chunks, len(dataset), dataset))
    path.write_bytes(b"".join(parts))


def _read_gguf(path: Path) -> dict[str, Means]:
    stored = {
        tensor.name: np.asarray(tensor.data, dtype=np.float32)
        for tensor in open_gguf(path, ImatrixError).tensors
        if tensor.name.endswith((".in_sum2", ".counts"))
    }
    result = {}
    for name in (name.removesuffix(".in_sum2") for name in stored if name.endswith(".in_sum2")):
        sums, counts = stored[f"{name}.in_sum2"], stored.get(f"{name}.counts", np.zeros(1)).reshape(-1)
        wrong = counts[~((counts >= 0) & (counts < math.inf))]
        if wrong.size:
            raise ImatrixError(f"{path}: {name}.counts: expected a number of tokens, found {wrong[0]}")
        if counts.size > 1 and sums.shape[0] == counts.size and sums.ndim == 2:
            result[name] = Means(_mean(sums, counts[:, None]), counts)
        elif counts.sum() > 0:
            total = counts.sum(keepdims=True)
            result[name] = Means(_mean(sums.reshape(-1), total), total)
    return result


def _mean(sums: np.ndarray, count: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
        return np.where(count > 0, sums / np.maximum(count, 1e-30), 0).astype(np.float32)


def _read_legacy(path: Path) -> dict[str, Means]:
    data = path.read_bytes()
    wrong = f"{path}: expected an importance matrix in GGUF form or llama.cpp's older .dat, found neither"
    result: dict[str, Means] = {}
    try:
        (entries,) = struct.unpack_from("<i", data)
        offset = 4
        for _ in range(entries):
            (length,) = struct.unpack_from("<i", data, offset)
            name = struct.unpack_from(f"<{length}s", data, offset + 4)[0].decode()
            calls, count = struct.unpack_from("<ii", data, offset + 4 + length)
            offset += 12 + length
            if min(calls, count) < 0 or name in result:
                raise ImatrixError(f"{wrong} ({name!r:.80} twice, or with {calls} calls and {count} channels)")
            values = np.frombuffer(data, "<f4", count, offset)
            offset += values.nbytes
            if calls > 0 and count > 0:
                result[name] = Means(_mean(values, np.array(calls)), None)
    except ImatrixError:
        raise
    except (struct.error, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ImatrixError(f"{wrong} ({error})") from error
    return result
