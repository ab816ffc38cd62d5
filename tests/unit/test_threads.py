"""A model is at home in every thread: what one thread made, any other goes on with, when the first has ended too.

MLX evaluates an array in the thread alone that made it, as long as it is lazy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import pytest

from mlx_delta import load_model
from mlx_delta.chat.result import ChatResult
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.chat.stream import ChatStream
from mlx_delta.conversion.pipeline import convert
from mlx_delta.errors import BusyError, MlxDeltaError
from mlx_delta.evaluation import evaluate
from mlx_delta.language_model import LanguageModel
from mlx_delta.ops import Matrix
from support import GOLDEN, TINY

T = TypeVar("T")
ASK = [{"role": "user", "content": "What is 457 + 998?"}]
SEE = [{"role": "user", "content": [{"type": "image", "image": GOLDEN / "vision" / "onebit.png"}]}]
PENALTIES = {"presence_penalty": 0.5, "repetition_penalty": 1.1, "temperature": 0.8, "seed": 7}


def elsewhere(work: Callable[[], T]) -> T:
    """What ``work`` returns, done in a thread that has ended when it is returned."""
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("threads") / "3bit"
    convert(TINY, out, recipe="unsloth", imatrix=TINY / "imatrix.gguf")
    return out


@pytest.fixture(scope="module", params=["bfloat16", "quantized"])
def models(request: pytest.FixtureRequest, quantized: Path) -> tuple[LanguageModel, LanguageModel]:
    """One loaded here, and one in a thread that is gone."""
    path = TINY if request.param == "bfloat16" else quantized
    return load_model(path, "float32"), elsewhere(lambda: load_model(path, "float32"))


def arrays(part: Any, name: str = "network") -> dict[str, mx.array]:
    """Every array that ``part`` holds, by where."""
    if isinstance(part, mx.array):
        return {name: part}
    if isinstance(part, (tuple, list)):
        return {n: a for i, each in enumerate(part) for n, a in arrays(each, f"{name}[{i}]").items()}
    if isinstance(part, Matrix):
        parts = {"weight": part.weight, "scales": part.scales, "biases": part.biases}
        return {f"{name}.{key}": array for key, array in parts.items() if array is not None}
    if is_dataclass(part) and not isinstance(part, type):
        return {n: a for f in fields(part) for n, a in arrays(getattr(part, f.name), f"{name}.{f.name}").items()}
    return {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_array_of_a_network(dtype: str, quantized: Path) -> None:
    kinds = set()
    for path in (TINY, quantized):
        found = arrays(elsewhere(lambda path=path: load_model(path, dtype)).network)
        assert len(found) > 100
        kinds |= {a.dtype for a in found.values()}
        for name, array in found.items():
            assert mx.isfinite(array.astype(mx.float32).sum()).item(), name
    assert kinds == {mx.float32, mx.bfloat16, mx.uint32}


def test_every_method(models: tuple[LanguageModel, LanguageModel]) -> None:
    """In the thread that loaded and in others, one after another: always the same answers. Pictures come first, for
    the tower is read when one does."""
    uses: list[Callable[[LanguageModel], Any]] = [
        lambda m: m.chat(SEE, max_new_tokens=4, temperature=0).text,
        lambda m: m.forward([[1, 2, 3]]).sum().item(),
        lambda m: m.generate("def f(", max_new_tokens=4, **PENALTIES).text(),
        lambda m: m.chat(ASK, max_new_tokens=4, **PENALTIES).text,
        lambda m: [e.text for e in m.chat_stream(ASK, max_new_tokens=4, **PENALTIES)],
        lambda m: m.session().chat(ASK, max_new_tokens=4, temperature=0).text,
        lambda m: [r.text for r in m.chat_batch([ASK, ASK[:1]], ChatSettings(max_new_tokens=4, **PENALTIES))],
        lambda m: m.render_chat(ASK),
    ]
    here, gone = models
    for use in uses:
        found = [elsewhere(lambda use=use, m=m: use(m)) for m in models] + [use(m) for m in models]
        assert found[1:] == found[:-1]
        assert elsewhere(lambda use=use: use(gone)) == use(here)


def test_a_cache_goes_on_elsewhere(models: tuple[LanguageModel, LanguageModel]) -> None:
    """Step by step, each in a thread of its own; logits that nobody looked at among them, and copies."""
    model = models[0]
    tokens = model.tokenizer.encode("def read(path):\n" + "    with open(path) as file:\n" * 4)
    expected = model.forward([tokens])[0, -1].tolist()
    cache = elsewhere(model.make_cache)
    elsewhere(lambda: model.forward([tokens[:20]], cache))
    cache = elsewhere(cache.copy)
    elsewhere(lambda: model.forward([tokens[20:-1]], cache).sum().item())
    found = elsewhere(lambda: model.forward([tokens[-1:]], cache.copy())[0, -1].tolist())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert model.forward([tokens[-1:]], cache)[0, -1].tolist() == found


def test_a_padded_cache_goes_on_elsewhere(models: tuple[LanguageModel, LanguageModel]) -> None:
    model = models[1]
    cache, mask = model.make_cache(), mx.array([[False, True, True], [True, True, True]])
    elsewhere(lambda: model.forward([[0, 5, 6], [1, 2, 3]], cache, mask=mask))
    found = elsewhere(lambda: model.forward([[7], [4]], cache).tolist())
    alone = model.make_cache()
    model.forward([[5, 6]], alone)
    assert found[0] == model.forward([[7]], alone)[0].tolist()


def test_an_iterator_goes_from_thread_to_thread(models: tuple[LanguageModel, LanguageModel]) -> None:
    """As a server's thread pool takes it: each piece in another thread."""
    for model in models:
        for options in ({"temperature": 0}, PENALTIES):
            expected = list(model.generate("def f(", max_new_tokens=8, **options))
            pieces = elsewhere(lambda m=model, o=options: m.generate("def f(", max_new_tokens=8, **o))
            found = []
            while (piece := elsewhere(lambda pieces=pieces: next(pieces, None))) is not None:
                found.append(piece)
            assert found == expected
            stream = elsewhere(lambda m=model, o=options: m.chat_stream(ASK, max_new_tokens=8, **o))
            events = iter(stream)
            texts = []
            while (event := elsewhere(lambda events=events: next(events, None))) is not None:
                texts.append(event.text)
            assert texts == [e.text for e in model.chat_stream(ASK, max_new_tokens=8, **options)]


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work`` of each number returns or raises, all begun at the same time."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait()
        try:
            return work(number)
        except MlxDeltaError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_a_model_serves_threads_at_once(models: tuple[LanguageModel, LanguageModel]) -> None:
    model = models[0]
    asked = [[{"role": "user", "content": f"What is {n * 37} + {n}?"}] for n in range(4)]

    def ask(n: int) -> str:
        return model.chat(asked[n], max_new_tokens=20, **PENALTIES).text + model.generate(f"{n}", temperature=0).text()

    assert at_once(4, ask) == [ask(n) for n in range(4)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads of the system are counted in Linux's /proc")
def test_threads_that_have_ended_leave_none_behind(tmp_path: Path) -> None:
    """MLX keeps one for each that evaluated on a stream of its own (findings/mlx_threads_that_stay.sh): be it in a
    step, to keep an answer that was closed, to see a picture, to write and read a snapshot, or to evaluate."""
    first, again = (load_model(TINY, prefix_cache_dir=tmp_path) for _ in range(2))
    pictures = [GOLDEN / "vision" / f"{name}.png" for name in ("onebit", "gray8", "palette")]

    def after(*numbers: int) -> int:
        for n in numbers:
            ask = [{"role": "user", "content": [{"type": "image", "image": pictures[n]}]}]
            stream = elsewhere(lambda ask=ask: first.chat_stream(ask, temperature=0, max_new_tokens=9))
            elsewhere(lambda stream=stream: [next(stream) for _ in range(3)])
            elsewhere(stream.close)
            text = f"{n} " * 300
            elsewhere(lambda text=text: first.generate(text, max_new_tokens=2).text())
            assert first.engine.prefix._snapshots is not None
            first.engine.prefix._snapshots.close()
            elsewhere(lambda text=text: again.generate(text, max_new_tokens=2).text())
            elsewhere(lambda text=text: evaluate([again], first, text[:40]))
        return min(len(list(Path("/proc/self/task").iterdir())) for _ in range(20) if time.sleep(0.01) is None)

    assert after(0) == after(1, 2)
    assert len(list(tmp_path.iterdir())) >= 3


def test_a_session_in_several_threads_at_once(models: tuple[LanguageModel, LanguageModel]) -> None:
    """An answer or a clear error for each, and the session is as good as before."""
    model, expected = models[0], models[0].chat(ASK, temperature=0, max_new_tokens=30)
    session = model.session()
    found = at_once(4, lambda _: session.chat(ASK, temperature=0, max_new_tokens=30))
    answers = [one for one in found if isinstance(one, ChatResult)]
    assert answers
    assert {(one.text, one.finish_reason) for one in answers} == {(expected.text, expected.finish_reason)}
    errors = [one for one in found if not isinstance(one, ChatResult)]
    assert all(isinstance(one, BusyError) for one in errors)
    assert all(str(one).startswith("session: expected one use at a time, found another thread") for one in errors)
    assert session.chat(ASK, temperature=0, max_new_tokens=30).text == expected.text


def test_nothing_enters_what_another_thread_is_in(models: tuple[LanguageModel, LanguageModel]) -> None:
    session = models[0].session()
    stream = session.chat_stream(ASK, temperature=0, max_new_tokens=4)
    pieces = models[0].generate("def f(", temperature=0, max_new_tokens=4)
    with session._exclusive, pieces._exclusive:
        for use in (stream.result, session.reset, lambda: session.chat(ASK), lambda: list(stream)):
            with pytest.raises(BusyError, match=r"^session: expected one use at a time"):
                elsewhere(use)
        for use in (pieces.text, lambda: next(pieces)):
            with pytest.raises(BusyError, match=r"^generation: expected one use at a time"):
                elsewhere(use)
    assert elsewhere(stream.result).finish_reason == "length"
    assert elsewhere(pieces.text) != ""


@pytest.mark.parametrize("reading", [True, False], ids=["prompt", "answer"])
def test_another_thread_closes_what_one_waits_for(models: tuple[LanguageModel, LanguageModel], reading: bool) -> None:
    """It is told at once that there are no more: the rest of its prompt is not read either."""
    model, waits, seen = models[0], threading.Event(), []

    def progress(done: int, total: int) -> None:
        seen.append(done / total)
        waits.set()

    text = "one two three " * 1500 if reading else "def f("
    for begun in (
        model.chat_stream([{"role": "user", "content": text}], temperature=0, prompt_progress=progress),
        model.generate(text, temperature=0, max_new_tokens=2000, prompt_progress=progress),
    ):
        waits.clear()
        seen.clear()
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(list, begun if reading else (waits.set() or each for each in begun))
            assert waits.wait(9)
            begun.close()
            rest.result(60)
        if reading and isinstance(begun, ChatStream):
            assert begun.result().finish_reason == "interrupted"
        assert not reading or seen[-1] < 0.5
    assert not model.engine._going
