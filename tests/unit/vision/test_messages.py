"""Pictures as clients send them, over sessions, batches and kept caches: the same answers, nothing seen twice."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import av
import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_delta import LanguageModel
from mlx_delta.chat.pictures import refuse_paths
from mlx_delta.chat.request import Prompt
from mlx_delta.chat.settings import ChatSettings
from mlx_delta.errors import ArgumentError, MissingPackageError
from support.pictures import DATA, frames, seeing

GREEDY: dict[str, Any] = {"temperature": 0, "enable_thinking": False, "max_new_tokens": 12}
CONTENT = (DATA / "odd.png").read_bytes()
TEXT = base64.b64encode(CONTENT).decode()
URL = f"data:image/png;base64,{TEXT}"
FORMS: list[dict[str, Any]] = [
    {"type": "image", "image": CONTENT},
    {"type": "image", "image": str(DATA / "odd.png")},
    {"type": "image", "path": DATA / "odd.png"},
    {"type": "image", "url": URL},
    {"type": "image", "base64": TEXT},
    {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
    {"type": "input_image", "image_url": URL},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": TEXT}},
    {"type": "image", "source": {"type": "url", "url": URL}},
    {"image": URL},
]


@pytest.fixture
def model() -> LanguageModel:
    """As if nothing had been seen."""
    found = seeing()
    assert found.vision is not None
    found.vision._seen.clear()
    found.vision.patches_computed = 0
    return found


def user(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def picture(color: str, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    return {"type": "image", "image": Image.new("RGB", size, color)}


def patches(model: LanguageModel) -> int:
    assert model.vision is not None
    return model.vision.patches_computed


def test_every_form_is_the_same_picture(model: LanguageModel) -> None:
    prompts = [model.prompt([user("See ", form, "?")]) for form in FORMS]
    assert all(prompt.ids == prompts[0].ids and prompt.keys == prompts[0].keys for prompt in prompts)
    assert all(prompt.pictures is not None for prompt in prompts)
    assert len(prompts[0].features) == 80
    assert all(mx.array_equal(prompt.features, prompts[0].features) for prompt in prompts)
    assert patches(model) == 320
    transparent = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    file = io.BytesIO()
    transparent.save(file, "PNG")
    for image in (transparent, file.getvalue()):
        shown = model.prompt([user({"type": "image", "image": image})])
        assert mx.array_equal(shown.features, model.prompt([user(picture("white"))]).features)


def test_pictures_in_tool_results(model: LanguageModel) -> None:
    call = {"name": "look", "arguments": {}}
    talk = [user("Look."), {"role": "assistant", "tool_calls": [{"function": call}]}, user(FORMS[0], role="tool")]
    prompt = model.prompt(talk)
    assert model.vision is not None
    text = model.tokenizer.decode(prompt.ids)
    assert text.count("<|image_pad|>") == 80
    assert text.index("<tool_response>") < text.index("<|image_pad|>") < text.index("</tool_response>")
    assert "<|image_pad|>" in model.render_chat(talk)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://x.org/a.png"}},
            "expected a data: URL, for nothing is fetc",
        ),
        ({"type": "image", "image": "http://x.org/a.png"}, "expected a path or a data: URL, for nothing is fetched"),
        ({"type": "image", "image": "no/such.png"}, "expected a file, found none at 'no/such.png'"),
        ({"type": "image", "image": "data:image/png,abc"}, "expected a data: URL in base64, found"),
        ({"type": "image", "image": "data:image/png;base64,a?b"}, "expected base64, found 'a.b'"),
        ({"type": "image", "image": 7}, "expected a path, bytes, a Pillow image or a data: URL, found int"),
        ({"type": "image", "image": CONTENT[:99]}, "expected a whole picture, found a damaged one"),
        ({"type": "input_image", "file_id": "x"}, "expected a picture, found a part with type, file_id"),
        ({"type": "video", "video": [CONTENT]}, "expected at least 2 frames, found 1"),
        ({"type": "video", "video": [CONTENT, b"x"]}, r"expected a picture \(PNG"),
        ({"type": "video", "video": [CONTENT] * 4, "fps": 0}, "expected a number of frames a second above 0, found 0"),
        ({"type": "audio", "audio": b""}, "expected a part with text, found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_named(model: LanguageModel, part: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^messages\[1\]\.content\[0\](\[\d\])?: {message}"):
        model.chat([user("Hello"), user(part)], **GREEDY)


def test_more_that_is_refused(model: LanguageModel) -> None:
    with pytest.raises(
        ArgumentError, match=r"messages\[0\].content\[0\]: expected text in a system message, found image"
    ):
        model.chat([user(FORMS[0], role="system"), user("?")])
    with pytest.raises(ArgumentError, match=r"for this model has no vision tower, found an image"):
        Prompt.build(model.tokenizer, [user(FORMS[0])], ChatSettings())
    with pytest.raises(
        ArgumentError, match=r"expected a <\|image_pad\|> in the rendered prompt for each of 1, found 2"
    ):
        model.chat([user(FORMS[0], "<|image_pad|>")])
    with pytest.raises(ArgumentError, match=r"tokens: expected a prompt over an empty cache"):
        model.forward(model.prompt([user("Hello")]), mask=mx.ones((1, 5)))


def test_paths_from_elsewhere_are_refused() -> None:
    refuse_paths([user(form) for form in FORMS if "path" not in form and isinstance(form.get("image", b""), bytes)])
    for form in (
        FORMS[1],
        FORMS[2],
        {"type": "video", "video": [URL, "/etc/passwd"]},
        {"type": "video", "video": "/d"},
    ):
        with pytest.raises(ArgumentError, match=r"messages\[0\].content\[0\]: expected a data: URL, found"):
            refuse_paths([user(form)])


def test_turns_compute_what_is_new(model: LanguageModel) -> None:
    """The second turn looks at its own picture alone, and reads no token of the first one's again."""
    session = model.session()
    talk = [user(picture("red", (96, 64)), "Count to 3.")]
    first = session.chat(talk, **GREEDY)
    assert first.text == model.chat(talk, **GREEDY).text
    seen = patches(model)
    talk += [first.message, user("And ", picture("blue"), "?")]
    second = session.chat(talk, **GREEDY)
    assert patches(model) - seen == 256
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 8
    seen = patches(model)
    assert second.text == model.chat(talk, **GREEDY).text
    assert patches(model) == seen
    other = [user(picture("green", (96, 64)), "Count to 3."), *talk[1:]]  # as many placeholders, another picture
    third = session.chat(other, **GREEDY)
    assert third.usage.cached_tokens < 8
    assert third.text == model.chat(other, **GREEDY).text
    plain = [user("Count to 7.")]  # positions are those of text again
    assert session.chat(plain, **GREEDY).text == model.chat(plain, **GREEDY).text


def test_batches_and_streams(model: LanguageModel) -> None:
    video, fps = frames("small")
    talks = [
        [user("Hello")],
        [user(picture("red"), picture("blue", (70, 300)), "Which?")],
        [user({"type": "video", "video": video, "fps": fps}, "What is the weather in Oslo?")],
    ]
    results = model.chat_batch(talks, **GREEDY)
    for talk, result in zip(talks, results, strict=True):
        alone = model.chat_stream(talk, **GREEDY).result()
        assert (alone.text, alone.usage.prompt_tokens) == (result.text, result.usage.prompt_tokens)


def test_a_picture_of_many_pieces(model: LanguageModel) -> None:
    """Its 580 tokens are read in two pieces, with their positions: the answer is that of one pass."""
    noise = np.random.default_rng(1).integers(0, 256, (80, 63, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((640, 928))
    talk = [user("Look: ", {"type": "image", "image": large}, "What is the weather in Paris?")]
    prompt = model.prompt(talk, enable_thinking=False)
    cache = model.make_cache()
    logits, expected = model.forward(prompt, cache), []
    assert prompt.rope_delta == 29 - 20 * 29
    for _ in range(12):
        expected.append(int(mx.argmax(logits[0, -1])))
        logits = model.forward([expected[-1:]], cache)
    stream = model.chat_stream(talk, **GREEDY)
    result = stream.result()
    assert result.text == model.tokenizer.decode(expected, skip_special=True)[: len(result.text)]
    assert len(result.text) > 3


def test_features_are_kept_within_a_limit(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = model.vision
    assert vision is not None
    monkeypatch.setattr(vision, "cache_bytes", 2 * 64 * 256 * 4)  # two pictures of 64 tokens
    for color in ("red", "blue", "red", "green", "red", "blue"):
        prompt = model.prompt([user(picture(color))])
        assert prompt.features.shape == (64, 256)
    assert patches(model) == 4 * 256  # red stayed, as it was used; blue went when green came
    assert len(vision._seen) == 2


def test_directories_of_frames(model: LanguageModel, tmp_path: Path) -> None:
    video, fps = frames("seven")
    for i, frame in enumerate(video):
        frame.save(tmp_path / f"{i:03}.png")
    listed, lying = (
        model.prompt([user({"type": "video", "video": each, "fps": fps})]) for each in (video, str(tmp_path))
    )
    assert listed.ids == lying.ids
    assert mx.array_equal(listed.features, lying.features)
    with pytest.raises(ArgumentError, match="expected a directory of pictures, found none"):
        model.prompt([user({"type": "video", "video": DATA.parent})])


def test_video_files(model: LanguageModel, tmp_path: Path) -> None:
    """Sampled as frames are, with the file's own rate; lossless, so that the pixels are those that went in."""
    video, file = frames("sampled")[0], tmp_path / "video.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = *video[0].size, "bgr0"
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    listed, lying = (
        model.prompt([user(part)])
        for part in ({"type": "video", "video": video, "fps": 10.0}, {"type": "video", "video": file})
    )
    assert lying.ids == listed.ids
    assert mx.array_equal(lying.features, listed.features)
    file.write_bytes(file.read_bytes()[:2000])
    for broken in (file, DATA / "vision.json"):
        with pytest.raises(ArgumentError, match=r"messages\[0\].content\[0\]: expected (a video|.* frames), found"):
            model.prompt([user({"type": "video", "video": broken})])


def test_pyav_is_an_extra(monkeypatch: pytest.MonkeyPatch, model: LanguageModel) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"expected PyAV, .* pip install 'mlx-delta\[video\]'"):
        model.prompt([user({"type": "video", "video": DATA / "vision.json"})])
