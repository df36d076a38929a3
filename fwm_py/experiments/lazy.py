"""Names of a package that need PyTorch, imported when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazily(package: str, where: dict[str, str], extra: str) -> Callable[[str], Any]:
    """A package's `__getattr__`.

    Parameters
    ----------
    package : str
        Its name.
    where : dict of str
        The module of each name, within the package.
    extra : str
        Of fwm_py, which has what they need.
    """

    def getattribute(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{package} needs PyTorch: pip install 'fwm_py[{extra}]'") from error
        return getattr(importlib.import_module(f"{package}.{where[name]}"), name)

    return getattribute
