"""Ray, reached or started for one run, and kept to this machine and this run."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from harness.errors import HarnessError


def _quiet() -> None:
    """Set in the environment, before Ray starts, what keeps it to this machine and this run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of ours calls home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@contextlib.contextmanager
def connected(address: str | None, **resources: int) -> Iterator[Any]:
    """Ray: the cluster at ``address``, or one of this machine (of those ``resources``, say
    ``num_cpus``) that is started for this run, unless the program has connected itself. Raises
    ``HarnessError`` where there is none."""
    _quiet()
    try:
        import ray
    except ImportError:
        raise HarnessError("--engine ray needs Ray: pip install 'vit-harness[cluster]'") from None
    ours = not ray.is_initialized()
    if ours:
        where: dict[str, Any] = {"address": address or "local", **resources}
        if address is None:
            where["include_dashboard"] = False
        try:
            _reach(address)
            with _own_signals():
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            if address is None:
                raise HarnessError(f"--engine ray: Ray cannot be started here ({said})") from None
            raise HarnessError(
                f"--address {address}: no Ray there ({said}); "
                "`ray start --head` starts one, and without --address this machine is used"
            ) from None
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _reach(address: str | None) -> None:
    """Raises ``OSError`` where nobody listens at ``HOST:PORT``: Ray would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host, int(port)), timeout=10):
            pass


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """SIGTERM ends this process afterwards as it did before: Ray's own answer to it prints where
    in Ray's code the driver was, and makes an exit status of it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
