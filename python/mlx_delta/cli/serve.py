"""``mlx-delta serve``: HTTP for agents, editors and front ends."""

from __future__ import annotations

import ipaddress
import socket
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_delta.cli.console import stderr, warn
from mlx_delta.cli.options import (
    ByLayers,
    KvBits,
    MemoryBytes,
    Model,
    Mtp,
    PrefixCacheDir,
    PrefixCacheDirBytes,
    option_flags,
)
from mlx_delta.cli.ranks import joined, led, together


@option_flags("speculate")
def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen at; the default is reached from this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8080,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that requests must have; may be given several times.",
            envvar="MLX_DELTA_API_KEY",
            show_default="none",
            metavar="TEXT",
        ),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File with such keys, one a line.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that the server goes by, besides addresses and localhost; may be given several times.",
            show_default="none",
            metavar="NAME",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Site whose pages may ask, such as https://chat.example.org; may be given several times; * is any.",
            show_default="none",
            metavar="ORIGIN",
        ),
    ] = None,
    concurrent: Annotated[int, typer.Option(help="Most answers at once, up to 16.")] = 8,
    queue: Annotated[int, typer.Option(help="Most requests that wait for their turn; more get 429.")] = 64,
    answer_tokens: Annotated[
        int, typer.Option("--max-answer-tokens", help="Most tokens of an answer, and where nothing is asked for.")
    ] = 32768,
    prompt_tokens: Annotated[
        int | None,
        typer.Option("--max-prompt-tokens", help="Longest prompt; longer ones get 422.", show_default="the model's"),
    ] = None,
    image_tokens: Annotated[
        int,
        typer.Option("--max-image-tokens", help="Most tokens of a request's images (a megapixel is 1,024 of them)."),
    ] = 65536,
    messages: Annotated[int, typer.Option("--max-messages", help="Most messages of a request; more get 422.")] = 4096,
    body_bytes: Annotated[int, typer.Option("--max-body-bytes", help="Largest request; larger ones get 413.")] = 32
    << 20,
    prefix_cache_bytes: Annotated[
        int | None,
        typer.Option(
            help="Most memory for what is kept of prompts and answers; 0 keeps nothing.",
            show_default="an eighth of the machine's",
        ),
    ] = None,
    memory_bytes: MemoryBytes = None,
    prefix_cache_dir: PrefixCacheDir = None,
    prefix_cache_dir_bytes: PrefixCacheDirBytes = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write what is asked to the log.")] = False,
    dtype: Annotated[
        str | None,
        typer.Option(help="Activations: float32, float16 or bfloat16.", show_default="the checkpoint's"),
    ] = None,
    kv_bits: KvBits = None,
    by_layers: ByLayers = False,
    mtp: Mtp = None,
    **options: Any,
) -> None:
    """Serve a model to clients of OpenAI's and Anthropic's APIs. One line tells the address when it is ready.

    Each request is a line of JSON on standard error. SIGTERM or Ctrl-C ends it when the answers under way are done, a
    second one at once. Needs the extra server.

    mlx-delta serve --model qwen3.5-9b-3bit --port 8080

    mlx-delta serve --model Qwen/Qwen3.5-0.8B --host 0.0.0.0 --api-key-file keys.txt

    Started by mlx.launch, the ranks share the weights among them, and rank 0 serves.
    """
    from mlx_delta.cli.serve_process import bind, log_to_stderr, run, server_package

    server_package()
    from mlx_delta.chat.settings import GenerationSettings
    from mlx_delta.hub.path import is_named, model_path
    from mlx_delta.loading import load_model
    from mlx_delta.server.access import Access, read_keys
    from mlx_delta.server.app import create_app
    from mlx_delta.server.limits import Limits

    GenerationSettings(**options)  # checks them
    limits = Limits(
        concurrent=concurrent,
        queue=queue,
        answer_tokens=answer_tokens,
        prompt_tokens=prompt_tokens,
        image_tokens=image_tokens,
        messages=messages,
        body_bytes=body_bytes,
    )
    keys = [*(api_key or ()), *(read_keys(api_key_file) if api_key_file else ())]
    ranks = joined(by_layers)
    load = partial(
        load_model,
        dtype=dtype,
        prefix_cache_bytes=prefix_cache_bytes,
        memory_bytes=memory_bytes,
        prefix_cache_dir=prefix_cache_dir,
        prefix_cache_dir_bytes=prefix_cache_dir_bytes,
        kv_bits=kv_bits,
        mtp=mtp,
        ranks=ranks,
    )
    if ranks is not None and ranks.rank:
        with together(ranks), led(load(model).led, ranks):
            return
    with together(ranks), bind(host, port) as listener:
        access = Access(keys, [host, *(allow_host or ())], cors_origin or ())
        if not keys and not _loopback(listener):
            warn(f"{host} is reached from other machines, and there is no --api-key: anyone there may ask")
        directory = model_path(model)
        name = model.partition("@")[0] if is_named(model) else directory.resolve().name
        with stderr().status(f"loading {model}"):
            loaded = load(directory)
        with led(loaded.led, ranks):
            app = create_app(loaded, name=name, limits=limits, access=access, log_prompts=log_prompts, **options)
            log_to_stderr()
            run(app, listener, f"serving {name} at ")


def _loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
