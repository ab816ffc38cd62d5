"""The chat page in a real Chromium: ``python page.py http://127.0.0.1:8080 [FOLDER for screenshots]``, with playwright.

What a reader does: ask with the keyboard, unfold thoughts, stop, offer a tool and give its result, at 375 pixels too;
what a screen reader finds; that nothing else is loaded. A third argument is the browser, else it is playwright's own.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

ADDRESS = sys.argv[1].rstrip("/") + "/"
FOLDER = Path(sys.argv[2]) if len(sys.argv) > 2 else None
QUESTION = json.loads((Path(__file__).parents[2] / "tests/golden/tools.json").read_text("utf-8"))[0]
BROWSER = sys.argv[3] if len(sys.argv) > 3 else None
WRONG: list[str] = []


def opened(browser: Browser, width: int, height: int) -> Page:
    page = browser.new_context(viewport={"width": width, "height": height}, device_scale_factor=1).new_page()
    page.on("console", lambda message: WRONG.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: WRONG.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((ADDRESS, "data:")) else WRONG.append(request.url)
    )
    page.goto(ADDRESS)
    expect(page.get_by_role("heading", level=1)).not_to_have_text("mlx-delta")
    return page


def settle(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)


def settings(page: Page, **values: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " "), exact=False).fill(value)
    page.get_by_role("button", name="Done").click()


def conversation(page: Page, name: str) -> None:
    settings(page, Temperature="0")
    expect(page.get_by_label("Message. Enter sends")).to_be_visible()
    page.get_by_label("Message. Enter sends").focus()
    page.keyboard.type("Count to 7.")
    page.keyboard.press("Enter")
    settle(page)
    last = page.locator("article.assistant").last
    expect(last.locator(".body")).to_have_text("1 2 3 4 5 6 7")
    expect(page.get_by_role("status")).to_have_text("1 2 3 4 5 6 7")
    expect(last.locator("details p")).to_be_hidden()
    last.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(last.locator("details p")).to_have_text("This is easy.")
    page.get_by_role("button", name="New chat").click()
    settings(page, Tools=json.dumps(QUESTION["tools"]))
    page.get_by_label("Message. Enter sends").fill(QUESTION["messages"][0]["content"])
    page.keyboard.press("Enter")
    settle(page)
    expect(page.locator(".call strong")).to_have_text(f"Calls {QUESTION['expected']['name']}")
    expect(page.get_by_label("Result")).to_be_focused()
    page.keyboard.type("an anchor in a valley")
    page.get_by_role("button", name="Give result").click()
    settle(page)
    assert page.locator("article.assistant").count() == 2
    if FOLDER:
        page.locator("summary").first.click()
        page.screenshot(path=FOLDER / f"page-{name}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is wider than the screen"


def stopped(page: Page) -> None:
    settings(page, Tools="", Temperature="1.9")
    page.get_by_role("button", name="New chat").click()
    assert page.locator("article").count() == 0
    page.get_by_label("Message. Enter sends").fill("Tell a story. " * 20)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    settle(page)


def faults(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Tools").fill("{")
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("alert")).to_contain_text("Tools: ")
    page.get_by_label("Tools").fill("")
    page.get_by_label("Temperature").fill("-1")
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Message. Enter sends").fill("<img src=x onerror=alert(1)> **bold** `code`\n\n```\nfenced\n```")
    page.keyboard.press("Enter")
    settle(page)
    expect(page.get_by_role("status")).to_contain_text("Error: temperature")
    assert page.locator("article img").count() == 0
    assert page.locator("article.user code").all_inner_texts() == ["code", "fenced"]
    expected = f"{ADDRESS}v1/chat/completions"
    WRONG[:] = [each for each in WRONG if "status of 400" not in each]  # the console tells of the refused request
    assert page.evaluate("performance.getEntriesByType('resource').map(e => e.name)").count(expected) >= 1


def named(page: Page) -> None:
    """What can be used has a name, and is large enough for a thumb."""
    for element in page.locator("button:visible, input:visible, textarea:visible, summary:visible").all():
        name = element.evaluate("e => e.labels?.[0]?.textContent ?? e.textContent")
        assert name.strip(), element.evaluate("e => e.outerHTML")
        box = element.bounding_box()
        assert box is not None
        assert box["height"] >= 24, (name, box)


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        print(f"Chromium {browser.version}")
        for name, width, height in (("wide", 1200, 800), ("narrow", 375, 740)):
            page = opened(browser, width, height)
            for step in (partial(conversation, page, name), partial(stopped, page), partial(faults, page)):
                step()
                named(page)
                print(f"{name}: {step.func.__name__}: ran")
        browser.close()
    assert not WRONG, WRONG


if __name__ == "__main__":
    main()
