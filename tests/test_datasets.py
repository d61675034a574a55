"""The data sets: small made-up files everywhere, the real ones where NUMBANET_DATA has them."""

import gzip
import hashlib
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from numbanet import datasets
from numbanet.io import tabular

GIVEN = os.environ.get("NUMBANET_DATA", "")
CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
HOUSES = """,Price,Date,Distance,Bedroom2,BuildingArea,YearBuilt
1,500000.0,4/02/2016,2.5,2.0,79.0,1900.0
2,600000.0,4/03/2017,3.5,3.0,150.0,2018.0
3,700000.0,4/03/2017,3.5,3.0,,1990.0
4,700000.0,4/03/2017,3.5,3.0,0.0,1990.0
5,700000.0,4/03/2017,3.5,3.0,120.0,1196.0
6,700000.0,4/03/2017,3.5,0.0,120.0,1990.0
7,800000.0,4/03/2017,4.5,4.0,200.0,1950.0
8,900000.0,4/03/2017,5.5,4.0,210.0,1960.0
9,950000.0,4/03/2017,6.5,5.0,220.0,1970.0
"""


def real(name):
    """Skip a test whose file is not there."""
    absent = not (GIVEN and (Path(GIVEN) / name).exists())
    return pytest.mark.skipif(absent, reason=f"NUMBANET_DATA has no {name}")


def idx(array):
    head = (
        bytes([0, 0, CODES[array.dtype.name], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    )
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder and a cache folder, both empty, and a network that fails."""
    monkeypatch.setenv("NUMBANET_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(datasets, "_cache", lambda: tmp_path / "cache")

    def retrieve(*args):
        raise OSError("no network")

    if find_spec("pooch"):
        monkeypatch.setattr("pooch.retrieve", retrieve)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def small_mnist(monkeypatch):
    """Return four made-up files: 5 images for training, 2 of them for validation, 3 for test."""
    rng = np.random.default_rng(1)
    files = {
        IMAGES: idx(rng.integers(0, 256, (5, 28, 28)).astype("uint8")),
        LABELS: idx(np.array([3, 1, 4, 1, 5], "uint8")),
        TEST_IMAGES: idx(rng.integers(0, 256, (3, 28, 28)).astype("uint8")),
        TEST_LABELS: idx(np.array([9, 2, 6], "uint8")),
    }
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(datasets, "MNIST_MD5", sums)
    monkeypatch.setattr(datasets, "MNIST_VALIDATION", 2)
    return files


@given(
    st.sampled_from(sorted(CODES)).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_side=0))
    ),
    st.booleans(),
)
def test_an_idx_file_comes_back(tmp_path_factory, array, packed):
    path = tmp_path_factory.getbasetemp() / "any-idx"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    found = datasets.read_idx(path)
    np.testing.assert_array_equal(found, array, strict=True)
    assert found.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with the bytes 0000, got ''"),
        (b"\x01\x02\x08\x01", "bytes 0000, got '0102'"),
        (b"\0\0\x07\x01", "unknown IDX type code 0x07, known are 0x08"),
        (b"\0\0\x08\x03\0\0\0\x01", "3 axes need a head of 16 bytes, the file has 8"),
        (idx(np.arange(6, dtype="int16"))[:-1], r"shape \(6,\) needs 20 bytes, the file has 19"),
        (idx(np.arange(6, dtype="int16")) + b"x", r"shape \(6,\) needs 20 bytes, the file has 21"),
        (gzip.compress(idx(np.arange(99, dtype="uint8")))[:-9], "damaged gzip"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, content, message):
    (tmp_path / "f-idx").write_bytes(content)
    with pytest.raises(ValueError, match=rf"f-idx: .*{message}"):
        datasets.read_idx(tmp_path / "f-idx")


@pytest.mark.parametrize("place", ["data/mnist", "data", "cache/mnist"])
def test_mnist_is_split_as_the_book_has_it(folder, monkeypatch, place):
    target = folder.parent / place
    target.mkdir(parents=True, exist_ok=True)
    for j, (name, content) in enumerate(small_mnist(monkeypatch).items()):
        name, content = (f"{name}.gz", gzip.compress(content)) if j % 2 else (name, content)
        (target / name).write_bytes(content)
    flat, grid = datasets.mnist(), datasets.mnist(flat=False, dtype="float32")
    assert (
        flat.x.shape == (3, 784)
        and flat.x_validation.shape == (2, 784)
        and flat.x.dtype == np.uint8
    )
    labels = [part.tolist() for part in (flat.y, flat.y_validation, flat.y_test)]
    assert labels == [[3, 1, 4], [1, 5], [9, 2, 6]]
    assert (
        flat.y.dtype == np.int64
        and grid.x_test.shape == (3, 28, 28, 1)
        and grid.x.dtype == np.float32
    )
    np.testing.assert_allclose(grid.x.reshape(3, 784), flat.x / 255, rtol=1e-6)


def test_mnist_with_other_content_is_refused(folder, monkeypatch):
    for name, content in small_mnist(monkeypatch).items():
        (folder / name).write_bytes(content[:-1] + b"\0")
    with pytest.raises(ValueError, match=rf"{IMAGES}: MD5 is .{{32}}, expected .{{32}}"):
        datasets.mnist()
    with pytest.raises(ValueError, match="'uint8' or 'float32', got 'float64'"):
        datasets.mnist(dtype="float64")


def test_mnist_is_fetched_into_the_cache(folder, monkeypatch):
    pytest.importorskip("pooch")
    files, calls = small_mnist(monkeypatch), []

    def retrieve(url, known_hash, name, path):
        calls.append(url)
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / name).write_bytes(gzip.compress(files[name.removesuffix(".gz")]))
        return str(Path(path) / name)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert datasets.mnist().y.tolist() == datasets.mnist().y.tolist() == [3, 1, 4]
    assert calls == [f"{datasets.MNIST_URL}{name}.gz" for name in files]


@pytest.mark.parametrize(
    ("load", "name"), [(datasets.mnist, f"{IMAGES}.gz"), (datasets.houses, "melb_data.csv")]
)
def test_an_absent_file_names_the_places_and_the_way_out(folder, load, name):
    with pytest.raises(FileNotFoundError) as caught:
        load()
    message = str(caught.value)
    for path in (folder / name, folder.parent / "cache" / name):
        assert str(path) in message
    assert "network" in message or "not tried" in message
    assert "Set the environment variable NUMBANET_DATA" in message


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    for platform, expected in [
        ("linux", "/somewhere"),
        ("win32", "/local"),
        ("darwin", "~/Library/Caches"),
    ]:
        monkeypatch.setattr(sys, "platform", platform)
        assert datasets._cache() == Path(expected).expanduser() / "numbanet"


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn; install numbanet\[sklearn\]"):
        datasets.digits()
    with pytest.raises(ImportError, match=r"needs h5py; install numbanet\[data\]"):
        datasets.cats()


def test_houses_without_the_absurd(folder):
    (folder / "melb_data.csv").write_text(HOUSES)
    plain, data = datasets.houses(standardize=False), datasets.houses()
    assert plain.x.shape == (4, 4) and plain.y_test.shape == (1, 1) and plain.x_scaling is None
    rows = np.vstack([plain.x, plain.x_test]).tolist()
    assert [79, 2, 2.5, 116] in rows and [150, 3, 3.5, -1] in rows
    np.testing.assert_allclose(data.x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.y.std(), 1, rtol=1e-6)
    np.testing.assert_allclose(data.y_scaling.invert(data.y_test), plain.y_test, rtol=1e-6)
    (folder / "melb_data.csv").write_text(HOUSES.replace("4.5,4.0", "far,4.0"))
    with pytest.raises(ValueError, match="line 8, column 'Distance': 'far' is not a finite number"):
        datasets.houses()
    (folder / "melb_data.csv").write_text(HOUSES.replace("YearBuilt", "Year"))
    with pytest.raises(ValueError, match="no column 'YearBuilt'"):
        datasets.houses()


def test_cats_in_colour_and_grey(folder):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    for part in ("train", "test"):
        with h5py.File(folder / f"{part}_catvnoncat.h5", "w") as file:
            file[f"{part}_set_x"], file[f"{part}_set_y"] = images, np.array([0, 1, 1])
            file["list_classes"] = np.array([b"non-cat", b"cat"])
    data, grey = datasets.cats(flat=False), datasets.cats(color=False)
    np.testing.assert_array_equal(data.x, images, strict=True)
    assert (
        data.y.tolist() == [0, 1, 1]
        and data.names == ("non-cat", "cat")
        and data.x_validation is None
    )
    assert grey.x.shape == (3, 4096) and grey.x.dtype == np.uint8
    r, g, b = images[2, 5, 7].tolist()
    assert grey.x[2, 5 * 64 + 7] == round(0.299 * r + 0.587 * g + 0.114 * b)
    (folder / "test_catvnoncat.h5").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"test_catvnoncat\.h5: "):
        datasets.cats()


@pytest.mark.parametrize(("load", "n"), [(datasets.digits, 1797), (datasets.breast_cancer, 569)])
def test_bundled_sets_are_split_by_class_and_seed(load, n):
    pytest.importorskip("sklearn")
    data, again, other = load(seed=4), load(seed=4), load(seed=5)
    assert (
        len(data.x) + len(data.x_test) == n
        and data.x.dtype == np.float32
        and data.y.dtype == np.int64
    )
    np.testing.assert_array_equal(data.x, again.x)
    assert not np.array_equal(data.y, other.y)
    train, test = np.bincount(data.y), np.bincount(data.y_test)
    assert len(train) == len(data.names) and np.all(np.abs(train - 0.8 * (train + test)) <= 0.5)
    if load is datasets.digits:
        assert data.x.min() == 0 and data.x.max() == 1
    else:
        np.testing.assert_allclose(data.x.std(0), 1, rtol=1e-5)


def test_a_constant_column_keeps_its_scale():
    scaling = datasets.Standardization.of(np.array([[1.0, 5.0], [3.0, 5.0]]))
    np.testing.assert_array_equal(scaling.apply(np.array([[5.0, 6.0]])), [[3.0, 1.0]])


@pytest.mark.parametrize("head", ["", "\ufeff", "area,rooms,price\n", "\ufeffarea,rooms,price\r\n"])
def test_a_table_of_numbers(tmp_path, head):
    (tmp_path / "t.csv").write_text(head + "1,2.5,3\n\n-4,5e1,6\n", encoding="utf-8")
    table = datasets.read_csv(tmp_path / "t.csv")
    assert table.x.tolist() == [[1, 2.5], [-4, 50]] and table.x.dtype == np.float64
    assert table.y.tolist() == [3, 6] and table.y.dtype == np.float64
    named = "area" in head
    assert table.feature_names == (("area", "rooms") if named else ("column 1", "column 2"))
    assert (table.class_names, table.dropped) == ((), ())


X_EXPECTED, Y_EXPECTED = [[1.5, 2.0], [3.0, 4.25]], [10.0, 20.0]
SPELLINGS = {
    "commas": "a,b,y\n1.5,2,10\n3,4.25,20\n",
    "semicolons": "a;b;y\n1.5;2;10\n3;4.25;20\n",
    "tabs": "a\tb\ty\n1.5\t2\t10\n3\t4.25\t20\n",
    "European": "a;b;y\n1,5;2;10\n3;4,25;20\n",
    "quoted thousands beside decimals": 'a,b,y\n"1,5",2,10\n3,"4,250",20\n',
    "European without a header": "1,5;2;10\n3;4,25;20\n",
    "tabs with decimal commas": "a\tb\ty\n1,5\t2\t10\n3\t4,25\t20\n",
    "quoted decimal commas": 'a,b,y\n"1,5",2,10\n3,"4,25",20\n',
    "quoted cells": '"a","b","y"\n"1.5","2","10"\n"3","4.25","20"\n',
    "spaces": "a, b, y\n 1.5, 2 ,10\n3, 4.25, 20\n",
    "spaces and quotes": 'a, b, y\n1.5, "2", 10\n3, "4.25", 20\n',
    "CRLF": "a,b,y\r\n1.5,2,10\r\n3,4.25,20\r\n",
    "blank lines": "\n\na,b,y\n\n1.5,2,10\n\n\n3,4.25,20\n\n",
    "no end of line": "1.5,2,10\n3,4.25,20",
    "a name in two lines": '"a\nlength",b,y\n1.5,2,10\n3,4.25,20\n',
    "the same name twice": "a,a,y\n1.5,2,10\n3,4.25,20\n",
    "an empty name": ",b,y\n1.5,2,10\n3,4.25,20\n",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_one_table(tmp_path, name):
    (tmp_path / "t.csv").write_text(SPELLINGS[name], newline="")
    table = datasets.read_csv(tmp_path / "t.csv")
    assert (table.x.tolist(), table.y.tolist()) == (X_EXPECTED, Y_EXPECTED)


def test_text_in_the_target_names_classes(tmp_path):
    path = tmp_path / "iris.csv"
    path.write_text("5.1,3.5,setosa\n6.2,2.9, versicolor\n4.9,3.0,setosa\n")
    table = datasets.read_csv(path)
    assert table.class_names == ("setosa", "versicolor")
    assert table.y.tolist() == [0, 1, 0] and table.y.dtype == np.int64
    assert table.x.tolist() == [[5.1, 3.5], [6.2, 2.9], [4.9, 3.0]]


def test_columns_by_name_and_index(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("city,y,a,b\nRome,1,2,3\nOslo,4,5,6\n")
    table = datasets.read_csv(path, target="y", columns=["b", 2])
    assert table.x.tolist() == [[3, 2], [6, 5]] and table.feature_names == ("b", "a")
    assert table.y.tolist() == [1, 4]
    table = datasets.read_csv(path, target=0, columns=["a"])
    assert table.class_names == ("Oslo", "Rome") and table.y.tolist() == [1, 0]
    table = datasets.read_csv(path, target=None, columns=[-1])
    assert table.y is None and table.x.tolist() == [[3], [6]]
    with pytest.raises(TypeError, match="columns is a list of names or indices, got 'ab'"):
        datasets.read_csv(path, columns="ab")


HOLES = "a,b,y\n1,2,3\n,4,5\n3,NA,9\n8,6,7\n"


@pytest.mark.parametrize(
    ("missing", "x", "y", "dropped"),
    [
        ("drop", [[1, 2], [8, 6]], [3, 7], (3, 4)),
        ("mean", [[1, 2], [4, 4], [3, 4], [8, 6]], [3, 5, 9, 7], ()),
        ("median", [[1, 2], [3, 4], [3, 4], [8, 6]], [3, 5, 9, 7], ()),
    ],
)
def test_missing_cells(tmp_path, missing, x, y, dropped):
    (tmp_path / "t.csv").write_text(HOLES)
    table = datasets.read_csv(tmp_path / "t.csv", missing=missing)
    assert (table.x.tolist(), table.y.tolist(), table.dropped) == (x, y, dropped)


def test_a_missing_label_is_dropped(tmp_path):
    (tmp_path / "t.csv").write_text("1,red\n2,\n3,blue\n4,red\n")
    table = datasets.read_csv(tmp_path / "t.csv", missing="drop")
    assert table.y.tolist() == [1, 0, 1] and table.class_names == ("blue", "red")
    assert (table.x.tolist(), table.dropped) == ([[1], [3], [4]], (2,))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "the file is empty"),
        ("a,b\n", {}, "there are no rows below the line of names"),
        ("1\n2\n", {}, "expected 2 or more columns, got 1 between ','; where another character"),
        ("a|b\n1|2\n", {}, r"separates the cells, pass it as delimiter \(--delimiter\)"),
        ("a,b\n1,2\n3\n", {}, "line 3 has 1 cells, expected 2 as in the first line"),
        ("a,b,\n1,no,\n", {}, "column 3, the last, is empty and has no name; remove the ','"),
        ("1;no;\n2;no;\n", {}, "column 3, the last, is empty and has no name; remove the ';'"),
        ('a,b\n1,"2\n3,4\n', {}, "line 2 … 3, one cell since a quote was opened"),
        ("a;b\n1;2\n3\n", {}, "line 3 has 1 cells, expected 2"),
        ("a,b\n1,2\nfour,5\n", {}, "line 3, column 'a': 'four' is not a finite number"),
        ("a,b\n1_0,2\n", {}, "line 2, column 'a': '1_0' is not a finite number"),
        ("a,b\n1%,2\n", {}, r"'1%' is not a finite number; encode it .*\(columns, --columns\)"),
        ("a,b\ninf,2\n", {}, "line 2, column 'a': 'inf' is not a finite number"),
        ("1,2\n3,x\n", {}, "line 2, column 2: 'x' is not a number, others are"),
        ("a,1\n1,2\n", {}, "line 1, column 1: 'a' .* if the first line is a header"),
        ("a,b\n1,nan\n", {}, "line 2, column 'b': 'nan' is missing; .*'drop', 'mean' or"),
        ("a,b\n1,\n", {}, "line 2, column 'b': '' is missing"),
        ('a,b\n"1\n",2\n,3\n', {}, "line 4, column 'a': '' is missing"),
        ("a,b\n,1\n,2\n", {"missing": "mean"}, "column 'a' has no number to fill it with"),
        ("a,b\n1,\n2,3\n", {"missing": "median"}, "line 2: the target is missing, .*'drop'"),
        ("a,b\n1,\n,3\n", {"missing": "drop"}, "every row has a missing cell"),
        ("a,b\n1,2\n", {"missing": "skip"}, "missing is one of error, drop, .* got 'skip'"),
        ("a,b\n1,2\n", {"target": "c"}, "no column 'c'; the columns are a, b"),
        ("1,2\n", {"target": "c"}, r"without names: give an index \(--target NUMBER\)"),
        ("a,b\n1,2\n", {"target": 2}, "no column 3, index 2 from 0; there are 2"),
        ("a,b\n1,2\n", {"target": -3}, "no column of index -3; there are 2"),
        ("a,b,a\n1,2,3\n", {"target": "a"}, "'a' names the columns with index 0 and 2"),
        ("a,b\n1,2\n", {"columns": ["b"]}, "column 'b' is both the target and among columns"),
        ("a,b\n1,2\n", {"delimiter": "::"}, "delimiter must be one character, got '::'"),
        ("a,b\n1,2\n", {"decimal": "'"}, "decimal must be"),
        ("a;b\n1,5;2\n", {"decimal": "."}, "'1,5' .* sign '.'; pass decimal=',' .--decimal"),
        ("a;b\n1.5;2,5\n1,5;2,5\n", {}, "'1.5' .* sign ','; pass decimal='.'"),
        ("a;b\n1,234;5,678\n", {}, "'1,234' may be a decimal number or thousands"),
        *(
            (f'a,b\n0,"{first}"\n1,"106,286"\n', {}, "may be a decimal number or thousands")
            for first in ("5,123", "-5,123", "+5,123")
        ),
        ('"1,125",-0.13,no\n', {}, "if ',' separates thousands, remove it .*, else pass decimal="),
        ('"1,125",-0.13,no\n', {"decimal": "."}, "separates thousands, remove it from the file$"),
        ('a,b\n"3,062,865",2\n', {}, "if ',' separates thousands, remove it from the file$"),
        ('a,b\n"1,500.25",2\n', {}, "if ',' separates thousands, remove it from the file$"),
        ("1.628;-0,13;no\n", {"decimal": ","}, "if '.' separates thousands, remove it from the"),
        ("x;1,5\ny;2,5\n", {}, "may be separated by ',' or ';'; pass one as delimiter"),
    ],
)
def test_a_table_with_a_fault_names_the_place(tmp_path, text, options, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.read_csv(tmp_path / "t.csv", **options)
    assert "t.csv: " in str(caught.value) or set(options) & {"delimiter", "decimal", "missing"}


def test_the_delimiter_and_the_decimal_sign_as_given(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n1,234;5,678\n")
    assert datasets.read_csv(tmp_path / "t.csv", decimal=",").x.tolist() == [[1.234]]
    (tmp_path / "t.csv").write_text("x;1,5\ny;2,5\n")
    table = datasets.read_csv(tmp_path / "t.csv", delimiter=";", target=0)
    assert table.x.tolist() == [[1.5], [2.5]] and table.class_names == ("x", "y")
    for delimiter in "| ":
        (tmp_path / "t.csv").write_text(f"1{delimiter}2\n3{delimiter}4\n")
        assert datasets.read_csv(tmp_path / "t.csv", delimiter=delimiter).y.tolist() == [2, 4]
    (tmp_path / "t.csv").write_text('"1,234",2\n"3,062",4\n')
    table = datasets.read_csv(tmp_path / "t.csv", decimal=",")
    assert (table.x.tolist(), table.y.tolist()) == ([[1.234], [3.062]], [2, 4])
    (tmp_path / "t.csv").write_text("1,5\n2,5\n")
    table = datasets.read_csv(tmp_path / "t.csv", decimal=",", target=None)
    assert table.x.tolist() == [[1.5], [2.5]]


def test_a_header_with_a_number_is_doubted(tmp_path):
    rows = "1,2,no\n3,4,yes\n" * 3
    (tmp_path / "t.csv").write_text("2020,2021,kind\n" + rows)
    with pytest.warns(UserWarning, match=r"t\.csv: the first line .* no other .* class 'kind'"):
        assert datasets.read_csv(tmp_path / "t.csv").class_names == ("kind", "no", "yes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in (rows, "a,b,kind\n" + rows, "1,2,no\n3,4,yes\n"):
            (tmp_path / "t.csv").write_text(text)
            assert datasets.read_csv(tmp_path / "t.csv").class_names == ("no", "yes")


def test_a_table_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes("größe,b\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv: not text in UTF-8 .*byte 2.*; save it as CSV"):
        datasets.read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize("options", [{}, {"missing": "mean"}], ids=["numbers", "holes"])
def test_a_long_table_by_both_ways(tmp_path, options):
    """More rows than one chunk: by NumPy, and with a missing cell by the csv module."""
    values = np.random.default_rng(0).normal(size=(10_000, 4))
    lines = [",".join(map(repr, row)) for row in values.tolist()]
    if options:
        lines[7777] = "?" + lines[7777][lines[7777].index(",") :]
        values[7777, 0] = np.delete(values[:, 0], 7777).mean()
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    table = datasets.read_csv(tmp_path / "t.csv", **options)
    np.testing.assert_allclose(np.column_stack([table.x, table.y]), values, rtol=1e-12)
    lines[9999] = "1,2,3,x"
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="line 10000, column 4: 'x' is not a number"):
        datasets.read_csv(tmp_path / "t.csv", **options)


def test_the_arrays_of_an_npz_file(tmp_path):
    x, y = np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([1, 0, 1])
    np.savez(tmp_path / "t.npz", x=x, y=y)
    found = tabular.read_npz(tmp_path / "t.npz", "x", "y")
    np.testing.assert_array_equal(found[0], x, strict=True)
    np.testing.assert_array_equal(found[1], y, strict=True)
    np.savez(tmp_path / "nameless.npz", x)
    np.savez(tmp_path / "objects.npz", x=np.array([None]), y=y)
    (tmp_path / "text.npz").write_text("1,2\n")
    for name in ("nameless.npz", "objects.npz", "text.npz"):
        with pytest.raises(ValueError, match=rf"{name}: .*arrays x and y"):
            tabular.read_npz(tmp_path / name, "x", "y")


@real("mnist")
def test_the_real_mnist():
    data = datasets.mnist()
    assert data.x.shape == (50_000, 784) and data.x_validation.shape == data.x_test.shape == (
        10_000,
        784,
    )
    assert data.y[:5].tolist() == [5, 0, 4, 1, 9] and data.y_test[:3].tolist() == [7, 2, 1]


@real("melbourne")
def test_the_real_houses_number_as_the_docstring_says():
    data = datasets.houses(standardize=False)
    assert data.x.shape == (4922, 4) and data.x_test.shape == (1230, 4)
    assert data.x[:, 0].min() >= 10 and data.y.min() > 50_000


@real("cats")
def test_the_real_cats():
    pytest.importorskip("h5py")
    data = datasets.cats()
    assert (
        data.x.shape == (209, 12288) and data.x_test.shape == (50, 12288) and set(data.y) == {0, 1}
    )
