"""What the command line makes of its arguments: numbers out of text, files that may be written, a device that can be used."""

import json
import math
import os
from typing import Any

from numbanet.backend.cuda import driver
from numbanet.io import safetensors, validation


def layers(text: str) -> tuple[int, ...]:
    """Units of the hidden layers out of "30,10" or "none"."""
    if text.strip().lower() in ("", "none"):
        return ()
    try:
        units = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f'--layers must be numbers of units such as "30,10", or "none", got {text!r}'
        ) from None
    return tuple(validation.check_int(n, "every number in --layers") for n in units)


def batch_size(text: str) -> int | None:
    """Samples per step, None for "all"."""
    if text.strip().lower() == "all":
        return None
    try:
        return validation.check_int(int(text), "--batch-size")
    except ValueError:
        raise ValueError(
            f'--batch-size must be a whole number of at least 1, or "all", got {text!r}'
        ) from None


def check_writable(path: str, force: bool, option: str) -> None:
    """ValueError if the file exists or has no folder: found out before the training, not after it."""
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{option} {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise ValueError(f"{option} {path}: this is a folder; give a file's name")
    if os.path.exists(path) and not force:
        raise ValueError(
            f"{path} exists; choose another name with {option}, or replace it with --force"
        )
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{option} {path}: the folder {folder} cannot be written to")


def check_device(device: str) -> str:
    """The device; CudaError where it is "cuda" and no GPU can be used: found out before data are read."""
    if device == "cuda":
        driver.require_gpu()
    return device


def gpu_description() -> str:
    """The card's name, or in brackets why there is none that can be used."""
    try:
        driver.require_gpu()
    except driver.CudaError as error:
        return f"none ({error})"
    return driver.device_name()


def write_text(path: str, text: str) -> None:
    """Write a file, whole or not at all."""
    safetensors.write_atomic(path, [text.encode()])


def write_figures(path: str, record: dict[str, Any]) -> None:
    """Write figures as JSON."""
    write_text(path, json.dumps(_finite(record), indent=1) + "\n")


def _finite(value: Any) -> Any:
    """The value with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
