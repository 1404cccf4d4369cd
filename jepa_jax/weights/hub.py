"""Models by name from the Hugging Face hub, through its own library and its cache."""

import os
import re

from jepa_jax.weights.bundle import WeightsError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_PATTERNS = ("*.json", "*.safetensors")


def is_name(path):
    """Tell whether a path that does not exist could be the name of a model, such as facebook/vjepa2-vitl-fpc64-256."""
    # With a folder of that name here, a path inside it was meant.
    return _NAME.fullmatch(path) is not None and not path.startswith(".") and not os.path.isdir(path.split("/")[0])


def fetch(name):
    """Return the local folder of a model, downloaded on first use.

    Raises:
      WeightsError: if the library is missing, or the model cannot be had.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise WeightsError(f"{name} is no path here; to download it by name, pip install huggingface_hub") from error
    try:
        return huggingface_hub.snapshot_download(name, allow_patterns=_PATTERNS)
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(f"{name} is no path here, and no model could be downloaded by that name: {error}") from error
