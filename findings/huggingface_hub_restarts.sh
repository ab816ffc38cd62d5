#!/usr/bin/env bash
# huggingface_hub: a download whose process was killed begins again at the first byte, though what had arrived is kept.
#
# Up to 1.17 a file was written to BLOB.incomplete, and the next process went on from its end with a Range request. From
# 1.18 on each process writes to BLOB.RANDOM.incomplete: the next one asks for the whole file, and the first one's part,
# which may be tens of gigabytes, stays in the cache for good: nothing uses it, and nothing removes it.
#
# Shown against a server on this machine that counts what it sends; no other host is asked, but for installing the two
# versions. Exits 0 while both behave so, 1 when either does not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/show.py" <<'PYTHON'
import hashlib, os, signal, subprocess, sys, tempfile, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

CONTENT = bytes(range(256)) * (16 << 12)  # 16 MiB
ETAG, STALL = hashlib.sha256(CONTENT).hexdigest(), 12 << 20
ranges, stalled = [], threading.Event()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(200, 0)

    def do_GET(self):
        asked = self.headers.get("Range")
        ranges.append(asked)
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.answer(206 if asked else 200, start)
        if len(ranges) == 1:  # the first download stops here, and is killed
            self.wfile.write(CONTENT[:STALL])
            stalled.set()
            time.sleep(60)
        else:
            self.wfile.write(CONTENT[start:])

    def answer(self, status, start):
        self.send_response(status)
        self.send_header("ETag", f'"{ETAG}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
home = Path(tempfile.mkdtemp(dir=sys.argv[1]))
environment = os.environ | {
    "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
    "HF_HOME": str(home),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NO_PROXY": "*",
}
download = [sys.executable, "-c", "from huggingface_hub import hf_hub_download as f; print(f('org/model', 'weights.bin'))"]


def parts():
    return sorted((file.stat().st_size for file in home.rglob("*.incomplete")), reverse=True)


first = subprocess.Popen(download, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
assert stalled.wait(60), "the first download never began"
end = time.monotonic() + 20
while sum(parts()) < STALL // 2 and time.monotonic() < end:
    time.sleep(0.1)
first.send_signal(signal.SIGKILL)
first.wait()
left = parts()
again = subprocess.run(download, env=environment, capture_output=True, text=True)
assert again.returncode == 0, again.stderr
assert Path(again.stdout.strip()).read_bytes() == CONTENT
resumed, kept = ranges[1] is not None, parts()
print(f"huggingface_hub {version('huggingface_hub')}, Python {sys.version.split()[0]}")
print(f"  killed with {left} of {len(CONTENT)} bytes in *.incomplete")
print(f"  the next download asked for {ranges[1] or 'the whole file'}; then *.incomplete: {kept}")
assert left and left[0] > 0, "nothing had been written when it was killed"
sys.exit({"goes on": resumed and not kept, "restarts": not resumed and kept == left}[sys.argv[2]] is False)
PYTHON

for each in "1.17.0 goes-on" "2.4.0 restarts"; do
    read -r release expected <<< "$each"
    python3 -m venv "$work/$release"
    "$work/$release/bin/pip" install --quiet --disable-pip-version-check "huggingface_hub==$release"
    "$work/$release/bin/python" "$work/show.py" "$work" "${expected/-/ }" || {
        echo "huggingface_hub $release no longer behaves so (expected: ${expected/-/ })"
        exit 1
    }
done
echo "as described: from 1.18 on a killed download begins again, and its part stays"
