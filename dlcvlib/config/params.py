"""For notebooks that do not use `dlcvlib.report.notebook.begin` yet; goes with the last of them."""

import os
from pathlib import Path
from types import NoneType
from typing import Any

from dlcvlib.config import paths
from dlcvlib.config.schema import (  # noqa: F401
    DANNParams,
    GANParams,
    Parameters,
    PixelDAParams,
    VAEParams,
)


def _from_notebook(cls: type[Parameters], namespace: dict[str, Any]) -> Parameters:
    seen, plain = "_dlcv_parameters_read", (str, int, float, list, tuple, dict, NoneType)
    values = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and isinstance(value, plain) and name not in ("In", "Out")
        if name in cls.model_fields or not namespace.get(seen)
    }
    params = cls.parse(values, "parameters of this notebook")
    namespace[seen] = True
    if Path.cwd() == paths.NOTEBOOKS.resolve():
        os.chdir(paths.ROOT)
    return params


Parameters.from_notebook = classmethod(_from_notebook)
