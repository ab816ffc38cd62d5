"""What all commands share, given to each where it is registered: errors, ``--debug``, ``~`` in paths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from mlx_delta.cli.errors import reported_errors, show_tracebacks
from mlx_delta.paths import expanded

Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show a traceback for every error.", callback=show_tracebacks, is_eager=True, show_default=False
    ),
]


def register(app: typer.Typer, name: str, function: Callable[..., None]) -> None:
    """Make ``function`` the command ``name`` of ``app``. Its parameters are options, as typer reads them."""
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    flags = flags_of(signature, hints)

    @wraps(function)
    def command(**arguments: Any) -> None:
        del arguments["debug"]  # its callback has seen to it
        with reported_errors(flags):
            function(**{name: _expanded(value) for name, value in arguments.items()})

    parameters = [each.replace(annotation=hints[each.name]) for each in signature.parameters.values()]
    parameters.append(inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug))
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {**hints, "debug": Debug}
    app.command(name)(command)


def flags_of(signature: inspect.Signature, hints: Mapping[str, Any]) -> dict[str, str]:
    """Of a command's parameters, which bear the names of the library's arguments: the option that a user gives."""
    flags = {}
    for name in signature.parameters:
        if get_origin(hints[name]) is not Annotated:
            continue
        options = [each for each in get_args(hints[name])[1:] if isinstance(each, OptionInfo)]
        if options:
            # Inside Annotated, typer has the first name given in the place of a default.
            names = (options[0].default, *(options[0].param_decls or ()))
            declared = [each for each in names if isinstance(each, str) and each.startswith("--")]
            flags[name] = declared[0].partition("/")[0] if declared else f"--{name.replace('_', '-')}"
    return flags


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return expanded(value) if isinstance(value, Path) else value
