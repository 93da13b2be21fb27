"""A plugin for pytest (`-p tests.support.uncompiled`): runs the tests with the sources instead of compiled modules.

It stops the clock that measures turns of the core, because the bound of 5 ms holds only for compiled modules without
coverage.
"""

from __future__ import annotations


def pytest_collection() -> None:
    """Refuse to measure compiled modules, which have no lines to cover."""
    # Not earlier: modules imported before pytest-cov has begun count as not covered.
    import kdbusfs.core.domain
    from tests.support import fake_host

    assert kdbusfs.core.domain.__file__.endswith(".py"), kdbusfs.core.domain.__file__
    fake_host.thread_time_ns = lambda: 0  # type: ignore[attr-defined]
