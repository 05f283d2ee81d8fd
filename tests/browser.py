"""How a page looks in a real browser: what is wider than the window, and what can hardly be read."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ALONE = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
_DARK = "--blink-settings=preferredColorScheme=0"

# The page lies in a frame of the window's width, whose document this script can read.
_HARNESS = """<!doctype html><meta charset="utf-8"><title>look</title>
<iframe id="frame" style="border:0;width:WIDTHpx;height:900px" srcdoc="PAGE"></iframe><pre id="found"></pre>
<script>
const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
// color-mix() is told as color(srgb r g b / a), with values from 0 to 1.
const parsed = text => { const n = numbers(text), unit = text.startsWith("color(") ? 255 : 1;
  return [n[0] * unit, n[1] * unit, n[2] * unit, n.length > 3 ? n[3] : 1]; };
const over = (top, under) => [0, 1, 2].map(k => top[k] * top[3] + under[k] * (1 - top[3])).concat(1);
const light = c => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 :
  ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05); };
function behind(element, view) {
  if (!element) return [255, 255, 255, 1];
  const own = view.getComputedStyle(element).backgroundColor;
  const color = own === "transparent" ? [0, 0, 0, 0] : parsed(own);
  return color[3] >= 1 ? color : over(color, behind(element.parentElement, view));
}
function scrolls(element, view) {
  for (; element; element = element.parentElement)
    if (["auto", "scroll", "hidden"].includes(view.getComputedStyle(element).overflowX) &&
        element.tagName !== "BODY" && element.tagName !== "HTML") return true;
  return false;
}
document.getElementById("frame").onload = event => {
  const page = event.target.contentDocument, view = event.target.contentWindow;
  page.querySelectorAll("details").forEach(one => { one.open = true; });
  const wide = [], faint = [];
  for (const one of page.body.querySelectorAll("*")) {
    const box = one.getBoundingClientRect();
    if (box.width && box.right > WIDTH + 1 && !scrolls(one.parentElement, view) && !one.closest("svg"))
      wide.push(`${one.tagName} ${one.className} to ${Math.round(box.right)}: ${one.textContent.trim().slice(0, 60)}`);
  }
  const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), parent = texts.currentNode.parentElement;
    if (!text || ["STYLE", "SCRIPT", "TITLE"].includes(parent.tagName) || !parent.getClientRects().length) continue;
    const style = view.getComputedStyle(parent), inside = parent.closest("svg");
    const color = parsed(inside && style.fill !== "none" ? style.fill : style.color), under = behind(parent, view);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = contrast(over(color, under), under);
    if (ratio < (large ? 3 : 4.5)) faint.push(`${ratio.toFixed(2)}: ${text.slice(0, 60)}`);
  }
  const told = { wide, faint, scroll: page.documentElement.scrollWidth,
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches, texts: page.body.innerText.length };
  document.getElementById("found").textContent = "<<" + JSON.stringify(told) + ">>";
};
</script>"""


@dataclass(frozen=True)
class Look:
    """What a browser makes of a page.

    Attributes:
        wide: what goes beyond the window's right edge and lies in nothing that scrolls.
        faint: texts with less contrast than WCAG 2.1 asks for (AA: 4.5, of large text 3), with their ratio.
        scroll: width of the whole page in pixels; more than the window's means that it scrolls sideways.
        dark: the dark colours were asked for.
        texts: number of characters that are shown.
    """

    wide: list[str]
    faint: list[str]
    scroll: int
    dark: bool
    texts: int


def browser() -> str | None:
    """The path of a Chromium, or that in $DIRECTDET_BROWSER; None if there is none."""
    given = os.environ.get("DIRECTDET_BROWSER")
    return given or next(filter(None, map(shutil.which, _NAMES)), None)


def look(program: str, page: str, folder: Path, width: int, dark: bool) -> Look:
    """Load the page in a window of `width` pixels; `folder` is for the browser's files."""
    folder.mkdir(parents=True, exist_ok=True)
    harness = folder / "harness.html"
    content = _HARNESS.replace("WIDTH", str(width)).replace("PAGE", html.escape(page, quote=True))
    harness.write_text(content, encoding="utf-8")
    window = f"--window-size={width + 40},1000"
    command = [program, *_ALONE, *([_DARK] if dark else []), f"--user-data-dir={folder / 'profile'}", window]
    command += ["--virtual-time-budget=10000", "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="found">&lt;&lt;(.*?)&gt;&gt;</pre>', done.stdout, re.DOTALL)
    assert found, (done.returncode, done.stderr[-2000:])
    return Look(**json.loads(html.unescape(found[1])))
