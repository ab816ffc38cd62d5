#!/usr/bin/env bash
# mlx.core.Dtype: comparing a dtype with None raises TypeError, and so does looking for one in a tuple that begins with
# None.
#
# dtype=None is how optional arguments say "as it is", and `dtype in (None, mx.float32)` how one would check them. In
# Python == answers False for what it does not know; a dtype does so for every object but None: a string, a number and
# numpy's dtypes give False, None raises "incompatible function arguments". Where the dtype comes before None in the
# tuple nothing is seen, as long as it is found before; != raises too, and None on the left side does not help.
# What works is `dtype is None`.
#
# Nothing is downloaded but the package. Exits 0 while it behaves so, 1 when it does not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4" numpy==2.2.6 2>/dev/null

"$work/venv/bin/python" <<'PYTHON'
import platform, sys
from importlib.metadata import version

import mlx.core as mx
import numpy as np

print(f"mlx {version('mlx')}, Python {platform.python_version()}, {platform.system()}")


def said(name, compare):
    try:
        answer = repr(compare())
    except TypeError as error:
        answer = f"TypeError: {str(error).splitlines()[0]}"
    print(f"{name:40} {answer}")
    return answer.split(":")[0]


expected = {
    "mx.float32 == mx.float32": ("True", lambda: mx.float32 == mx.float32),
    "mx.float32 == 'float32'": ("False", lambda: mx.float32 == "float32"),
    "mx.float32 == 32": ("False", lambda: mx.float32 == 32),
    "mx.float32 == np.dtype('float32')": ("False", lambda: mx.float32 == np.dtype("float32")),
    "mx.float32 == None": ("TypeError", lambda: mx.float32 == None),
    "mx.float32 != None": ("TypeError", lambda: mx.float32 != None),
    "None == mx.float32": ("TypeError", lambda: None == mx.float32),
    "mx.float32 in (None, mx.float32)": ("TypeError", lambda: mx.float32 in (None, mx.float32)),
    "mx.float32 in (mx.float32, None)": ("True", lambda: mx.float32 in (mx.float32, None)),
    "mx.float16 in (mx.float32, None)": ("TypeError", lambda: mx.float16 in (mx.float32, None)),
    "mx.float32 is None": ("False", lambda: mx.float32 is None),
}
found = {name: said(name, compare) for name, (_, compare) in expected.items()}
sys.exit(0 if found == {name: answer for name, (answer, _) in expected.items()} else 1)
PYTHON
echo "as described: a dtype compared with None raises"
