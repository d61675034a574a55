"""Keep named arrays and strings in one file, in the safetensors layout.

    8 bytes     length of the header, little-endian
    header      JSON: name → dtype, shape, data_offsets; "__metadata__" → strings; padded with
                spaces to a multiple of 8
    data        the arrays, C order, little-endian, one after the other without gaps

Other programs read the file with the safetensors package. Nothing in it is ever executed.

The metadata holds under "sha256" the SHA-256 of the header (without the checksum itself) and the
data. The header has a single canonical form, so that every changed byte of the file is detected.

Source   the safetensors format, https://huggingface.co/docs/safetensors
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import stat
import time
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors package
METADATA = "__metadata__"
CHECKSUM = "sha256"
DTYPES = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
ABANDONED_SECONDS = 86_400.0
"""Age of a temporary file of which nobody can tell whether its process lives, to be removed."""
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}

Path = str | os.PathLike[str]


def write(path: Path | bytes, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write the arrays and the metadata to a file, completely or not at all.

    The bytes go to a temporary file beside the target, which is then renamed to the target. A
    failure before that leaves the old file unchanged and no temporary file; what a killed process
    left is removed by the next write of the same file. An existing file keeps its mode.

    Arrays   float32 float64 int64 int32 uint8 bool, any shape; not changed
    Raises   ValueError for another dtype, a reserved name, a value that is no string; OSError from
             the disk
    """
    path = os.fsdecode(path)
    header: dict[str, Any] = {METADATA: _checked_metadata(path, metadata)}
    arrays, end = [], 0
    for name, value in tensors.items():
        array = np.asarray(value)
        code = NAMES.get(array.dtype.newbyteorder("<"))
        if not isinstance(name, str) or name == METADATA:
            raise ValueError(f"{path}: a tensor cannot be named {name!r}")
        if code is None:
            known = " ".join(DTYPES)
            raise ValueError(
                f"{path}: tensor {name!r} is {array.dtype}; convert it to one of {known}"
            )
        flat = np.asarray(array, DTYPES[code], order="C").reshape(-1).view(np.uint8)
        header[name] = {
            "dtype": code,
            "shape": list(array.shape),
            "data_offsets": [end, end + flat.size],
        }
        arrays.append(flat)
        end += flat.size
    header[METADATA][CHECKSUM] = _checksum(header, arrays)
    text = _padded(header)
    if len(text) > HEADER_LIMIT:
        raise ValueError(f"{path}: the header needs {len(text)} bytes, the limit is {HEADER_LIMIT}")
    write_atomic(path, [len(text).to_bytes(8, "little"), text, *arrays])


def read(
    path: Path | bytes, *, foreign: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Verify the checksum of a file, and read its arrays and metadata.

    Returns  arrays in the order of their data, new, writable, native byte order; metadata without
             "sha256"
    foreign  accept a safetensors file without a checksum; a checksum is verified in any case
    Raises   ValueError that names the path, what is wrong and where; OSError from the disk
    """
    path = os.fsdecode(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise ValueError(f"{path}: the header's length needs 8 bytes, the file has {size}")
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8 and file.read(1) not in (b"{", b""):
            raise ValueError(
                f"{path}: not a file of numbanet's; numbanet train and net.save write such files"
            )
        if length > HEADER_LIMIT:
            raise ValueError(
                f"{path}: a header of {length} bytes is announced, the limit is {HEADER_LIMIT}"
            )
        if length > size - 8:
            raise ValueError(
                f"{path}: a header of {length} bytes is announced, {size - 8} bytes follow"
            )
        text = file.read(length)
        data = file.read()
    header = _parsed(path, text)
    metadata = header.setdefault(METADATA, {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError(f"{path}: {METADATA} must map names to strings")
    entries = _checked_entries(path, header, len(data))
    if CHECKSUM in metadata:
        if text != _padded(header):
            raise ValueError(
                f"{path}: the header is not spelled as numbanet spells it; the file was changed"
            )
        expected, found = metadata.pop(CHECKSUM), _checksum(header, [data])
        if found != expected:
            raise ValueError(
                f"{path}: wrong checksum: sha256 is {found}, the header says {expected}"
            )
    elif not foreign:
        raise ValueError(
            f"{path}: not written by numbanet (no sha256); pass foreign=True to accept it"
        )
    return {name: _array(path, name, entry, data) for name, entry in entries}, metadata


def _checked_metadata(path: Path, metadata: dict[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"{path}: metadata must be strings, got {key!r}: {value!r}")
    if CHECKSUM in metadata:
        raise ValueError(f"{path}: the metadata key {CHECKSUM!r} is reserved for the checksum")
    return dict(metadata)


def _canonical_json(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _padded(header: dict[str, Any]) -> bytes:
    text = _canonical_json(header)
    return text + b" " * (-len(text) % 8)


def _checksum(header: dict[str, Any], parts: list[Any]) -> str:
    rest = {key: value for key, value in header[METADATA].items() if key != CHECKSUM}
    digest = hashlib.sha256(_canonical_json({**header, METADATA: rest}))
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    duplicates: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            duplicates.extend(key for key in found if keys.count(key) > 1)
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
        _canonical_json(header)  # a lone surrogate has no bytes
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the header is not JSON: {error}") from None
    if duplicates:
        raise ValueError(f"{path}: the header holds the key {duplicates[0]!r} twice")
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header must be a JSON object, got {type(header).__name__}")
    return header


def _checked_entries(
    path: Path, header: dict[str, Any], size: int
) -> list[tuple[str, dict[str, Any]]]:
    """Return the tensors in the order of their data, or raise: they must fill the data exactly."""
    entries = [(name, entry) for name, entry in header.items() if name != METADATA]
    for name, entry in entries:
        where = f"{path}: tensor {name!r}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{where} must have dtype, shape and data_offsets, and nothing else")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{where}: unknown dtype {dtype!r}, known are {' '.join(DTYPES)}")
        if not _is_nonnegative_ints(shape):
            raise ValueError(f"{where}: the shape must be a list of numbers ≥ 0, got {shape!r}")
        if not _is_nonnegative_ints(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ValueError(f"{where}: data_offsets must be [begin, end], got {offsets!r}")
        needed, given = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize, offsets[1] - offsets[0]
        if needed != given:
            raise ValueError(
                f"{where}: {dtype} {shape} needs {needed} bytes, data_offsets give {given}"
            )
    entries.sort(key=lambda item: item[1]["data_offsets"])
    end = 0
    for name, entry in entries:
        begin, after = entry["data_offsets"]
        if begin != end:
            what = "overlaps the one before" if begin < end else "leaves a hole before it"
            raise ValueError(
                f"{path}: tensor {name!r} {what}: it begins at {begin}, expected {end}"
            )
        if after > size:
            raise ValueError(
                f"{path}: tensor {name!r} ends at byte {after} of the data, which has {size}"
            )
        end = after
    if end != size:
        raise ValueError(f"{path}: {size - end} trailing bytes after byte {end} of the data")
    return entries


def _is_nonnegative_ints(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _array(path: Path, name: str, entry: dict[str, Any], data: bytes) -> np.ndarray:
    begin, end = entry["data_offsets"]
    dtype = np.dtype(DTYPES[entry["dtype"]])
    flat = np.frombuffer(data, np.uint8)[begin:end]
    if dtype == np.bool_ and flat.max(initial=0) > 1:
        raise ValueError(f"{path}: tensor {name!r} is BOOL, but holds the byte {flat.max()}")
    try:  # The copy gives aligned memory of its own, whatever the offset.
        return (
            flat.copy()
            .view(dtype)
            .astype(dtype.newbyteorder("="), copy=False)
            .reshape(entry["shape"])
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: tensor {name!r}: shape {entry['shape']} is impossible: {error}"
        ) from None


def write_atomic(path: Path | bytes, parts: list[Any]) -> None:
    """Write the parts to a temporary file and rename it to the path."""
    path = os.fsdecode(path)
    target = os.path.realpath(path)  # A link stays a link; the file that it points to is replaced.
    if os.path.islink(target):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    folder = os.path.dirname(target)
    mode = os.stat(target).st_mode if os.path.exists(target) else None
    if mode is not None and not stat.S_ISREG(mode):
        raise ValueError(f"{path}: exists and is not an ordinary file; choose another name")
    prefix = f".numbanet-{hashlib.sha256(os.path.basename(target).encode()).hexdigest()[:16]}-"
    _remove_abandoned(folder, prefix)
    file = _create_temporary(os.path.join(folder, f"{prefix}{_host()}-"))
    try:
        with file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            if mode is not None:
                os.chmod(file.name, stat.S_IMODE(mode))
            if fcntl is not None:  # The lock is held until the file has its name.
                os.replace(file.name, target)
        if fcntl is None:  # Windows does not rename an open file.
            os.replace(file.name, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.name)
        raise
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:  # Some network file systems cannot do this for a folder.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def _host() -> str:
    """This machine's name, as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]", "", platform.node())[:64]


def _create_temporary(prefix: str) -> IO[bytes]:
    """Open a new file and lock it, so that others see that its process lives."""
    while True:
        file = open(f"{prefix}{secrets.token_hex(8)}.tmp", "xb")  # noqa: SIM115
        if fcntl is not None:
            with contextlib.suppress(OSError):  # Some file systems have no locks.
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):  # Nobody took it for abandoned before it was locked.
            return file
        file.close()


def _remove_abandoned(folder: str, prefix: str) -> None:
    """Remove the temporary files of processes that were killed.

    On this machine a lock tells whether the process lives. Without locks, and for files of other
    machines on a network drive, whose locks may not be seen here, the age decides.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    ours = entry.name.startswith(f"{prefix}{_host()}-")
                    _remove_if_abandoned(entry, ours and fcntl is not None)


def _remove_if_abandoned(entry: os.DirEntry[str], lockable: bool) -> None:
    """Remove a temporary file whose lock is free, or one that is old if it cannot be locked."""
    old = time.time() - entry.stat().st_mtime > ABANDONED_SECONDS
    if not lockable:
        if old:
            os.unlink(entry.path)
        return
    with open(entry.path, "rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            if not old:
                return
        os.unlink(entry.path)
