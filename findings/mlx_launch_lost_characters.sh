#!/usr/bin/env bash
# mlx.launch: characters of what a rank prints go missing, without a word, where they are not ASCII.
#
# It passes on what its ranks print, read in pieces of up to 8192 bytes, and decodes each piece by itself, ignoring errors.
# A character of several bytes that lies across the end of a piece is an error in both, and gone. So the same program
# prints the same text whole by itself and with holes under mlx.launch: of 20,000 Chinese characters a handful is missing,
# and how many depends on how fast it was read. A JSON document stays valid and is not the one that was written.
# What is escaped to ASCII before it is printed (json.dumps does so unless told otherwise) arrives whole.
#
# Nothing is downloaded but one package. Exits 0 while it behaves so, 1 when it does not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4" 2>/dev/null

cat > "$work/rank.py" <<'PYTHON'
import json, os, sys

if os.environ.get("MLX_RANK", "0") == "0":
    text = "x" + "中" * 20_000
    line = json.dumps(text, ensure_ascii=sys.argv[1] == "ascii")
    sys.stdout.buffer.write(line.encode() + b"\n")
PYTHON

"$work/venv/bin/python" - "$work" <<'PYTHON'
import json, platform, subprocess, sys
from importlib.metadata import version

work = sys.argv[1]
print(f"mlx {version('mlx')}, Python {platform.python_version()}, {platform.system()}")
launch = [f"{work}/venv/bin/mlx.launch", "-n", "2", "--backend", "ring", "--"]
rank = [sys.executable, f"{work}/rank.py"]


def arrived(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=120)
    assert not done.stderr, done.stderr
    return json.loads(done.stdout).count("中")


alone = arrived([*rank, "utf-8"])
launched = min(arrived([*launch, *rank, "utf-8"]) for _ in range(3))
escaped = min(arrived([*launch, *rank, "ascii"]) for _ in range(3))
print(f"of 20000 characters: alone {alone}, under mlx.launch {launched}, there escaped {escaped}")
sys.exit(0 if alone == escaped == 20_000 and launched < 20_000 else 1)
PYTHON
echo "as described: characters are missing from what a rank printed"
