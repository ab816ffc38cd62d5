"""The one registry of op cases: tests compare each with its reference, benches time those that have a model's shapes.

A case makes an op's arguments; the op and its reference are ``mlx_delta.ops.<op>`` and ``<op>_reference``. Inputs come
from a seeded generator, so a case is the same everywhere.
"""

from __future__ import annotations

from mlx_delta.bench.cases import attention, delta, ends, experts, qmm
from mlx_delta.bench.cases.case import BOUNDS as BOUNDS
from mlx_delta.bench.cases.case import DTYPES as DTYPES
from mlx_delta.bench.cases.case import Arguments as Arguments
from mlx_delta.bench.cases.case import Case as Case
from mlx_delta.bench.cases.case import as_list as as_list
from mlx_delta.bench.cases.case import relative_rms as relative_rms
from mlx_delta.bench.sizes import config_of


def cases_of(size: str) -> list[Case]:
    """The small cases of every op, which are those of any size, and the real ones at the shapes of ``size`` ("9B")."""
    text = config_of(size).text
    return [case for module in (qmm, ends, delta, attention, experts) for case in module.cases(size.lower(), text)]


# What tests run, on an emulated GPU too: of the real shapes those of one token.
CASES = [case for case in cases_of("9B") if not case.name.endswith(("-m8", "-m512"))]
