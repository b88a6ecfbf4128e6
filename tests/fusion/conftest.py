"""One thread: these networks are a few channels wide, and threads that wait for each other cost more than they do."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)
