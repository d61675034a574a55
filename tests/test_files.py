"""The container: what is written comes back, and what was damaged is refused."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from numbanet.io import safetensors as files

DTYPES = ["float32", "float64", "int64", "int32", "uint8", "bool"]
SMALL = {"w": np.array([[1.5, -2.0, 3.25]], np.float32), "b": np.array([True, False])}
SOURCES = str(Path(files.__file__).parents[2])
METADATA = {"kind": "Sequential", "größe": "3 × 1"}


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)
        assert (
            found[name].flags.writeable and found[name].flags.aligned and found[name].dtype.isnative
        )


def small_bytes(folder):
    path = folder / "small"
    files.write(path, SMALL, METADATA)
    return path, path.read_bytes()


def container(header, data=b"", length=None):
    """Return the bytes of a safetensors file without a checksum."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="U8", shape=(2,), offsets=(0, 2)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
arrays = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(
    tensors=st.dictionaries(words.filter(lambda name: name != "__metadata__"), arrays, max_size=4),
    metadata=st.dictionaries(words.filter(lambda key: key != "sha256"), words, max_size=3),
)
def test_what_is_written_comes_back(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "any"
    files.write(path, tensors, metadata)
    found, strings = files.read(path)
    # Arrays of no bytes have the same offset, so their order is free.
    assert sorted(found) == sorted(tensors)
    same(found, {name: tensors[name] for name in found})
    assert strings == metadata


def test_order_strides_and_byte_order_do_not_matter(tmp_path):
    grid = np.arange(12.0).reshape(3, 4)
    tensors = {"z": grid.T, "a": grid[::2, ::-1].astype(">f8"), "scalar": np.array(7, ">i4")}
    files.write(tmp_path / "f", tensors, {})
    same(files.read(tmp_path / "f")[0], tensors)


def test_the_data_begin_at_a_multiple_of_eight(tmp_path):
    for size in range(9):
        files.write(tmp_path / "f", SMALL, {"k": "x" * size})
        assert int.from_bytes((tmp_path / "f").read_bytes()[:8], "little") % 8 == 0


def test_the_safetensors_package_reads_our_files(tmp_path):
    theirs = pytest.importorskip("safetensors.numpy")
    safetensors = pytest.importorskip("safetensors")
    rng = np.random.default_rng(3)
    tensors = {dtype: rng.normal(size=(3, 2)).astype(dtype) for dtype in DTYPES}
    tensors |= {"scalar": np.array(2.5), "nothing": np.zeros((0, 3), np.float32)}
    files.write(tmp_path / "f", tensors, METADATA)
    found = theirs.load_file(tmp_path / "f")
    assert sorted(found) == sorted(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    with safetensors.safe_open(tmp_path / "f", "np") as file:
        assert {key: file.metadata()[key] for key in METADATA} == METADATA


def test_their_files_are_accepted_only_on_request(tmp_path):
    theirs = pytest.importorskip("safetensors.numpy")
    theirs.save_file(SMALL, tmp_path / "f", {"by": "others"})
    with pytest.raises(ValueError, match=r"not written by numbanet .*foreign=True"):
        files.read(tmp_path / "f")
    found, metadata = files.read(tmp_path / "f", foreign=True)
    same({name: found[name] for name in SMALL}, SMALL)
    assert metadata == {"by": "others"}


@pytest.mark.parametrize("foreign", [False, True])
def test_every_flipped_bit_is_refused(tmp_path, foreign):
    path, content = small_bytes(tmp_path)
    checksum = range(content.index(b"sha256"), content.index(b"sha256") + 6)
    for place in range(len(content)):
        if foreign and place in checksum:
            continue  # Without the word sha256 it is a foreign file.
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="small: "):
                files.read(path, foreign=foreign)


@given(st.data())
def test_every_changed_byte_is_refused(tmp_path_factory, data):
    path, content = small_bytes(tmp_path_factory.getbasetemp())
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
    with pytest.raises(ValueError, match="small: "):
        files.read(path)


def test_white_space_of_another_kind_is_noticed(tmp_path):
    path = tmp_path / "f"
    for size in range(8):
        files.write(path, SMALL, {"k": "x" * size})
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        if content[end - 1 : end] == b" ":
            path.write_bytes(content[: end - 1] + b"\n" + content[end:])
            with pytest.raises(ValueError, match="not spelled as numbanet"):
                files.read(path)


def test_every_truncation_is_refused(tmp_path):
    path, content = small_bytes(tmp_path)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        for foreign in (False, True):
            with pytest.raises(ValueError, match="small: "):
                files.read(path, foreign=foreign)


REFUSED = {
    "no length": (b"\x01\0\0", "needs 8 bytes, the file has 3"),
    "too long a header": (container({}, length=10**8 + 1), "limit is 100000000"),
    "truncated header": (container({}, length=50), "50 bytes is announced, 2 bytes follow"),
    "no JSON": (container(b"{nonsense}"), "not JSON"),
    "no UTF-8": (container(b'{"\xff": 1}'), "not JSON"),
    "deep JSON": (container(b"[" * 100_000), "not JSON"),
    "lone surrogate": (container(b'{"__metadata__": {"k": "\\ud800"}}'), "not JSON"),
    "no object": (container([1]), "JSON object, got list"),
    "key twice": (container(b'{"__metadata__": {"k": "1", "k": "2"}}'), "the key 'k' twice"),
    "metadata not strings": (container({"__metadata__": {"k": 1}}), "names to strings"),
    "entry without shape": (container({"w": {"dtype": "U8"}}), "'w' must have dtype, shape"),
    "unknown dtype": (container({"w": entry("F16", [1])}, b"ab"), "'w': unknown dtype 'F16'"),
    "negative shape": (container({"w": entry(shape=[-2])}, b"ab"), r"got \[-2\]"),
    "bool in shape": (container({"w": entry(shape=[True, 2])}, b"ab"), "numbers ≥ 0"),
    "three offsets": (container({"w": entry(offsets=[0, 1, 2])}, b"ab"), "must be .begin, end."),
    "backward offsets": (container({"w": entry(offsets=[2, 0])}, b"ab"), "must be .begin, end."),
    "shape and bytes": (
        container({"w": entry("F32")}, b"ab"),
        "needs 8 bytes, data_offsets give 2",
    ),
    "overlap": (
        container({"a": entry(), "b": entry(offsets=[1, 3])}, b"abc"),
        "'b' overlaps .* expected 2",
    ),
    "hole": (container({"a": entry(), "b": entry(offsets=[3, 5])}, b"abcde"), "'b' leaves a hole"),
    "hole at the start": (
        container({"a": entry(offsets=[1, 3])}, b"abc"),
        "begins at 1, expected 0",
    ),
    "out of the file": (container({"w": entry()}, b"a"), "ends at byte 2 of the data, which has 1"),
    "trailing bytes": (container({"w": entry()}, b"abc"), "1 trailing bytes after byte 2"),
    "bad bool": (container({"w": entry("BOOL")}, b"\1\2"), "holds the byte 2"),
    "huge axis": (container({"w": entry(shape=[0, 10**30], offsets=[0, 0])}), "is impossible"),
    "wrong checksum": (
        container(b'{"__metadata__":{"sha256":"00"}} '[:-1]),
        "wrong checksum: .*says 00",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_file_is_refused_by_name(tmp_path, case):
    content, message = REFUSED[case]
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(ValueError, match=rf"odd: .*{message}"):
        files.read(tmp_path / "odd", foreign=True)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"w": np.zeros(2, np.float16)}, {}, "'w' is float16; convert it to one of F32"),
        ({"w": np.array([None])}, {}, "'w' is object"),
        ({"__metadata__": np.zeros(2)}, {}, "cannot be named"),
        ({}, {"sha256": "0"}, "reserved"),
        ({}, {"epochs": 3}, "must be strings"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_the_disk_is_touched(
    tmp_path, tensors, metadata, message
):
    with pytest.raises(ValueError, match=message):
        files.write(tmp_path / "f", tensors, metadata)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_no_litter(
    tmp_path, monkeypatch, call, failure
):
    path, content = small_bytes(tmp_path)

    def fail(*args, **kwargs):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(failure)):
            files.write(path, {"other": np.ones(3)}, {})
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["small"]


KILLED = """
import os, signal, sys
import numpy as np
from numbanet.io import safetensors
def stop(descriptor):
    print("writing", flush=True)
    if sys.stdin.readline() == "die\\n":
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
fsync, os.fsync = os.fsync, stop
safetensors.write(sys.argv[1], {"w": np.ones(9)}, {"by": "the child"})
"""


def writing(path):
    """A process that is in the middle of a write; its next line of input lets it go on."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )
    assert child.stdout.readline() == "writing\n"
    return child


@pytest.mark.skipif(os.name != "posix", reason="signals and locks as POSIX has them")
def test_the_next_write_removes_what_a_killed_one_left_and_no_more(tmp_path):
    path = tmp_path / "f"
    files.write(path, SMALL, {})
    dead, alive, other = writing(path), writing(path), writing(tmp_path / "another")
    for child in (dead, other):
        child.communicate("die\n")
        assert child.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 4
    files.write(path, SMALL, {"by": "us"})
    assert len(os.listdir(tmp_path)) == 3  # of the living one, and of another file
    assert files.read(path)[1] == {"by": "us"}
    alive.communicate("go on\n")
    assert alive.returncode == 0 and files.read(path)[1] == {"by": "the child"}
    files.write(tmp_path / "another", SMALL, {})
    assert sorted(os.listdir(tmp_path)) == ["another", "f"]


@pytest.mark.parametrize("case", ["another machine", "no locks"])
def test_where_no_lock_tells_only_old_files_are_removed(case, tmp_path, monkeypatch):
    path, made = tmp_path / "f", []
    create = files._create_temporary
    monkeypatch.setattr(files, "_create_temporary", lambda name: made.append(name) or create(name))
    if case == "no locks":
        monkeypatch.setattr(files, "fcntl", None)
    files.write(path, SMALL, {})
    name = Path(made[0]).name
    name = name if case == "no locks" else name.replace(files._host(), "elsewhere")
    left = [tmp_path / f"{name}{k}.tmp" for k in range(2)]
    for one in left:
        one.write_bytes(b"half")
    old = time.time() - 2 * files.ABANDONED_SECONDS
    os.utime(left[0], (old, old))
    files.write(path, SMALL, {"by": "us"})
    assert sorted(tmp_path.iterdir()) == [left[1], path] and files.read(path)[1] == {"by": "us"}


@pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")
def test_a_link_to_itself_is_not_replaced(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match=r"symbolic links.*loop"):
        files.write(loop, {}, {})
    assert loop.is_symlink() and os.listdir(tmp_path) == ["loop"]


def test_paths_of_any_kind(tmp_path):
    for path in (os.fsencode(tmp_path / "a"), str(tmp_path / "b"), tmp_path / "c"):
        files.write(path, {}, {"some": "text"})
        assert files.read(path) == ({}, {"some": "text"})
    for path in (0, None, 1.5):
        with pytest.raises(TypeError, match=r"expected str, bytes or os.PathLike"):
            files.write(path, {}, {})
        with pytest.raises(TypeError, match=r"expected str, bytes or os.PathLike"):
            files.read(path)


@pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")
def test_modes_and_links_are_kept(tmp_path):
    path, old = tmp_path / "f", os.umask(0o027)
    try:
        files.write(path, SMALL, {})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    (tmp_path / "link").symlink_to(path)
    files.write(tmp_path / "link", {}, {"new": "yes"})
    assert (tmp_path / "link").is_symlink() and files.read(path) == ({}, {"new": "yes"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    with pytest.raises(ValueError, match="not an ordinary file"):
        files.write(tmp_path, SMALL, {})
