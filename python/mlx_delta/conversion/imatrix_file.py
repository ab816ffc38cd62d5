"""llama.cpp's two files of an importance matrix. Little-endian; names and values as they stand in the file.

GGUF   (``llama-imatrix``) per tensor ``<name>.in_sum2`` F32 [K], the sum over tokens of x^2, and ``<name>.counts`` F32
       [1], the tokens; ``general.type`` imatrix, ``imatrix.datasets``, ``.chunk_count`` and ``.chunk_size``.
.dat   (older) int32 count of entries; each int32 length, name, int32 calls, int32 K, float32 [K] of mean * calls; then,
       in newer files, int32 chunks, int32 length, name of the text. A call is a chunk.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from mlx_delta.checkpoint.gguf_file import open_gguf
from mlx_delta.errors import ImatrixError


@dataclass(frozen=True)
class Calibration:
    """A calibration run: sums of x^2 [K] over ``chunks`` chunks of ``chunk_size`` tokens, by a tensor's name."""

    sums: Mapping[str, np.ndarray]
    chunks: int
    chunk_size: int
    datasets: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return self.chunks * self.chunk_size


def read_means(path: Path) -> dict[str, np.ndarray]:
    """Tensor -> mean over tokens of x^2, float32 [K], of either format.

    A tensor that no token reached, whose sums are all zero, has none.
    Raises: ImatrixError when the file is missing or is of neither format, and for what no sum of squares can be.
    """
    if not path.is_file():
        raise ImatrixError(f"{path}: expected an importance matrix, found no such file")
    with path.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    means = _read_gguf(path) if is_gguf else _read_legacy(path)
    for name, values in means.items():
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if wrong.size:
            what = f"{path}: {name}: expected finite means of squares, found {values[wrong[0]]}"
            raise ImatrixError(f"{what} for channel {wrong[0]} and {wrong.size - 1} more of {values.size}")
    seen = {name: values for name, values in means.items() if values.any()}
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
        writer.add_tensor(f"{name}.in_sum2", values.astype(np.float32))
        writer.add_tensor(f"{name}.counts", np.array([run.tokens], np.float32))
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
        parts.append((values / run.chunk_size).astype("<f4").tobytes())  # mean * chunks
    dataset = ", ".join(run.datasets).encode()
    parts.append(struct.pack(f"<ii{len(dataset)}s", run.chunks, len(dataset), dataset))
    path.write_bytes(b"".join(parts))


def _read_gguf(path: Path) -> dict[str, np.ndarray]:
    stored = {
        tensor.name: np.asarray(tensor.data, dtype=np.float32)
        for tensor in open_gguf(path, ImatrixError).tensors
        if tensor.name.endswith((".in_sum2", ".counts"))
    }
    result = {}
    for name in (name.removesuffix(".in_sum2") for name in stored if name.endswith(".in_sum2")):
        count = float(stored.get(f"{name}.counts", np.zeros(1)).sum())
        if not 0 <= count < math.inf:
            raise ImatrixError(f"{path}: {name}.counts: expected a number of tokens, found {count}")
        if count > 0:
            result[name] = _mean(stored[f"{name}.in_sum2"].reshape(-1), count)
    return result


def _mean(sums: np.ndarray, count: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
        return (sums / np.float32(count)).astype(np.float32)


def _read_legacy(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    wrong = f"{path}: expected an importance matrix in GGUF form or llama.cpp's older .dat, found neither"
    result: dict[str, np.ndarray] = {}
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
                result[name] = _mean(values, calls)
    except ImatrixError:
        raise
    except (struct.error, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ImatrixError(f"{wrong} ({error})") from error
    return result
