"""Ctrl-C, and the SIGTERM that schedulers send: finish the step, save, stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_on_signals(
    stop: Callable[[], None],
    *,
    speak: bool = True,
    words: str = "Stopping after this step; Ctrl-C again quits without saving.",
) -> Iterator[None]:
    """Calls ``stop`` on the first SIGINT or SIGTERM; a second one raises KeyboardInterrupt where the program stands.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        stop: must only set a flag: it is called between two bytecodes of whatever is running.
        speak: say on standard error that the signal was heard.
        words: what is said.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True
        stop()
        if speak:
            # not print(): the signal may have come in the middle of a write to the same stream
            os.write(2, f"\n{words}\n".encode())

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
