"""A real headless Chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def _absent(reason: str) -> None:
    if os.environ.get("VIDGEN_REQUIRE_CHROMIUM") == "1":
        pytest.fail(f"VIDGEN_REQUIRE_CHROMIUM=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A playwright browser; skipped, saying so, where there is none (a failure with VIDGEN_REQUIRE_CHROMIUM=1)."""
    executable = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if executable is None:
        _absent(f"no Chromium on PATH ({', '.join(_NAMES)})")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _absent("playwright is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_ARGUMENTS))
        yield browser
        browser.close()
