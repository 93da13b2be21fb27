"""Memory of the models goes back to the system: later tests fork this process, which takes as long as it is large."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _returned_memory() -> Iterator[None]:
    """Hypothesis leaves up to 400 MiB in cycles after a state machine."""
    yield
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
