#!/usr/bin/env bash
# MLX's ring backend: the sum that is under way when another rank ends is wrong, and nothing says so.
#
# Two processes add arrays of ones with mx.distributed.all_sum, so every sum is 2. After twenty of them the second process
# ends, as one does whose machine goes down. The first one's next all_sum neither raises nor waits: it returns an array of
# ones, its own addend, as if it were the sum. (From there on the group is of no use; this script asks it nothing more.)
# So a program cannot take a sum for good because none raised: it needs a mark in what is summed that only all ranks
# together make up, or another way to hear of a rank's end before it uses a result.
#
# Nothing is downloaded but one package, and all connections are of this machine with itself. Exits 0 while it behaves so,
# 1 when it does not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4" numpy==2.2.6 2>/dev/null

cat > "$work/rank.py" <<'PYTHON'
import os

import mlx.core as mx
import numpy as np

group = mx.distributed.init(strict=True, backend="ring")
ones = mx.ones((4096,))
for _ in range(20):
    assert np.array(mx.distributed.all_sum(ones)).min() == 2
if group.rank() == 1:
    os._exit(0)
for _ in range(3):  # the other one may still be about to end
    total = np.array(mx.distributed.all_sum(ones))
    if (total != 2).any():
        print(f"no error; {(total == 1).sum()} of {total.size} values are this rank's own, {(total == 2).sum()} the sum")
        os._exit(0 if (total == 1).any() else 1)
os._exit(1)
PYTHON

"$work/venv/bin/python" - "$work" <<'PYTHON'
import json, os, platform, socket, subprocess, sys
from importlib.metadata import version

work = sys.argv[1]
sockets = [socket.socket() for _ in range(2)]
for each in sockets:
    each.bind(("127.0.0.1", 0))
with open(f"{work}/hosts.json", "w") as file:
    json.dump([[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets], file)
for each in sockets:
    each.close()
print(f"mlx {version('mlx')}, Python {platform.python_version()}, {platform.system()}", flush=True)
ranks = [
    subprocess.Popen(
        [sys.executable, f"{work}/rank.py"],
        env={**os.environ, "MLX_HOSTFILE": f"{work}/hosts.json", "MLX_RANK": str(rank)},
    )
    for rank in range(2)
]
try:
    codes = [rank.wait(timeout=120) for rank in ranks]
finally:
    for rank in ranks:
        rank.kill()
sys.exit(0 if codes == [0, 0] else 1)
PYTHON
echo "as described: a lost rank's share is missing from the sum, silently"
