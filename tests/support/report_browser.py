"""A headless Chromium for the tests of the report, and what they ask of a page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page

MARKS = """() => Object.fromEntries([...document.querySelectorAll('[data-chart]')].map((element) => [
  element.dataset.chart,
  [...element.querySelectorAll('.role-mark path, .role-mark text, .role-mark line')].filter((mark) => {
    const box = mark.getBoundingClientRect();
    return box.width + box.height > 0 && Number(getComputedStyle(mark).opacity) > 0;
  }).length]))"""

# Text whose contrast with what lies behind it is below 4.5. Chart text lies on the surface of its section.
FAINT = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || /^(SCRIPT|STYLE|OPTION)$/.test(element.tagName)) continue;
    const style = getComputedStyle(element), inSvg = element instanceof SVGElement;
    if (!element.getClientRects().length || style.visibility === 'hidden') continue;
    if (inSvg && (style.fill === 'none' || Number(style.opacity) === 0)) continue;
    const colours = [parse(inSvg ? style.fill : style.color), behind(element)];
    const [a, b] = colours.map(luminance).sort((x, y) => x - y);
    const ratio = (b + 0.05) / (a + 0.05);
    seen += 1;
    const text = walker.currentNode.data.trim().slice(0, 30);
    if (ratio < 4.5) found.push(`${element.tagName} "${text}" ${ratio.toFixed(2)}`);
  }
  return { seen, found };
}"""


@dataclass
class Heard:
    """What a page said and asked for while it was open."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(
    browser: Browser, url: str, width: int = 1280, dark: bool = False, draw: bool = True
) -> Iterator[tuple[Page, Heard]]:
    """Opens a report, all of its charts drawn."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page, heard = context.new_page(), Heard()
    page.on("console", lambda message: heard.messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: heard.messages.append(f"error: {error}"))
    page.on("request", lambda request: heard.requests.append(request.url))
    try:
        page.goto(url)
        page.evaluate("() => esperReport.ready")
        if draw:
            draw_all(page)
        yield page, heard
    finally:
        context.close()


def draw_all(page: Page) -> None:
    """Waits until every chart has been drawn."""
    page.evaluate("() => esperReport.drawAll()")


def marks(page: Page) -> dict[str, int]:
    """Returns how many visible marks each chart has."""
    found: dict[str, Any] = page.evaluate(MARKS)
    return {name: int(count) for name, count in found.items()}


def chromium() -> str | None:
    """Returns where Chromium is, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
