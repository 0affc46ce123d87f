"""Pictures of every screen, for people: light, dark, a phone, without motion.

python -m tests.ui.shots [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.support.browser import NoBrowser, browser
from tests.support.page import ask, assert_shows, open_lab
from tests.ui.fake import Fake, run_of, serving

LOOKS: dict[str, dict[str, Any]] = {
    "light": {}, "dark": {"color_scheme": "dark"}, "calm": {"reduced_motion": "reduce"},
    "phone": {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2},
}  # fmt: skip


def lab(page: Any, fake: Fake, path: Path) -> None:
    """The Lab: empty, in the middle of a run with a position chosen."""
    fake.script = run_of()
    fake.features = ("stream", "edits")
    open_lab(page)
    page.locator(".examples button").first.wait_for()
    page.screenshot(path=path.with_name(f"{path.name}-empty.png"))
    ask(page, "Tell me a short story about a cat.")
    assert_shows(page, "output.pass", "pass 12 of 12")
    for _ in range(5):
        page.get_by_role("button", name="One pass back").click()
    page.locator("[role=option]").nth(40).click()
    page.screenshot(path=path.with_name(f"{path.name}-run.png"), full_page=True)


SCREENS = {"lab": lab}


def main() -> int:
    """Take them all; 2 where there is no browser."""
    folder = Path(sys.argv[1] if sys.argv[1:] else "runs/ui")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with serving() as fake, browser() as found:
            for look, settings in LOOKS.items():
                for name, take in SCREENS.items():
                    fake.reset()
                    size = {"viewport": {"width": 1280, "height": 900}} | settings
                    context = found.new_context(base_url=fake.url, **size)
                    take(context.new_page(), fake, folder / f"{name}-{look}")
                    context.close()
    except NoBrowser as error:
        print(error, file=sys.stderr)
        return 2
    print(f"pictures are in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
