"""One rule for progress bars: shown on a terminal, silent in a pipe, forced or forbidden by the caller."""

import importlib.util
import sys
from typing import Any, Protocol

from vidgen.extras import require


class Bar(Protocol):
    """The part of ``tqdm.tqdm`` that vidgen uses."""

    def update(self, n: float = 1) -> Any: ...

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> Any: ...

    def close(self) -> Any: ...


class _Silent:
    def update(self, n: float = 1) -> None:
        pass

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        pass

    def close(self) -> None:
        pass


def progress_bar(
    total: float,
    description: str,
    *,
    show: bool | None = None,
    initial: int = 0,
    unit: str = "it",
    bar_format: str | None = None,
) -> Bar:
    """A progress bar on standard error.

    Args:
        total: number of steps until the bar is full.
        description: the words in front of it.
        show: True draws it and needs tqdm; False draws nothing; None draws it if standard error is a terminal and
            tqdm is installed.
        initial: steps already done.
        unit: what is counted.
        bar_format: tqdm's; its own if not given.
    """
    if show is None:
        show = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    if not show:
        return _Silent()
    tqdm = require("tqdm", extra="train").tqdm
    options: dict[str, Any] = {"initial": initial, "unit": unit, "bar_format": bar_format}
    return tqdm(total=total, desc=description, dynamic_ncols=True, leave=False, **options)
