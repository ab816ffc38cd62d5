"""What a model has computed of the prompts and answers before, for every sequence that begins as one of them did.

A radix tree over token ids, and the way that each was computed (``cuts``): where another turn ends among them, the same
ids have other bits by rows than by tiles. A node holds the keys and values of the ids since its parent, each row once
whatever the number of sequences that share it, and, where sequences may go on from its end, the states of the
gated-delta layers there. What is used least recently goes first: the states of a node, or all of one without children.

Arrays that the tree holds are nobody's to change: a sequence that goes on gets copies of keys and values, and states
that its first step copies, since they are held (``model.cache``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from mlx_delta.engine.cuts import Cuts, Turns
from mlx_delta.engine.snapshots import ID, Content, File, Snapshots
from mlx_delta.model.cache import Cache, DeltaState, KeyValues, LayerState, kv_bytes
from mlx_delta.model.network import Network

_ROWS = 1 << 62  # of an id in a key: it is computed by rows
_PICTURE = (1 << 62) - 1  # of what tells pictures apart, as much as a key takes: as unlikely to be another's as can be


@dataclass(eq=False)
class _Node:
    """key: the ids since the parent, int64. end: how many there are from the root. rows: keys and values of the ids,
    of each attention layer. states: after them, None where nothing goes on. hidden [1, n, hidden]: what the last layer
    gave of the last ones, for drafts of what goes on; None where nobody drafted. used: when it was, last.
    """

    parent: _Node | None
    key: bytes
    end: int
    rows: list[KeyValues]
    states: list[DeltaState] | None = None
    hidden: mx.array | None = None
    used: int = 0
    children: list[_Node] = field(default_factory=list)

    @property
    def start(self) -> int:
        return self.end - len(self.key) // ID

    @property
    def row_bytes(self) -> int:
        return sum(a.nbytes for rows in self.rows for a in rows.arrays())

    @property
    def state_bytes(self) -> int:
        hidden = 0 if self.hidden is None else self.hidden.nbytes
        return hidden + sum(a.nbytes for state in self.states or () for a in state.arrays())

    def child(self, key: bytes) -> _Node | None:
        """The one whose ids begin as those from this node's end on in ``key``, all of the ids from the root."""
        return next((each for each in self.children if key.startswith(each.key, ID * self.end)), None)


class PrefixCache:
    """Of what ``network`` computes. limit: the most bytes that it holds; 0 keeps nothing. turns: how ids are cut.
    snapshots: where it is kept in files too; None: nowhere. Any thread may use it.
    """

    def __init__(self, network: Network, limit: int, turns: Turns, snapshots: Snapshots | None = None) -> None:
        self.limit = limit
        self._network = network
        self._snapshots = snapshots
        self._turns = turns
        self._lock = threading.RLock()
        self._clear()

    def _clear(self) -> None:
        self._root = _Node(None, b"", 0, [])
        self._bytes = 0
        self._time = 0

    @property
    def nbytes(self) -> int:
        """Of all arrays held."""
        return self._bytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._clear()

    def resume(self, ids: Sequence[int], cuts: Cuts) -> Cache:
        """A cache that goes on with ``ids`` from as far as is known, at least one before their end. cuts: theirs."""
        with self._lock:
            path = self._known(ids, cuts)
            if not path:
                return self._network.empty_cache()
            node = path[-1]
            self._touch(node)
            assert node.states is not None
            states = iter(node.states)
            rows = iter(zip(*(each.rows for each in path), strict=True))
            layers: list[LayerState] = [
                replace(next(states)) if kind == "linear_attention" else KeyValues.joined(next(rows), len(ids) + 1)
                for kind in self._network.config.layer_types
            ]
            cache = Cache(layers, node.end)
            mx.eval(cache.arrays())  # a prompt may be computed a layer a step, each in another thread
            return cache

    def hidden(self, ids: Sequence[int], cuts: Cuts, end: int) -> mx.array | None:
        """What the last layer gave of the last of the first ``end`` ids, where ``resume`` has gone on from."""
        with self._lock:
            path = self._known(ids, cuts)
            return path[-1].hidden if path and path[-1].end == end else None

    def known(self, ids: Sequence[int], cuts: Cuts) -> int:
        """From where ``resume`` would go on now."""
        with self._lock:
            path = self._known(ids, cuts)
            return path[-1].end if path else 0

    def _known(self, ids: Sequence[int], cuts: Cuts) -> list[_Node]:
        path = list(self._path(self._key(ids, cuts)))
        while path and not _goes_on(path[-1], ids, cuts):
            path.pop()
        return path

    def keep(self, ids: Sequence[int], cache: Cache, hidden: mx.array | None = None) -> None:
        """Let other sequences go on from here: the cache covers exactly ``ids``, of a place that cuts may have. hidden:
        what the last layer gave of the last of them."""
        if len(ids) != cache.offset:
            raise ValueError(f"ids: expected the {cache.offset} that the cache covers, found {len(ids)}")
        if not ids or not self.limit:
            return
        key = self._key(ids)
        with self._lock:
            node = self._node(
                key,
                lambda start, end: [
                    layer.stretch(start, end) for layer in cache.layers if isinstance(layer, KeyValues)
                ],
            )
            new = node.states is None
            self._keep_states(node, [replace(layer) for layer in cache.layers if isinstance(layer, DeltaState)], hidden)
            if new and self._snapshots is not None:
                assert node.states is not None
                mx.eval([a for state in node.states for a in state.arrays()])  # another thread will read them
                rows = [(each.start, each.rows) for each in self._path(key)]
                self._snapshots.keep(key, rows, node.states, node.hidden)
            self._shrink(self.limit)

    def fetch(self, keys: Sequence[int], ids: Sequence[int]) -> None:
        """Bring in what files have of a prompt, where ``resume`` could go on from there. keys: its ids, with those of
        pictures. It takes a while, and is for the thread that asks, not for one that decodes."""
        if self._snapshots is None or not self.limit:
            return
        cuts = Cuts(ids, self._turns)
        key = self._key(keys, cuts)

        def goes_on(end: int) -> bool:
            return end < len(ids) and cuts.before(end) == end and self._need(end) <= self.limit

        while chain := self._snapshots.chain(key, goes_on):
            if chain[-1].end <= self.known(keys, cuts):
                return
            with self._lock:
                ends = {node.end for node in self._path(key)}
            contents = self._snapshots.read(chain, ends)
            if contents is not None:
                with self._snapshots.stream(), self._lock:
                    for file, content in zip(chain, contents, strict=True):
                        self._add(key, file, content)
                    self._shrink(self.limit)
                return

    def _need(self, count: int) -> int:
        """Bytes of what ``count`` ids leave: of more than the limit nothing would be left."""
        config, dtype, kv_bits = self._network.cached, self._network.dtype, self._network.kv_bits
        rows = config.layer_types.count("full_attention") * kv_bytes(config, dtype, kv_bits)
        return Cache.bytes_of(config, dtype, 0) + count * rows

    def _add(self, key: bytes, file: File, content: Content) -> None:
        """What a file has, unless what comes before it was too much to keep."""
        key, first = key[: ID * file.end], file.start
        known = ([self._root, *self._path(key)])[-1].end
        if known < file.end and (known < first or not content.rows):
            return
        node = self._node(key, lambda start, end: [each.stretch(start - first, end - first) for each in content.rows])
        if content.states:
            self._keep_states(node, content.states, content.hidden)
        self._touch(node)

    def _node(self, key: bytes, rows: Callable[[int, int], list[KeyValues]]) -> _Node:
        """The one at the end of ``key``, made if it is not there. rows: keys and values of ids[start:end]."""
        parent = ([self._root, *self._path(key)])[-1]
        end = len(key) // ID
        if parent.end == end:
            return parent
        rest = key[ID * parent.end :]
        node = _Node(parent, rest, end, rows(parent.end, end))
        # Now: a slice that is not computed yet holds the keys and values, which the next token would have to copy.
        mx.eval([a for each in node.rows for a in each.arrays()])
        self._bytes += node.row_bytes
        for longer in [each for each in parent.children if each.key.startswith(rest)]:
            self._cut(longer, node)
        parent.children.append(node)
        return node

    def _keep_states(self, node: _Node, states: list[DeltaState], hidden: mx.array | None) -> None:
        self._bytes -= node.state_bytes
        if node.states is None:
            node.states = states
        if node.hidden is None and hidden is not None:
            node.hidden = mx.contiguous(hidden)
            mx.eval(node.hidden)
        self._bytes += node.state_bytes
        self._touch(node)

    def held(self, ids: Sequence[int]) -> int:
        """Bytes of what sequences that begin with ``ids`` share with what is kept."""
        with self._lock:
            return sum(node.row_bytes + node.state_bytes for node in self._path(self._key(ids)))

    def forget(self, ids: Sequence[int]) -> None:
        """What is kept of ``ids``, except for what others begin with too."""
        key = self._key(ids)
        with self._lock:
            for node in reversed(list(self._path(key))):
                if node.children:
                    break
                self._drop(node)
            shared = ([self._root, *self._path(key)])[-1].end
        if self._snapshots is not None:
            self._snapshots.forget(key, shared)

    def _key(self, ids: Sequence[int], cuts: Cuts | None = None) -> bytes:
        key = np.array([i if i >= 0 else i | ~_PICTURE for i in ids], dtype=np.int64)
        key[(cuts or Cuts(ids, self._turns)).by_rows()] ^= _ROWS
        return key.tobytes()

    def _path(self, key: bytes) -> Iterator[_Node]:
        """The nodes whose ids ``key`` begins with, from the root's child on."""
        node = self._root.child(key)
        while node is not None:
            yield node
            node = node.child(key)

    def _touch(self, node: _Node) -> None:
        self._time += 1
        node.used = self._time

    def _cut(self, node: _Node, before: _Node) -> None:
        """Put ``before``, whose ids those of ``node`` begin with, between it and its parent."""
        assert node.parent is not None
        node.parent.children.remove(node)
        self._bytes -= node.row_bytes
        count = len(before.key) // ID
        node.rows = [rows.stretch(count, node.end - before.start) for rows in node.rows]
        node.key = node.key[len(before.key) :]
        node.parent = before
        before.children.append(node)
        self._bytes += node.row_bytes
        mx.eval([a for rows in node.rows for a in rows.arrays()])

    def shrink(self, limit: int) -> None:
        """Forget what is beyond so many bytes, now."""
        with self._lock:
            self._shrink(limit)

    def _shrink(self, limit: int) -> None:
        while self._network.agreed(self._bytes > max(0, limit)):
            node = min(self._droppable(self._root), key=lambda each: each.used)
            if node.children:
                self._bytes -= node.state_bytes
                node.states = node.hidden = None
            else:
                self._drop(node)

    def _droppable(self, node: _Node) -> Iterator[_Node]:
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node.parent is not None and (node.states is not None or not node.children):
                yield node
            waiting += node.children

    def _drop(self, node: _Node) -> None:
        """One without children; and its parents, where nothing goes on from them."""
        parent = node.parent
        while parent is not None:
            self._bytes -= node.row_bytes + node.state_bytes
            parent.children.remove(node)
            if parent.children or parent.states is not None:
                return
            node, parent = parent, parent.parent


def _goes_on(node: _Node, ids: Sequence[int], cuts: Cuts) -> bool:
    return node.states is not None and node.end < len(ids) and cuts.before(node.end) == node.end
