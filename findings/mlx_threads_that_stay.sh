#!/usr/bin/env bash
# MLX 0.32: each Python thread that evaluates anything leaves a thread of the operating system behind when it ends.
#
# Since 0.31.2 a thread has streams of its own, and a stream on the CPU has a worker thread. It stays when the Python
# thread has ended, and mx.clear_streams(), called in the thread before it ends ("destroy all streams created in current
# thread"), does not end it either: a program with a thread a request has as many threads as it had requests. In 0.31.1
# all threads share one worker. Building a graph leaves nothing, evaluating it does. What helps: a pool of threads that
# live on, or mx.new_thread_unsafe_stream, one stream for all, with a lock around evaluation.
#
# Linux (threads are counted in /proc). Exits 0 while it behaves so, 1 when it does not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 0.31.1 0.32.4; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==$version" 2>/dev/null
done

cat >"$work/count.py" <<'PYTHON'
import os, platform, sys, threading, time
from importlib.metadata import version

import mlx.core as mx


def threads():
    """Those of the system. One that was joined may still be on its way out, so the least of some looks."""
    return min(len(os.listdir("/proc/self/task")) for _ in range(20) if time.sleep(0.01) is None)


def evaluate():
    mx.eval(mx.arange(4) * 2)


def evaluate_and_clear():
    evaluate()
    mx.clear_streams()


def evaluate_on_one():
    with lock, mx.stream(shared):
        evaluate()


uses = {"a graph, not evaluated": lambda: mx.arange(4) * 2, "evaluated": evaluate}
if hasattr(mx, "clear_streams"):
    lock, shared = threading.Lock(), mx.new_thread_unsafe_stream(mx.cpu)
    evaluate_on_one()
    uses |= {"evaluated, streams cleared": evaluate_and_clear, "evaluated on one stream": evaluate_on_one}
evaluate()
more = {}
for name, use in uses.items():
    before = threads()
    for _ in range(100):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    more[name] = threads() - before
print(f"mlx {version('mlx')}, Python {platform.python_version()}, {platform.system()}; after 100 threads that have ended:")
for name, count in more.items():
    print(f"  {name}: {count} more threads of the system, {threading.active_count()} of Python")
expected = dict.fromkeys(uses, 0)
if version("mlx") == "0.32.4":
    expected |= {"evaluated": 100, "evaluated, streams cleared": 100}
sys.exit(0 if more == expected else 1)
PYTHON
for version in 0.31.1 0.32.4; do
  "$work/$version/bin/python" "$work/count.py"
done
echo "as described: 0.32.4 keeps a thread for each that evaluated, 0.31.1 none"
