"""Which output of a classifier stands for which label: names from files, from tasks and from scikit-learn's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom.errors import ConfigError
from mom.files.weights import read_safetensors, write_safetensors
from mom.glue import TASKS, find_task

WORDS = {
    "rte": ("entailment", "not_entailment"), "mnli": ("entailment", "neutral", "contradiction"),
    "sst2": ("negative", "positive"), "cola": ("unacceptable", "acceptable"), "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"), "wnli": ("not_entailment", "entailment"),
}  # fmt: skip


def rows_of(task: Any) -> list[dict[str, Any]]:
    """Rows whose label can be seen in the text."""
    words = task.labels or ("0",)
    texts = task.hub_texts
    return [
        {**{column: "abc"[i % len(words)] * (3 + i // 9) for column in texts}, "label": i % len(words)}
        for i in range(18)
    ]


@pytest.fixture(scope="module", params=WORDS)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task, its rows, and the folder of a classifier that was fine-tuned on them."""
    task = find_task(request.param)
    rows = rows_of(task)
    body = mom.MoM(mom.MoMConfig.vanilla(1, vocab_size=290, n_positions=48, n_embd=16, n_head=2), seed=0)
    body.tokenizer = mom.Tokenizer.train([" ".join(map(str, row.values())) for row in rows], 290)
    out = tmp_path_factory.mktemp(task.name)
    data = {"train": rows, "dev": rows}
    mom.glue.finetune(body, task, data, epochs=16, patience=0, lr=1e-2, batch_size=6, progress=False, out_dir=out)
    return task, data, out / task.name / "model"


def reordered(folder: Path, target: Path, order: list[int], names: list[str] | None = None) -> Path:
    """The same classifier with its outputs in another order, as another program might have written it."""
    target.mkdir()
    fields = json.loads((folder / "config.json").read_text())
    labels = [fields["id2label"][str(i)] for i in order] if names is None else names
    fields |= {"id2label": {str(i): n for i, n in enumerate(labels)}, "label2id": {n: i for i, n in enumerate(labels)}}
    del fields["finetuning_task"]
    (target / "config.json").write_text(json.dumps(fields))
    tensors = read_safetensors(folder / "model.safetensors")
    write_safetensors(target / "model.safetensors", {**tensors, "score.weight": tensors["score.weight"][order].copy()})
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def test_a_fine_tuned_model_has_the_tasks_names(tuned: Any) -> None:
    task, data, folder = tuned
    fields = json.loads((folder / "config.json").read_text())
    assert fields["id2label"] == {str(i): word for i, word in enumerate(WORDS[task.name])}
    assert mom.MoMForSequenceClassification.from_pretrained(folder).label_names == WORDS[task.name] == task.label_names


def test_the_models_own_order_counts(tuned: Any, tmp_path: Path) -> None:
    task, data, folder = tuned
    wanted, metrics = mom.glue.predict(folder, task, data, "dev"), mom.glue.evaluate(folder, task, data)
    assert len(set(wanted.tolist())) > 1, "an order could not be seen"
    order = list(range(1, task.num_labels)) + [0]
    other = reordered(folder, tmp_path / "other", order)
    assert np.array_equal(mom.glue.predict(other, task, data, "dev"), wanted)
    assert mom.glue.evaluate(other, task, data) == metrics
    with pytest.warns(UserWarning, match="18 rows, but the official test set"):
        paths = [
            mom.glue.write_submission(task, mom.glue.predict(model, task, data, "dev"), tmp_path / name)
            for name, model in (("a", folder), ("b", other))
        ]
    assert paths[0].read_bytes() == paths[1].read_bytes()

    def answers(name: str, names: list[str]) -> Any:
        return mom.glue.predict(reordered(folder, tmp_path / name, order, names), task, data, "dev")

    loud = [task.label_names[i].upper().replace("_", " ") for i in order]
    assert np.array_equal(answers("loud", loud), wanted)
    assert np.array_equal(answers("numbers", list(map(str, order))), wanted)
    plain = [f"LABEL_{i}" for i in range(task.num_labels)]  # names that say nothing: the task's order
    assert np.array_equal(np.array(order)[answers("plain", plain)], wanted)


def test_names_of_other_labels_are_refused(tuned: Any, tmp_path: Path) -> None:
    task, data, folder = tuned
    names = [f"{word} film" for word in task.label_names]
    other = reordered(folder, tmp_path / "other", list(range(task.num_labels)), names)
    for call in (mom.glue.predict, mom.glue.evaluate):
        with pytest.raises(ConfigError, match=f"model: its labels are '{names[0]}', .*set model.label_names = None"):
            call(other, task, data, "dev")
    model = mom.MoMForSequenceClassification.from_pretrained(other)
    model.label_names = None
    assert mom.glue.evaluate(model, task, data) == mom.glue.evaluate(folder, task, data)


def test_a_classifier_with_labels_of_its_own_is_fine_tuned_on_another_task(tuned: Any) -> None:
    task, data, folder = tuned
    model = mom.MoMForSequenceClassification.from_pretrained(folder)
    before = model.label_names
    other = find_task("sst2" if task.name != "sst2" else "cola")
    rows = [{"sentence": f"row {i}", "label": i % 2} for i in range(6)]
    result = mom.glue.finetune(model, other, {"train": rows, "dev": rows}, epochs=1, progress=False)
    assert result.model.label_names == other.label_names and model.label_names == before


def test_scores_have_no_names() -> None:
    assert find_task("stsb").label_names is None
    assert all(len(set(task.label_names or "x")) == task.num_labels for task in TASKS.values())
    assert TASKS["mnli"].outputs_of(("CONTRADICTION", "Neutral", "entailment")) == [2, 1, 0]
    for names in (("entailment", "neutral", "neutral"), ("entailment", "neutral"), ("entailment", "neutral", "3")):
        with pytest.raises(ConfigError, match="those of MNLI-m are 'entailment', 'neutral', 'contradiction'"):
            TASKS["mnli"].outputs_of(names)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (["yes", "no"], ("no", "yes")), ([3, 1], ("1", "3")), ([True, False], ("False", "True")),
        ([0.5, 2.0], ("0.5", "2.0")),
        (["", "no"], None),
    ],
)  # fmt: skip
def test_classes_of_scikit_learn_are_the_names(labels: list[Any], wanted: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    config = mom.MoMConfig.preset("demo", n_embd=16, n_head=2, n_positions=32, vocab_size=290, router_dim=8)
    texts = ["a good film", "a bad film"] * 4
    fitted = mom.TextClassifier(config, epochs=1).fit(texts, labels * 4)
    assert fitted.model_.label_names == wanted
    fitted.model_.save_pretrained(tmp_path)
    again = mom.MoMForSequenceClassification.from_pretrained(tmp_path)
    assert again.label_names == wanted
    swapped = mom.TextClassifier(again, epochs=1).fit(texts, ["x", "a"] * 4)  # a head of its own, with new names
    assert swapped.model_.label_names == ("a", "x") and again.label_names == wanted
