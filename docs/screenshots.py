# /// script
# dependencies = ["playwright>=1.50", "pillow>=11"]
# ///
"""Take the pictures docs/images/ui_*.jpg of the UI, from a running `dagster dev` after the demo.

uv run docs/screenshots.py --url http://127.0.0.1:3000 --browser /usr/bin/chromium
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).with_name("images")
SIZE = {"width": 1360, "height": 820}
MAX_BYTES = 150_000
PATIENCE = 60_000
"""Milliseconds."""


def lineage(page: Page, url: str) -> None:
    """The whole lineage, all groups open."""
    groups = ("inputs", "processed", "base", "texture", "training", "evaluation", "release")
    page.set_viewport_size({"width": 2100, "height": 1500})
    page.goto(f"{url}/asset-groups?expanded={','.join(f'global%40global%3A{group}' for group in groups)}")
    page.get_by_text("stage2_checkpoint").first.wait_for()
    page.wait_for_timeout(5000)


def thumbnails(page: Page, url: str) -> None:
    """The contact sheet of a shard's bald images."""
    page.goto(f"{url}/assets/bald_images")
    page.get_by_text("[Show Markdown]").first.click()
    page.wait_for_timeout(3000)


def partitions(page: Page, url: str) -> None:
    """Which shards are done."""
    page.goto(f"{url}/assets/bald_images?view=partitions")
    page.get_by_text("shard_0000").first.click()
    page.wait_for_timeout(8000)


def plots(page: Page, url: str) -> None:
    """The numbers of the evaluation over time."""
    page.goto(f"{url}/assets/eval_report")
    page.get_by_role("button", name="Plots").or_(page.get_by_text("Plots", exact=True)).first.click()
    page.wait_for_timeout(5000)


def losses(page: Page, url: str) -> None:
    """The curve of a training's losses."""
    page.goto(f"{url}/assets/stage2_checkpoint")
    page.get_by_role("row").filter(has_text="losses").get_by_text("[Show Markdown]").first.click()
    page.wait_for_timeout(3000)


def checks(page: Page, url: str) -> None:
    """The catalog's checks."""
    page.goto(f"{url}/assets/catalog?view=checks")
    page.get_by_text("no_near_duplic").first.click()
    page.wait_for_timeout(5000)


VIEWS: dict[str, Callable[[Page, str], None]] = {
    view.__name__: view for view in (lineage, thumbnails, partitions, plots, losses, checks)
}


def shrunk(png: bytes) -> bytes:
    """A JPEG of at most MAX_BYTES."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((1600, 1600))
    for quality in range(88, 40, -8):
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=quality, optimize=True)
        if out.tell() <= MAX_BYTES:
            break
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("views", nargs="*", default=list(VIEWS), help=f"of {', '.join(VIEWS)}")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=options.browser, args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        for name in options.views:
            page.set_viewport_size(SIZE)
            VIEWS[name](page, options.url)
            dialog = page.get_by_role("dialog")
            path = options.out / f"ui_{name}.jpg"
            path.write_bytes(shrunk(dialog.screenshot() if dialog.count() else page.screenshot()))
            print(path, path.stat().st_size)
        browser.close()


if __name__ == "__main__":
    main()
