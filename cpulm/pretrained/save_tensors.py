"""Writes a safetensors file; what the disk refuses is an OSError, as of any other file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file


def save_tensors(
    tensors: Mapping[str, npt.NDArray[np.float32]], path: Path, metadata: Mapping[str, str]
) -> None:
    """Write ``tensors`` directly to ``path``; after an error a part of the file may be there.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        code = int(found[1])
        said = (0, str(error), str(path), code) if os.name == "nt" else (code, os.strerror(code), str(path))
        raise OSError(*said) from error
