"""The flag `--dask`: where commands run what they would run here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fwm_py.checks import shown
from fwm_py.cli.failure import Failure

if TYPE_CHECKING:
    from distributed import Client


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Client | None]:
    """The Dask cluster at an address or of a scheduler file, None without either."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise Failure(2, "--dask: got an address, expected Dask to be installed: pip install 'fwm_py[dask]'") from None
    try:
        client = Client(scheduler_file=address) if Path(address).is_file() else Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise Failure(
            2,
            f"--dask: got {shown(address)}, expected the address or the file of a running scheduler "
            f"({' '.join(str(error).split())})",
        ) from None
    with client:
        yield client
