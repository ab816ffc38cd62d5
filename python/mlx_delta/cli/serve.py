"""``mlx-delta serve``: HTTP for agents, editors and front ends."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_delta.cli.console import stderr
from mlx_delta.cli.options import Model


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen at; the default is reached from this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8080,
    dtype: Annotated[
        str | None,
        typer.Option(help="Activations: float32, float16 or bfloat16.", show_default="the checkpoint's"),
    ] = None,
) -> None:
    """Serve a model to OpenAI's clients. One line tells the address when it is ready; needs the extra server.

    SIGTERM or Ctrl-C ends it when the answers under way are done, a second one at once.

    mlx-delta serve --model qwen3.5-9b-3bit --port 8080
    """
    from mlx_delta.cli.serve_process import bind, run, server_package
    from mlx_delta.hub.path import is_named, model_path
    from mlx_delta.loading import load_model

    server_package()
    with bind(host, port) as listener:
        directory = model_path(model)
        name = model.partition("@")[0] if is_named(model) else directory.resolve().name
        with stderr().status(f"loading {model}"):
            loaded = load_model(directory, dtype)
        from mlx_delta.server.app import create_app

        run(create_app(loaded, name=name), listener, f"serving {name} at ")
