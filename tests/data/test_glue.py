"""`mom.glue.reader`: every task in every form, and every kind of damage counted and named."""

from __future__ import annotations

import builtins
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mom.data.records import RecordError
from mom.errors import DataError
from mom.glue import TASKS, find_task, read_glue
from mom.glue.tasks import SPLITS
from shared_data import shared_path

GOLDEN = Path(__file__).parent / "golden" / "glue"

#: Task, split, labels in words, first example's texts.
EXPECTED: list[tuple[str, str, list[Any], tuple[str, ...]]] = [
    ("cola", "train", ["1", "0", "1", "0", "1", "0"], ("The baker gave the children some bread.",)),
    ("cola", "dev", ["1", "0", "1"], ("The lamp fell over.",)),
    ("sst2", "train", ["1", "0", "1", "0"], ("a warm and funny little film ",)),
    ("sst2", "dev", ["1", "0"], ("a joy from start to end . ",)),
    ("mrpc", "train", ["1", "0", "1"], ('The mayor said "no" on Monday.', "On Monday the mayor refused.")),
    ("mrpc", "dev", ["1", "0"], ('"We won the match.', "The match was won.")),
    ("stsb", "train", [5.0, 1.6, 0.0], ("A cat sleeps.", "A cat is asleep.")),
    ("stsb", "dev", [3.25, 1.0], ("He plays the piano.", "He plays an instrument.")),
    ("qqp", "train", ["1", "0", "0"], ("How do I learn to swim?", "What is the way to learn swimming?")),
    ("qqp", "dev", ["1", "0"], ("Where can I buy stamps?", "Where are stamps sold?")),
    ("mnli", "train", ["entailment", "contradiction", "neutral"],
     ("The garden is full of roses.", "There are flowers in the garden.")),
    ("mnli", "dev", ["contradiction", "entailment"], ("All shops were shut.", "A shop was open.")),
    ("mnli-mm", "dev", ["contradiction", "neutral", "entailment"], ("The plan worked.", "The plan failed.")),
    ("qnli", "train", ["entailment", "not_entailment", "entailment"],
     ("Where does the river rise?", "The river rises in the hills near the town.")),
    ("qnli", "dev", ["entailment", "not_entailment"], ("What do bees make?", "Bees make honey.")),
    ("rte", "train", ["entailment", "not_entailment", "entailment"],
     ("The company sold its mill to a bank in May.", "A bank bought a mill.")),
    ("rte", "dev", ["entailment", "not_entailment"], ("The king visited the port.", "The port was visited.")),
    ("wnli", "train", ["1", "0"], ("The cup did not fit in the bag because it was too big.", "The cup was too big.")),
    ("wnli", "dev", ["1", "0"], ("Tom thanked Bob because he had helped.", "Bob had helped.")),
    ("ax", "dev", ["contradiction", "entailment", "neutral"],
     ("The cat sat on the mat.", "The cat did not sit on the mat.")),
]  # fmt: skip


def words(data: Any) -> list[Any]:
    """Labels as the files write them."""
    if data.task.is_regression:
        return [round(float(score), 3) for score in data.labels]
    return [data.task.labels[i] for i in data.labels]


def as_dicts(data: Any) -> list[dict[str, Any]]:
    """The rows as the Hub has them."""
    rows = []
    for i, texts in enumerate(data.texts):
        row: dict[str, Any] = dict(zip(data.task.hub_texts, texts, strict=True))
        row["label"] = -1 if data.labels is None else data.labels[i].item()
        rows.append({**row, "idx": i})
    return rows


def damaged(tmp_path: Path, task: str, change: Any, split: str = "train") -> Path:
    """A copy of a golden file with its bytes changed."""
    found = TASKS[task]
    path = tmp_path / found.folders[0] / found.files[split]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(change((GOLDEN / found.folders[0] / found.files[split]).read_bytes()))
    return path


# ---------------------------------------------------------------------- what is read
@pytest.mark.parametrize(("task", "split", "labels", "first"), EXPECTED, ids=[f"{e[0]}-{e[1]}" for e in EXPECTED])
def test_original_files(task: str, split: str, labels: list[Any], first: tuple[str, ...]) -> None:
    data = read_glue(GOLDEN, task, split)
    assert words(data) == labels and data.texts[0] == first and len(data) == len(labels)
    assert data.report.rows == data.report.kept == len(labels) and not data.report.errors
    assert data.labels is not None and data.labels.dtype == (np.float32 if task == "stsb" else np.int64)
    folder = GOLDEN / data.task.folders[0]
    for source in (folder, str(folder), folder / data.task.files[split]):
        assert read_glue(source, task, split).texts == data.texts


@pytest.mark.parametrize("task", TASKS)
def test_test_sets_have_no_labels_and_keep_every_row(task: str) -> None:
    data = read_glue(GOLDEN, task, "test")
    assert data.labels is None and data.index == list(range(len(data)))
    assert data.report.unlabelled == data.report.kept == data.report.rows == len(data) > 0


@pytest.mark.parametrize("task", TASKS)
def test_golden_files_cover_every_split(task: str) -> None:
    for split in TASKS[task].files:
        assert len(read_glue(GOLDEN, task, split)) > 0


@pytest.mark.parametrize("form", ["list", "splits", "hub splits", "generator", "parquet", "parquet folder"])
@pytest.mark.parametrize("task", TASKS)
def test_dicts_and_parquet_say_the_same(task: str, form: str, tmp_path: Path) -> None:
    split = "dev"
    expected = read_glue(GOLDEN, task, split)
    rows = as_dicts(expected)
    hub_split = expected.task.hub_splits.get(split, split)
    source: Any = {
        "list": rows, "splits": {split: rows}, "hub splits": {hub_split: rows}, "generator": (r for r in rows),
    }.get(form)  # fmt: skip
    if form.startswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet")
        folder = tmp_path / expected.task.hub_config
        folder.mkdir()
        source = folder / f"{hub_split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
        source = tmp_path if form == "parquet folder" else source
    data = read_glue(source, task, split)
    assert data.texts == expected.texts and data.labels is not None
    np.testing.assert_array_equal(data.labels, expected.labels)


def test_hub_test_sets_with_label_minus_one() -> None:
    data = read_glue(as_dicts(read_glue(GOLDEN, "rte", "test")), "rte", "test")
    assert data.labels is None and data.report.unlabelled == 2


@pytest.mark.parametrize("form", ["dataset", "parquet"])
def test_class_names_decide_what_a_number_means(form: str, tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": "b", "label": i} for i in (0, 1, 2)]
    names = ["contradiction", "entailment", "neutral"]
    source: Any
    if form == "dataset":

        class Label:
            pass

        class Dataset(list[Any]):
            features = {"label": Label()}

        Label.names = names  # type: ignore[attr-defined]
        source = Dataset(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet")
        table = pyarrow.Table.from_pylist(rows)
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        source = tmp_path / "train.parquet"
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), source)
    assert words(read_glue(source, "mnli")) == names


def test_words_of_the_hub_are_understood() -> None:
    rows = [{"sentence": "a", "label": "acceptable"}, {"sentence": "b", "label": "unacceptable"}]
    assert words(read_glue(rows, "cola")) == ["1", "0"]


def test_own_row_numbers_are_kept_where_they_are_distinct() -> None:
    assert read_glue(GOLDEN, "qqp", "train").index == [401, 7, 58]
    assert read_glue([{"sentence": "a", "label": 1, "idx": 5}] * 2, "cola").index == [0, 1]


def test_a_part_of_a_split() -> None:
    part = read_glue(GOLDEN, "cola")[1:3]
    assert words(part) == ["0", "1"] and part.texts[1] == ("Whom did the baker give the bread to?",)
    with pytest.raises(TypeError, match="item: expected a slice, got int"):
        part[0]  # type: ignore[index]


@pytest.mark.parametrize("name", ["STS-B", "stsb", "sts_b", "Sts-b"])
def test_a_task_by_any_spelling(name: str) -> None:
    assert find_task(name) is TASKS["stsb"]
    assert find_task("MNLI_mismatched") is TASKS["mnli-mm"] and find_task("diagnostic") is TASKS["ax"]
    with pytest.raises(DataError, match="task: 'imdb' is not one of cola, sst2, mrpc"):
        find_task("imdb")


@pytest.mark.parametrize(
    ("task", "split", "rows"),
    [("cola", "train", 8551), ("mrpc", "train", 3668), ("stsb", "train", 5749), ("rte", "dev", 277),
     ("wnli", "dev", 71), ("qnli", "dev", 2000), ("qqp", "train", 8000), ("mnli", "dev", 2000), ("sst2", "test", 1821)],
)  # fmt: skip
def test_real_files(task: str, split: str, rows: int) -> None:
    data = read_glue(shared_path("data", "glue"), task, split)
    assert len(data) == data.report.rows == rows and not data.report.errors


# ---------------------------------------------------------------------- odd, but whole: counted and kept
def test_lone_quotes_are_characters_and_counted() -> None:
    data = read_glue(GOLDEN, "mrpc", "train")
    assert data.report.notes == {"byte-order mark": 1, "lone quote": 1}
    assert data.texts[1][1] == 'Sales of "bread rose by a tenth while cake fell.'
    assert "read as they are: 1 byte-order mark, 1 lone quote" in data.report.summary()


def test_carriage_returns_and_marks_do_not_get_into_labels(tmp_path: Path) -> None:
    path = damaged(tmp_path, "rte", lambda raw: b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))
    data = read_glue(path, "rte")
    assert words(data) == words(read_glue(GOLDEN, "rte"))
    assert data.report.notes == {"byte-order mark": 1, "CRLF": 4}


def test_other_line_ends_do_not_end_a_row(tmp_path: Path) -> None:
    odd = "a\x0b\x0c\x1c\x85\u2028\rb"
    path = damaged(tmp_path, "sst2", lambda raw: raw + f"{odd}\t1\n\n".encode())
    data = read_glue(path, "sst2")
    assert data.texts[-1] == (odd,) and data.report.notes == {"carriage return": 1, "blank line": 1}


def test_empty_texts_are_kept_and_counted() -> None:
    data = read_glue(GOLDEN, "qqp", "dev")
    assert data.texts[1] == ("Is tea healthy?", "") and data.report.notes["empty text"] == 1


# ---------------------------------------------------------------------- rows that cannot be used
def replaced(old: bytes, new: bytes) -> Any:
    def change(raw: bytes) -> bytes:
        assert raw.count(old) == 1, old
        return raw.replace(old, new)

    return change


BAD_ROWS: dict[str, tuple[str, Any, str, str]] = {
    "missing tab": (
        "rte", replaced(b"concert.\tThe concert", b"concert. The concert"), "columns",
        "line 3: 3 columns, expected 4 (a tab too few)",
    ),
    "surplus tab": (
        "cola", replaced(b"Ran quickly", b"Ran\tquickly"), "columns", "line 4: 5 columns, expected 4 (a tab too many)",
    ),
    "quoting": (
        "rte", replaced(b"The singer cancelled", b'"The singer\ncancelled'), "columns", "a quotation mark is open",
    ),
    "empty label": ("rte", replaced(b"\tnot_entailment", b"\t"), "empty label", "line 3: column 'label': the label is"),
    "no gold label": (
        "mnli", replaced(b"\tneutral\tneutral", b"\tneutral\t-"), "unlabelled", "'-' says that there is no label",
    ),
    "unknown label": (
        "rte", replaced(b"not_entailment", b"maybe"), "unknown label",
        "label 'maybe' is not one of 'entailment', 'not_entailment'",
    ),
    "label of another task": ("cola", replaced(b"0\t?*", b"2\t?*"), "unknown label", "label '2' is not one of '0'"),
    "score out of range": (
        "stsb", replaced(b"\t1.600", b"\t5.1"), "unknown label", "label '5.1' is not a number from 0 to 5",
    ),
    "score that is none": ("stsb", replaced(b"\t1.600", b"\tnan"), "unknown label", "label 'nan' is not a number"),
    "not UTF-8": ("sst2", replaced(b"finely", b"fin\xe9ly"), "not UTF-8", "line 4: not UTF-8 (byte 3 of the line)"),
    "Latin-1 mark": ("qnli", replaced(b"four", b"\xff\xfefour"), "not UTF-8", "line 3: not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_counted_and_named(name: str, tmp_path: Path) -> None:
    task, change, kind, message = BAD_ROWS[name]
    path = damaged(tmp_path, task, change)
    with pytest.raises(RecordError) as caught:
        read_glue(path, task)
    report = caught.value.report
    assert message in str(caught.value) and str(path) in str(caught.value)
    bad = 2 if name == "quoting" else 1
    assert report.errors == {kind: bad} and report.rows == report.kept + bad
    assert f"{bad} of {report.rows} rows cannot be used ({bad} {kind})" in str(caught.value)

    with pytest.warns(UserWarning, match=f"{bad} of {report.rows} rows cannot be used"):
        data = read_glue(path, task, on_error="skip")
    good = read_glue(GOLDEN, task)
    assert len(data) == len(good) - 1 and set(data.texts) < set(good.texts) and data.report.errors == {kind: bad}


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize(
    ("old", "new", "kind", "message"),
    [
        (b"\t1\t", b" 1\t", "columns", "line 1: 3 columns, expected 4 (a tab too few)"),
        (b"\t1\t", b"\t1\t\t", "columns", "line 1: 5 columns, expected 4 (a tab too many)"),
        (b"\t1\t", b"\t\t", "empty label", "line 1: column 'label': the label is empty"),
        (b"\t1\t", b"\t2\t", "unknown label", "line 1: column 'label': label '2' is not one of '0', '1'"),
        (b"The", b"Th\xe9", "not UTF-8", "line 1: not UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 14 else "",
)  # fmt: skip
def test_the_first_row_of_a_file_without_header_is_a_row(
    split: str, old: bytes, new: bytes, kind: str, message: str, tmp_path: Path
) -> None:
    path = damaged(tmp_path, "cola", lambda raw: raw.replace(old, new, 1), split)
    with pytest.raises(RecordError) as caught:
        read_glue(path, "cola", split)
    assert message in str(caught.value) and caught.value.report.errors == {kind: 1}
    with pytest.warns(UserWarning, match=f"rows cannot be used \\(1 {kind}\\)"):
        data = read_glue(path, "cola", split, on_error="skip")
    assert data.texts == read_glue(GOLDEN, "cola", split).texts[1:] and data.report.rows == len(data) + 1


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "marked"])
@pytest.mark.parametrize("blank", [b"\n", b"\r\n\n", b"  \n"])
@pytest.mark.parametrize(("task", "split"), [(t, s) for t in TASKS for s in TASKS[t].files])
def test_leading_blank_lines_are_no_header(
    task: str, split: str, blank: bytes, mark: bytes, tmp_path: Path
) -> None:
    path = damaged(tmp_path, task, lambda raw: mark + blank + raw.removeprefix(b"\xef\xbb\xbf"), split)
    data, good = read_glue(path, task, split), read_glue(GOLDEN, task, split)
    assert data.texts == good.texts and data.index == good.index
    assert data.report.notes["blank line"] == good.report.notes["blank line"] + blank.count(b"\n")


def test_a_header_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = damaged(tmp_path, "rte", lambda raw: b"\xff" + raw)
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        read_glue(path, "rte", on_error="skip")


@pytest.mark.parametrize("value", [np.int64(1), np.array(1), np.array("1")])
def test_single_values_in_arrays_are_labels(value: Any) -> None:
    labels = read_glue([{"sentence": "a", "label": value}], "cola").labels
    assert labels is not None and labels.tolist() == [1]


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("cola", np.array([0, 1]), r"an array of shape \(2,\) is no label"), ("cola", [0, 1], r"label \[0, 1\]"),
        ("cola", 10**5000, "label an int too long to print"), ("cola", 10**400, r"label 10{79}\.\.\."),
        ("stsb", 10**400, "is not a number from 0 to 5"), ("stsb", 10**5000, "int too long to print is not a number"),
        ("stsb", np.array([1.0]), r"an array of shape \(1,\) is no label"), ("stsb", {}, "label {} is not a number"),
    ],
    ids=range(8),
)  # fmt: skip
def test_labels_that_are_no_labels_are_counted(task: str, label: Any, message: str) -> None:
    texts = dict.fromkeys(TASKS[task].hub_texts, "a")
    rows = [{**texts, "label": 1}, {**texts, "label": label}]
    with pytest.raises(RecordError, match=message):
        read_glue(rows, task)
    with pytest.warns(UserWarning, match="1 of 2 rows cannot be used"):
        data = read_glue(rows, task, on_error="skip")
    assert data.report.errors == {"unknown label": 1} and len(data) == 1


def test_row_numbers_beyond_integers_are_not_used() -> None:
    rows = [{"sentence": "a", "label": 1, "idx": float("inf")}, {"sentence": "b", "label": 0, "idx": 1.0}]
    assert read_glue(rows, "cola").index == [0, 1]


def test_kinds_are_counted_apart() -> None:
    rows: list[Any] = [
        {"sentence": "good", "label": 1}, {"sentence": "a", "label": 2}, {"sentence": "a"}, {"label": 1}, "text",
        {"sentence": None, "label": 0}, {"sentence": "a", "label": True}, {"sentence": "a", "label": -1},
        {"sentence": "\ud800", "label": 1}, {"sentence": "a", "label": " "},
    ]  # fmt: skip
    with pytest.warns(UserWarning):
        report = read_glue(rows, "cola", on_error="skip").report
    assert report.errors == {
        "unknown label": 2, "unlabelled": 2, "missing column": 1, "not a record": 1, "not text": 2, "empty label": 1,
    }  # fmt: skip
    assert report.rows == 10 and report.kept == 1 and len(report.problems) == 9
    assert report.problems[1] == "CoLA train: row 2: no column 'label'; there are 'sentence'"


def test_good_files_give_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_glue(GOLDEN, "rte", on_error="skip")


def test_nothing_usable_is_an_error_even_when_skipping() -> None:
    with pytest.raises(RecordError, match="1 of 1 rows cannot be used"):
        read_glue([{"sentence": "a"}], "cola", on_error="skip")
    with pytest.raises(RecordError, match="CoLA train: no rows"):
        read_glue([], "cola", on_error="skip")


# ---------------------------------------------------------------------- files of something else
@pytest.mark.parametrize("other", ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"])
@pytest.mark.parametrize("task", [name for name in TASKS if name not in ("mnli-mm", "ax")])
def test_swapped_files_are_told_apart(task: str, other: str) -> None:
    if task == other:
        return
    found = TASKS[other]
    with pytest.raises(DataError) as caught:
        read_glue(GOLDEN / found.folders[0] / found.files["dev"], task, "dev", on_error="skip")
    assert TASKS[task].title in str(caught.value)
    assert found.title in str(caught.value) or (other == "mnli" and "MNLI" in str(caught.value))


def test_swapped_folder_is_an_error_where_the_files_look_alike(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="WNLI: is the folder of WNLI, expected one of RTE"):
        read_glue(GOLDEN / "WNLI", "rte", "test")
    shutil.copytree(GOLDEN / "WNLI", tmp_path / "RTE")
    with pytest.raises(RecordError, match=r"none of 2 rows has a label of RTE \(they are labels of WNLI\)"):
        read_glue(tmp_path, "rte", "train")


def test_train_and_test_files_are_told_apart() -> None:
    with pytest.raises(DataError, match=r"no column 'label' \(RTE\)"):
        read_glue(GOLDEN / "RTE" / "test.tsv", "rte", "dev")
    with pytest.raises(DataError, match="this looks like a file without header, of CoLA's train or dev set"):
        read_glue(GOLDEN / "CoLA" / "dev.tsv", "cola", "test")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none/here: no such file or folder"):
        read_glue(tmp_path / "none/here", "cola")
    with pytest.raises(DataError, match="holds no train.tsv or train.*parquet of CoLA; it holds none"):
        read_glue(tmp_path, "cola")
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.csv").write_text("")
    with pytest.raises(DataError, match="CoLA: holds no train.tsv .* it holds 'train.csv'"):
        read_glue(tmp_path, "cola")
    with pytest.raises(DataError, match="train.csv: unknown kind of file"):
        read_glue(tmp_path / "CoLA" / "train.csv", "cola")
    (tmp_path / "CoLA" / "train.tsv").write_bytes(b"")
    with pytest.raises(DataError, match="train.tsv: no rows"):
        read_glue(tmp_path, "cola")
    (tmp_path / "CoLA" / "train.parquet").write_bytes(b"PAR1")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_glue(tmp_path / "CoLA" / "train.parquet", "cola")


def test_arguments_are_checked() -> None:
    with pytest.raises(DataError, match="on_error: 'ignore' is not one of"):
        read_glue(GOLDEN, "cola", on_error="ignore")
    with pytest.raises(DataError, match="split: 'validation' is not one of 'train', 'dev', 'test'"):
        read_glue(GOLDEN, "cola", "validation")
    with pytest.raises(DataError, match="split: AX has no train set"):
        read_glue(GOLDEN, "ax")
    with pytest.raises(DataError, match="nyu-mll/glue: AX has no dev set on the Hub"):
        read_glue("nyu-mll/glue", "ax", "dev")
    with pytest.raises(DataError, match="source: no split 'validation' or 'dev'; there are 'train'"):
        read_glue({"train": []}, "cola", "dev")
    with pytest.raises(DataError, match="source: expected a path or an iterable of mappings, got int"):
        read_glue(3, "cola")  # type: ignore[arg-type]
    assert SPLITS == ("train", "dev", "test")


def test_hub_names_need_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return original(name, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(DataError, match="nyu-mll/glue: no such file or folder; .*: pip install datasets"):
            read_glue("nyu-mll/glue", "cola")

    class Library:
        @staticmethod
        def load_dataset(name: str, config: str, split: str) -> list[dict[str, Any]]:
            if name == "offline/glue":
                raise ConnectionError("no route")
            return [{"premise": f"{config} {split}", "hypothesis": "b", "label": 2}]

    def with_library(name: str, *rest: Any, **more: Any) -> Any:
        return Library if name == "datasets" else original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", with_library)
    assert read_glue("nyu-mll/glue", "mnli-mm", "dev").texts == [("mnli validation_mismatched", "b")]
    with pytest.raises(DataError, match=r"the Hub did not give it \(ConnectionError: no route\); without a connection"):
        read_glue("offline/glue", "mnli")
