"""Figures of a server, as Prometheus reads them."""

from __future__ import annotations

import mlx.core as mx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from mlx_delta.chat.result import Usage

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """A registry of its own, so that several servers of one process do not add up."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "mlx_delta_requests", "Requests that ended, by route and HTTP status (499: the client went away)",
            ("route", "status"), registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "mlx_delta_request_seconds", "From a request's first byte to the end of its answer", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "mlx_delta_time_to_first_token_seconds", "From acceptance to the first event of an answer, queue included",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "mlx_delta_tokens", "Tokens: cached and computed ones of prompts, thoughts and other generated ones",
            ("kind",), registry=registry,
        )  # fmt: skip
        for kind in ("prompt_cached", "prompt_computed", "thinking", "answer"):
            self._tokens.labels(kind)
        self._drafts = Counter(
            "mlx_delta_drafted_tokens", "Tokens that were drafted and checked, by what came of them",
            ("outcome",), registry=registry,
        )  # fmt: skip
        for outcome in ("accepted", "rejected"):
            self._drafts.labels(outcome)
        for name, text, figure in (
            ("memory_active_bytes", "Arrays that MLX holds", mx.get_active_memory),
            ("memory_cache_bytes", "Freed memory that MLX keeps", mx.get_cache_memory),
            ("memory_peak_bytes", "The most that arrays have taken", mx.get_peak_memory),
        ):
            Gauge(f"mlx_delta_{name}", text, registry=registry).set_function(figure)
        self._running = Gauge("mlx_delta_answers_running", "Answers that are computed", registry=registry)
        self._waiting = Gauge("mlx_delta_answers_waiting", "Answers that wait for their turn", registry=registry)
        ProcessCollector(registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """One has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first_event(self, seconds: float) -> None:
        """An answer has begun, so long after it was accepted."""
        self._first.observe(seconds)

    def answer(self, usage: Usage) -> None:
        """An answer has ended."""
        self._tokens.labels("prompt_cached").inc(usage.cached_tokens)
        self._tokens.labels("prompt_computed").inc(usage.prefilled_tokens)
        self._tokens.labels("thinking").inc(usage.thinking_tokens)
        self._tokens.labels("answer").inc(usage.completion_tokens - usage.thinking_tokens)
        self._drafts.labels("accepted").inc(usage.accepted_tokens)
        self._drafts.labels("rejected").inc(usage.drafted_tokens - usage.accepted_tokens)

    def text(self, running: int, waiting: int) -> bytes:
        """All of them, in Prometheus' text format."""
        self._running.set(running)
        self._waiting.set(waiting)
        return generate_latest(self._registry)
