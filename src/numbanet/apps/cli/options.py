"""Check and convert the options of the command line: integers, files and devices."""

import csv
import io
import json
import math
import os
from typing import Any

from numbanet.backend.cuda import driver
from numbanet.io import safetensors, validation


def parse_layers(text: str) -> tuple[int, ...]:
    """Units of the hidden layers from "30,10" or "none"."""
    if text.strip().lower() in ("", "none"):
        return ()
    try:
        units = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f'--layers must be numbers of units such as "30,10", or "none", got {text!r}'
        ) from None
    return tuple(validation.check_int(n, "every number in --layers") for n in units)


def parse_batch_size(text: str) -> int | None:
    """Samples per step, None for "all"."""
    if text.strip().lower() == "all":
        return None
    try:
        return validation.check_int(int(text), "--batch-size")
    except ValueError:
        raise ValueError(
            f'--batch-size must be an integer of at least 1, or "all", got {text!r}'
        ) from None


CSV_OPTIONS = ("target", "columns", "delimiter", "decimal", "missing")
DELIMITERS = {"tab": "\t", "space": " "}
"""Delimiters that are written as words."""


def take_csv(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options for a CSV file out of those given, as `datasets.read_csv` has them.

    ValueError for --target 0 or --columns 0: columns are counted from 1, as in messages.
    """
    taken = {name: given.pop(name, None) for name in CSV_OPTIONS}
    chosen = {name: value for name, value in taken.items() if value is not None}
    if "delimiter" in chosen:
        chosen["delimiter"] = DELIMITERS.get(chosen["delimiter"], chosen["delimiter"])
    if "target" in chosen:
        chosen["target"] = _column(chosen["target"], "--target")
    if "columns" in chosen:
        names = chosen["columns"].split(",")
        chosen["columns"] = [_column(name.strip(), "--columns") for name in names]
    return chosen


def _column(text: str, option: str) -> str | int:
    """A column by its name, or by its index from 0 where a number from 1 is given."""
    if not text.isdigit():
        return text
    return validation.check_int(int(text), f"{option} as a number") - 1


def given_csv(chosen: dict[str, Any]) -> list[tuple[str, str]]:
    """The options for a CSV file as they are written on the command line."""
    words = {character: word for word, character in DELIMITERS.items()}

    def written(value) -> str:
        if isinstance(value, list):
            return ",".join(map(written, value))
        return str(value + 1) if isinstance(value, int) else words.get(value, value)

    return [(f"--{name}", written(value)) for name, value in chosen.items()]


def csv_text(rows: list[list[str]]) -> str:
    """Rows of cells as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def check_writable(path: str, force: bool, option: str, reads: tuple[str, ...] = ()) -> None:
    """ValueError if the file exists or has no folder; called before a long training, not after.

    reads   files that the command reads, which it never replaces
    """
    for read in reads:
        if os.path.exists(path) and os.path.exists(read) and os.path.samefile(path, read):
            raise ValueError(f"{option} {path}: this file is read; give another name")
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
    """The device; CudaError where it is "cuda" and no GPU can be used."""
    if device == "cuda":
        driver.require_gpu()
    return device


def gpu_description() -> str:
    """The name of the GPU, or in brackets why none can be used."""
    try:
        driver.require_gpu()
    except driver.CudaError as error:
        return f"none ({error})"
    return driver.device_name()


def write_text(path: str, text: str) -> None:
    """Write a file, completely or not at all."""
    safetensors.write_atomic(path, [text.encode()])


def write_json(path: str, record: dict[str, Any]) -> None:
    """Write a record as JSON."""
    write_text(path, json.dumps(_finite(record), indent=1) + "\n")


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
