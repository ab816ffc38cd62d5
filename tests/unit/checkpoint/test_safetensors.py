"""Headers of safetensors files: what the format's own library refuses is refused, in one line that names the file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from safetensors import SafetensorError, safe_open

from mlx_delta.checkpoint.safetensors import Entry, read_header, write_safetensors
from mlx_delta.errors import CheckpointError


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


X = entry("F32", [2], 0, 8)


def write(file: Path, header: Any, size: int) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    arrays = {"a": mx.ones((2, 3), mx.bfloat16), "b": mx.zeros((), mx.uint32)}
    entries = [Entry(name, tuple(array.shape), array.dtype) for name, array in arrays.items()]
    write_safetensors(file, entries, arrays.items())
    found = read_header(file)
    assert {name: (info.shape, info.dtype, info.nbytes) for name, info in found.items()} == {
        "a": ((2, 3), mx.bfloat16, 12),
        "b": ((), mx.uint32, 4),
    }
    assert all(info.file == file for info in found.values())


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"x": X}, 4, r"truncated: expected \d+ bytes by its header, found \d+"),
        ({"x": X}, 12, r"too long: expected \d+ bytes by its header, found \d+"),
        ({"x": entry("F32", [2], 0, 4)}, 4, r"x: expected 8 bytes for F32 \[2\], found offsets 0 to 4"),
        ({"x": X, "y": entry("F32", [2], 4, 12)}, 12, "invalid offset for tensor `y`"),
        ({"x": X, "y": entry("F32", [2], 12, 20)}, 20, "invalid offset for tensor `y`"),
        (b'{"x":%b,"x":%b}' % ((json.dumps(X).encode(),) * 2), 8, "the key 'x' twice"),
        ({"x": entry("Q4", [2], 0, 1)}, 1, "unknown variant `Q4`"),
        ({"x": entry("F8_E5M2", [2], 0, 2)}, 2, r"x: dtype: expected one of BF16, .*, found F8_E5M2"),
        ({"x": entry("F32", [-2], 0, 8)}, 8, "invalid value: integer `-2`"),
        ({"x": entry("F32", [1 << 40, 1 << 40], 0, 8)}, 8, r"x: expected \d+ bytes|overflow"),
        ({"__metadata__": {"a": 1}, "x": X}, 8, "invalid type: integer `1`"),
        ({"x": 1}, 0, "expected a safetensors file, found invalid JSON in header"),
        ([1], 0, "header: expected a JSON object, found an array"),
        (b"", 0, "expected a safetensors header, found a file of 8 bytes without one"),
    ],
)
def test_damage_is_named(header: Any, size: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/x\.safetensors: .*{message}"):
        read_header(write(tmp_path / "x.safetensors", header, size))


def test_a_short_file(tmp_path: Path) -> None:
    for content in (b"", b"\1\0\0", (1 << 60).to_bytes(8, "little"), (100).to_bytes(8, "little") + b"{}"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(CheckpointError, match=f"found a file of {len(content)} bytes without one"):
            read_header(tmp_path / "x")


def test_what_the_library_refuses_is_refused(tmp_path: Path) -> None:
    """A thousand headers with a byte or a number changed; and what it takes has the shapes that it has there."""
    rng, file = random.Random(0), tmp_path / "x.safetensors"
    whole = {"x": X, "y": entry("BF16", [2, 3], 8, 20), "z": entry("U8", [4], 20, 24)}
    refused = 0
    for _ in range(1000):
        header: Any = json.loads(json.dumps(whole))
        if rng.random() < 0.5:
            part = header[rng.choice(list(header))][rng.choice(["shape", "data_offsets"])]
            part[rng.randrange(len(part))] += rng.choice([-8, -2, -1, 1, 2, 4, 8])
        else:
            header = bytearray(json.dumps(header).encode())
            header[rng.randrange(len(header))] = rng.choice(b'"{}[]:,0129FxyzBU ')
            header = bytes(header)
        write(file, header, 24)
        try:
            with safe_open(file, framework="np") as reader:
                expected = {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118
        except SafetensorError:
            refused += 1
            with pytest.raises(CheckpointError, match=rf"^{file}: "):
                read_header(file)
        else:
            assert {name: info.shape for name, info in read_header(file).items()} == expected
    assert 600 < refused < 1000
