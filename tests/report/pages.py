"""What the tests of the pages share: a reader of HTML, a browser, and runs that differ from one that is there."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np

from jaxdrl.weights import files

VOID = {"meta", "img", "br", "hr", "link", "input", "circle", "line", "polyline", "path", "rect"}
WIDTHS = (375, 768, 1440)
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-quic"]
_FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Written into the page by a script that only the test adds: the window, the page, and whatever sticks out of the page without a scroll bar
# of its own.
_MEASURE = """<script>
const wide = document.documentElement.clientWidth, out = [];
for (const element of document.querySelectorAll('main *')) {
  const box = element.getBoundingClientRect();
  if (box.width && box.right > wide + 1 && !element.closest('.scroll, pre, details') && !element.closest('svg *')) out.push(element.tagName);
}
for (const text of document.querySelectorAll('svg text')) {
  const box = text.getBoundingClientRect(), svg = text.closest('svg').getBoundingClientRect();
  if (box.left < svg.left - 1 || box.right > svg.right + 1) out.push('text ' + text.textContent);
}
parent.postMessage(JSON.stringify([innerWidth, document.documentElement.scrollWidth, out]), '*');
</script>"""
# A window of a browser without a screen is at least 500 wide, a frame is not.
_FRAME = """<!doctype html><body>nothing<script>addEventListener('message', event => { document.body.textContent = event.data; });</script>
<iframe src="PAGE" width="WIDTH" height="1500" style="border:0"></iframe></body>"""


class Page(HTMLParser):
    """Collects tags that are opened and not closed, addresses that are asked for, and what pictures are called."""

    def __init__(self, html):
        super().__init__()
        self.open, self.addresses, self.alts, self.nameless = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self._look(tag, dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._look(tag, dict(attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def _look(self, tag, attributes):
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag in ("img", "svg"):
            alt = (
                attributes.get("alt")
                if tag == "img"
                else attributes.get("aria-label")
                if attributes.get("role") == "img"
                else None
            )
            (self.alts if alt and len(alt) > 20 else self.nameless).append(alt or tag)


def check(html):
    """Whole, self-contained, and every picture has words."""
    page = Page(html)
    assert page.open == [] and page.nameless == []
    assert all(address.startswith("data:") for address in page.addresses)
    assert "<script" not in html and "url(" not in html
    return page


def browser(folder, *arguments):
    """Runs headless Chromium; returns what it prints."""
    command = ["chromium", *_FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def overflow(path, folder, width):
    """(width of the window, width of the page, what sticks out) as a browser lays the page out."""
    copy, frame = folder / "measured.html", folder / "frame.html"
    copy.write_text(path.read_text().replace("</body>", f"{_MEASURE}</body>"))
    frame.write_text(_FRAME.replace("PAGE", copy.as_uri()).replace("WIDTH", str(width)))
    dumped = browser(folder, "--dump-dom", "--virtual-time-budget=5000", "--window-size=1600,1600", frame.as_uri())
    return json.loads(dumped[dumped.index("<body>") + 6 : dumped.index("</body>")])


def screenshot(path, folder, width, dark=False):
    """Grey values of the first 1500 rows."""
    from PIL import Image

    picture = folder / "page.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browser(folder, *scheme, f"--screenshot={picture}", f"--window-size={width},1500", path.as_uri())
    return np.asarray(Image.open(picture).convert("L"))


def variant(run, path, keys, shift=1.0, without=(), gates=False):
    """A folder like a run's, without weights: with other keys, distances times `shift`, darker pictures, and some stages left out."""
    path.mkdir(parents=True)
    config = json.loads((run / "config.json").read_text())
    for key, value in keys.items():
        *parents, last = key.split(".")
        tree = config
        for parent in parents:
            tree = tree[parent]
        tree[last] = value
    (path / "config.json").write_text(json.dumps(config))
    for name in ("metrics.jsonl", "machine.jsonl"):
        shutil.copy(run / name, path / name)
    for stage in ("data", "encoders", "pretrain", "discriminator", "posttrain", "longer", "evaluate", "report"):
        if stage in without:
            continue
        (path / stage).mkdir()
        result = json.loads((run / stage / "result.json").read_text())
        if stage == "evaluate":
            for values in result["spaces"].values():
                values["tuned"] *= shift
            arrays = files.load_tree(run / stage / "report_arrays.safetensors")
            arrays["grid_tuned"] = (arrays["grid_tuned"] / max(shift, 1.0)).astype(np.uint8)
            if gates:
                arrays |= {"gates_base": np.full((2, 3, 5), 0.1, np.float32), "gates_tuned": np.full((2, 3, 5), -0.2, np.float32)}
            files.save_tree(path / stage / "report_arrays.safetensors", arrays)
        (path / stage / "result.json").write_text(json.dumps(result))
    return path
