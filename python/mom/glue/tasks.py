"""The nine GLUE tasks, MNLI's mismatched sets and the diagnostic set AX: the facts about each.

References
----------
Wang et al., GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding, ICLR 2019.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, DataError

__all__ = ["SPLITS", "TASKS", "GlueTask", "find_task"]

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class GlueTask:
    """One task: its files, columns, labels and metrics.

    Attributes
    ----------
    name, title : str
        The name as flags write it (``"sst2"``) and as GLUE writes it (``"SST-2"``).
    folders : tuple of str
        Names that its folder can have; the first is the original one.
    texts : tuple of tuple of str
        For each of the one or two texts, the names that its column has in the original files.
    hub_texts : tuple of str
        The names of these columns on the Hub.
    label_column : str
        The original files' label column; on the Hub it is ``"label"``.
    labels : tuple of str or None
        Label words in the order of their numbers. None for real-valued scores (STS-B, 0 to 5).
    metrics : tuple of str
        Official metrics; the task's score is their mean.
    files : mapping
        From each split to the original file's name.
    hub_config : str
        Configuration of the data set ``glue`` on the Hub.
    hub_splits : mapping
        From each split to its name on the Hub. AX has no labels there, so it has no dev set.
    submission : str
        Name of the file that the GLUE site takes.
    test_rows : int
        Rows of the official test set.
    synonyms : mapping
        From other words for labels to the label words.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    hub_texts: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    files: Mapping[str, str]
    hub_config: str
    hub_splits: Mapping[str, str]
    submission: str
    test_rows: int
    synonyms: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_labels(self) -> int:
        """Outputs of a classifier for the task; 1 for a score."""
        return 1 if self.labels is None else len(self.labels)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a real number."""
        return self.labels is None

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Words for the labels in the order of their numbers, which a fine-tuned model keeps; None for scores."""
        words = {label: word for word, label in self.synonyms.items()}
        return None if self.labels is None else tuple(words.get(label, label) for label in self.labels)

    def outputs_of(self, names: Sequence[str]) -> list[int]:
        """For each label in the order of the task's numbers, which output of a model stands for it.

        Parameters
        ----------
        names : sequence of str
            Names of the model's outputs. Case, spaces, ``-`` and ``_`` do not matter. A number is that of a label.

        Raises
        ------
        ConfigError
            If they are not names of the task's labels.
        """
        numbers = {_plain(word): number for number, label in enumerate(self.labels or ()) for word in (
            str(number), label, *(word for word, of in self.synonyms.items() if of == label)
        )}  # fmt: skip
        found = [numbers.get(_plain(name), -1) for name in names]
        if sorted(found) != list(range(len(self.labels or ()))):
            raise ConfigError(
                f"model: its labels are {', '.join(map(repr, names))}, those of {self.title} are "
                f"{', '.join(map(repr, self.label_names or ()))}. If they mean the same in the same order, set "
                "model.label_names = None"
            )
        return [found.index(number) for number in range(len(found))]

    def names_of(self, split: str) -> tuple[str, ...]:
        """Names of a split outside the original files: on the Hub, and in this package."""
        return tuple(dict.fromkeys((self.hub_splits.get(split, split), split)))


def _plain(word: str) -> str:
    return re.sub(r"[-_ ]", "", word).lower()


_TWO = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
_FILES = {split: f"{split}.tsv" for split in SPLITS}
_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def _task(
    name: str, title: str, texts: Sequence[str], labels: tuple[str, ...] | None, metrics: Sequence[str],
    test_rows: int, label_column: str = "label", **fields: Any,
) -> GlueTask:  # fmt: skip
    columns = tuple(tuple(names.split("|")) for names in texts)
    defaults = {
        "hub_texts": tuple(names[0] for names in columns), "label_column": label_column,
        "folders": (title, name), "files": _FILES, "hub_config": name, "hub_splits": _HUB_SPLITS,
        "submission": f"{title}.tsv",
    }  # fmt: skip
    return GlueTask(
        name, title, texts=columns, labels=labels, metrics=tuple(metrics), test_rows=test_rows,
        **{**defaults, **fields},
    )  # fmt: skip


_HUB_NLI = ("premise", "hypothesis")


def _mnli(name: str, title: str, which: str, test_rows: int) -> GlueTask:
    return _task(
        name, title, ("sentence1", "sentence2"), _THREE, ("accuracy",), test_rows, "gold_label",
        folders=("MNLI", "mnli"), hub_texts=_HUB_NLI,
        files={"train": "train.tsv", "dev": f"dev_{which}.tsv", "test": f"test_{which}.tsv"}, hub_config="mnli",
        hub_splits={"train": "train", "dev": f"validation_{which}", "test": f"test_{which}"},
    )  # fmt: skip


#: All tasks by name, in GLUE's order.
TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        _task("cola", "CoLA", ("sentence",), ("0", "1"), ("matthews",), 1063,
              synonyms={"unacceptable": "0", "acceptable": "1"}),
        _task("sst2", "SST-2", ("sentence",), ("0", "1"), ("accuracy",), 1821,
              synonyms={"negative": "0", "positive": "1"}),
        _task("mrpc", "MRPC", ("#1 String", "#2 String"), ("0", "1"), ("f1", "accuracy"), 1725, "Quality",
              hub_texts=("sentence1", "sentence2"), synonyms={"not_equivalent": "0", "equivalent": "1"}),
        _task("stsb", "STS-B", ("sentence1", "sentence2"), None, ("pearson", "spearman"), 1379, "score"),
        _task("qqp", "QQP", ("question1", "question2"), ("0", "1"), ("f1", "accuracy"), 390965, "is_duplicate",
              synonyms={"not_duplicate": "0", "duplicate": "1"}),
        _mnli("mnli", "MNLI-m", "matched", 9796),
        _mnli("mnli-mm", "MNLI-mm", "mismatched", 9847),
        _task("qnli", "QNLI", ("question", "sentence"), _TWO, ("accuracy",), 5463),
        _task("rte", "RTE", ("sentence1", "sentence2"), _TWO, ("accuracy",), 3000),
        _task("wnli", "WNLI", ("sentence1", "sentence2"), ("0", "1"), ("accuracy",), 146,
              synonyms={"not_entailment": "0", "entailment": "1"}),
        _task("ax", "AX", ("sentence1|Premise", "sentence2|Hypothesis"), _THREE, ("matthews",), 1104, "Label",
              folders=("diagnostic", "AX", "ax"), hub_texts=_HUB_NLI,
              files={"dev": "diagnostic-full.tsv", "test": "diagnostic.tsv"},
              hub_splits={"test": "test"}),
    )
}  # fmt: skip

_OTHER_NAMES = {
    "mnlim": "mnli", "mnlimatched": "mnli", "mnlimm": "mnli-mm", "mnlimismatched": "mnli-mm", "diagnostic": "ax",
    "diagnostics": "ax",
}  # fmt: skip


def find_task(name: str | GlueTask) -> GlueTask:
    """A task by any spelling of its name: ``"sst2"``, ``"SST-2"``, ``"sst_2"``.

    Raises
    ------
    DataError
        If there is no such task; the message lists them.
    """
    if isinstance(name, GlueTask):
        return name
    plain = _plain(str(name))
    for task in TASKS.values():
        if plain == task.name.replace("-", ""):
            return task
    if plain in _OTHER_NAMES:
        return TASKS[_OTHER_NAMES[plain]]
    raise DataError(f"task: {name!r} is not one of {', '.join(TASKS)}")
