#!/usr/bin/env bash
# mx.random.seed, "seed the global PRNG", seeds the calling thread alone, and all other threads draw the same numbers.
#
# In MLX 0.31.1 threads share one generator. In 0.32.4 each has its own, and all begin alike, from a number that the
# process takes at its start: whatever was seeded in the main thread, three threads that nobody seeded draw the same
# three times, those that the main thread would have drawn unseeded. So answers sampled in a thread each are copies of
# one another, and a seed that is set where a request is read does nothing where its tokens are drawn. Another process
# draws others. What helps: mx.random.seed in each thread, or key= in each draw.
#
# The processes end by os._exit: 0.32.4 can abort at exit after threads have drawn. Exits 0 while it behaves so, else 1.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 0.31.1 0.32.4; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==$version" 2>/dev/null
done

cat >"$work/draw.py" <<'PYTHON'
import os, platform, sys, threading
from importlib.metadata import version

import mlx.core as mx


def draw():
    return round(mx.random.uniform().item(), 6)


def in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def seeded():
    mx.random.seed(5)
    return draw()


unseeded = draw()
mx.random.seed(5)
first, second, third = draw(), draw(), draw()
mx.random.seed(5)
threads = [in_thread(draw) for _ in range(3)]
mx.random.seed(5)
by_themselves = [in_thread(seeded) for _ in range(3)]
print(f"mlx {version('mlx')}, Python {platform.python_version()}, {platform.system()}")
print(f"  main thread unseeded: {unseeded}; seeded with 5: {first}, {second}, {third}")
print(f"  seeded with 5 there, then one draw in each of three threads: {threads}")
print(f"  each thread seeding itself with 5: {by_themselves}", flush=True)
old = version("mlx") == "0.31.1"
expected = [first, second, third] if old else [unseeded] * 3
os._exit(0 if threads == expected and by_themselves == [first] * 3 and first != unseeded else 1)
PYTHON
for version in 0.31.1 0.32.4; do
  "$work/$version/bin/python" "$work/draw.py"
done
echo "as described: in 0.32.4 a seed reaches its own thread alone, and unseeded threads draw the same"
