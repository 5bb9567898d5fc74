"""`mom.glue` and ``mom finetune``: every task from its files to metrics, tables and submission files."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import cli, glue
from mom.errors import CheckpointError, ConfigError, DataError, TrainingError
from mom.files.locks import LOCK_FILE
from mom.glue import TASKS, read_glue
from mom.training.adapt import copy_of
from mom.training.finetune import FinetuneInterrupted

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("scipy", reason="SciPy is not installed")

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "glue"
TRAINED = [name for name in TASKS if name != "ax"]
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 4, "progress": False}


@pytest.fixture(scope="module")
def model() -> mom.MoM:
    texts = [text for name in TASKS for row in read_glue(GOLDEN, name, "dev").texts for text in row]
    tokenizer = mom.Tokenizer.train(texts, 320)
    config = mom.MoMConfig.preset(
        "demo", vocab_size=tokenizer.vocab_size, n_positions=40, n_embd=16, n_head=2, router_dim=8, depth_per_chunk=2
    )
    made = mom.MoM(config, seed=0)
    made.tokenizer = tokenizer
    return made


@pytest.mark.filterwarnings("ignore:.*but the official test set")
@pytest.mark.parametrize("name", TRAINED)
def test_every_task_from_files_to_submission(name: str, model: mom.MoM, tmp_path: Path) -> None:
    task = TASKS[name]
    before = {n: v.copy() for n, v in model.parameters.items()}
    result = glue.finetune(model, name, GOLDEN, seeds=(3, 1, 2), out_dir=tmp_path, predict=True, **QUICK)
    assert all(np.array_equal(v, before[n]) for n, v in model.parameters.items()), "the model given is left as it is"
    assert [s.seed for s in result.seeds] == [3, 1, 2] and list(result.metrics) == list(task.metrics)
    for metric in task.metrics:
        assert result.metrics[metric] == np.median([s.metrics[metric] for s in result.seeds])
    assert result.best.score == max(s.score for s in result.seeds)
    assert result.train_rows == len(read_glue(GOLDEN, name)) and result.examples_per_second > 0

    saved = mom.MoMForSequenceClassification.from_pretrained(tmp_path / name / "model")
    assert saved.config.num_labels == task.num_labels and saved.tokenizer.sha256 == model.tokenizer.sha256
    assert glue.evaluate(saved, name, GOLDEN) == glue.evaluate(tmp_path / name / "model", name, GOLDEN)
    assert glue.evaluate(saved, name, GOLDEN) == pytest.approx(result.best.metrics)
    written = json.loads((tmp_path / name / "results.json").read_text())
    assert written["metrics"] == result.metrics and written["config"]["epochs"] == 1 and len(written["seeds"]) == 3

    also = ("mnli-mm", "ax") if name == "mnli" else ()
    assert [p.name for p in result.submissions] == [TASKS[n].submission for n in (name, *also)]
    assert sorted(result.other_metrics) == sorted(also)
    test = read_glue(GOLDEN, name, "test")
    lines = (tmp_path / "submission" / task.submission).read_text().split("\n")
    assert lines[0] == "index\tprediction" and lines[-1] == "" and len(lines) == len(test) + 2
    answers = glue.predict(saved, name, GOLDEN)
    for i, line in enumerate(lines[1:-1]):
        number, word = line.split("\t")
        assert int(number) == test.index[i]
        if task.labels is None:
            assert float(word) == pytest.approx(min(5.0, max(0.0, answers[i])), abs=6e-4)
        else:
            assert word == task.labels[answers[i]]


def test_models_by_path_and_language_models_are_told_apart(model: mom.MoM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "lm")
    by_path = glue.finetune(tmp_path / "lm", "rte", GOLDEN, **QUICK)
    in_memory = glue.finetune(model, "rte", GOLDEN, **QUICK)
    assert by_path.to_dict()["seeds"][0]["loss"] == in_memory.to_dict()["seeds"][0]["loss"]
    assert by_path.folder is None and repr(by_path).startswith("<GlueResult RTE: accuracy ")
    with pytest.raises(DataError, match="lm: a language model without a classification head; fine-tune it first"):
        glue.evaluate(tmp_path / "lm", "rte", GOLDEN)
    with pytest.raises(TypeError, match="model: expected MoMForSequenceClassification or a path, got MoM"):
        glue.evaluate(model, "rte", GOLDEN)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="model: has 2 labels, MNLI-m has 3"):
        glue.evaluate(by_path.model, "mnli", GOLDEN)


def test_a_learnable_task_is_learnt(model: mom.MoM) -> None:
    rng = np.random.default_rng(0)
    words = ["the", "a", "lamp", "door", "fell", "over", "again"]

    def rows(count: int) -> list[dict[str, Any]]:
        made = []
        for i in range(count):
            text = [*rng.choice(words, 6)]
            text.insert(int(rng.integers(0, 6)), "joy" if i % 2 else "flat")
            made.append({"sentence": " ".join(text), "label": i % 2})
        return made

    result = glue.finetune(
        model, "sst2", {"train": rows(200), "dev": rows(60)}, epochs=8, batch_size=20, lr=0.01, progress=False
    )
    assert result.metrics["accuracy"] > 0.95 and result.baseline["accuracy"] == 0.5


class Listener:
    """Counts; `at` the so many-th record it raises."""

    def __init__(self, at: int = -1) -> None:
        self.seeds: list[int] = []
        self.closed, self.at = 0, at

    def record(self, record: dict[str, Any]) -> None:
        self.seeds.append(record["seed"])
        if len(self.seeds) == self.at:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed += 1


def test_routers_that_cannot_learn_are_said_once_for_all_seeds(model: mom.MoM) -> None:
    single = copy_of(model, mom.MoM, routing_top_k=1)
    for body, train, count in ((single, "all", 1), (single, "routers", 1), (single, "head", 0), (model, "all", 0)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mom.glue.finetune(body, "cola", GOLDEN, seeds=(0, 1), train=train, max_steps=1, progress=False)
        assert len(caught) == count, [str(warning.message) for warning in caught]
        for warning in caught:
            assert f"train: '{train}' trains" in str(warning.message) and warning.filename == __file__


def test_what_train_only_froze_is_said_once_to_be_trained(model: mom.MoM) -> None:
    frozen = copy.deepcopy(model)
    frozen.train_only("*.router.*")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        glue.finetune(frozen, "rte", GOLDEN, seeds=(0, 1), **QUICK)
    said = [entry for entry in caught if "train_only has frozen" in str(entry.message)]
    assert len(said) == 1 and "pass train='routers'" in str(said[0].message) and said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*train_only")
        glue.finetune(frozen, "rte", GOLDEN, train="routers", **QUICK)
        glue.finetune(model, "rte", GOLDEN, **QUICK)


def test_callbacks_hear_of_every_seed_and_are_closed_once(model: mom.MoM) -> None:
    listener = Listener()
    glue.finetune(model, "rte", GOLDEN, seeds=(4, 5), callbacks=(c for c in [listener]), **QUICK)
    assert set(listener.seeds) == {4, 5} and listener.closed == 1


def test_a_second_run_into_the_same_folder_is_refused(model: mom.MoM, tmp_path: Path) -> None:
    """The folder is that of the task, so several tasks may go into one folder at the same time."""
    done: list[str] = []

    def within(name: str) -> Any:
        class Within:
            def record(self, record: dict[str, Any]) -> None:
                if name not in done:
                    done.append(name)
                    glue.finetune(model, name, GOLDEN, out_dir=tmp_path, **QUICK)

            def close(self) -> None:
                pass

        return Within()

    with pytest.raises(TrainingError, match=rf"^out_dir: \S*cola is in use by process {os.getpid()} on \S+; wait"):
        glue.finetune(model, "cola", GOLDEN, out_dir=tmp_path, callbacks=[within("cola")], **QUICK)
    glue.finetune(model, "cola", GOLDEN, out_dir=tmp_path, callbacks=[within("rte")], **QUICK)
    for name in ("cola", "rte"):
        assert (tmp_path / name / "model" / "config.json").exists() and not (tmp_path / name / LOCK_FILE).exists()


def test_an_interrupted_run_keeps_the_best_model_so_far(model: mom.MoM, tmp_path: Path) -> None:
    listener = Listener(3)  # a step and an evaluation of the first seed, then a step of the second
    with pytest.raises(KeyboardInterrupt):
        glue.finetune(model, "rte", GOLDEN, seeds=(4, 5), out_dir=tmp_path, callbacks=[listener], **QUICK)
    assert listener.closed == 1
    first = glue.finetune(model, "rte", GOLDEN, seeds=(4,), **QUICK)
    assert glue.evaluate(tmp_path / "rte" / "model", "rte", GOLDEN) == first.metrics
    written = json.loads((tmp_path / "rte" / "results.json").read_text())
    assert [(s["seed"], s["interrupted"]) for s in written["seeds"]] == [(4, False)]


def test_an_interrupted_seed_counts_from_its_first_evaluation(model: mom.MoM, tmp_path: Path) -> None:
    settings = {**QUICK, "epochs": 5, "eval_every": 1, "lr": 0.01, "patience": 0}
    with pytest.raises(FinetuneInterrupted, match="before any evaluation$"):
        glue.finetune(model, "rte", GOLDEN, out_dir=tmp_path, callbacks=[Listener(1)], **settings)
    assert not (tmp_path / "rte").exists()

    with pytest.raises(FinetuneInterrupted) as caught:  # three steps with their evaluations, then one step
        glue.finetune(model, "rte", GOLDEN, seeds=(4, 5), out_dir=tmp_path, callbacks=[Listener(7)], **settings)
    loop = caught.value.loop
    assert str(caught.value).startswith("rte seed 4: step 4/") and str(caught.value).endswith(
        f"seed 4 is the best so far, kept in {tmp_path / 'rte' / 'model'}"
    )
    written = json.loads((tmp_path / "rte" / "results.json").read_text())
    (seed,) = written["seeds"]
    assert seed["interrupted"] and (seed["seed"], seed["steps"], seed["best_step"]) == (4, 4, loop.best_step)
    assert glue.evaluate(tmp_path / "rte" / "model", "rte", GOLDEN) == {"accuracy": loop.best_score}
    assert seed["accuracy"] == loop.best_score == max(score for _, score in loop.history) and len(loop.history) == 3


def test_ctrl_c_says_what_is_kept(
    model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "lm")
    step, calls = mom.AdamW.step, []

    def stopped(*arguments: Any, **changes: Any) -> float:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*arguments, **changes)

    monkeypatch.setattr(mom.AdamW, "step", stopped)
    out = tmp_path / "out"
    command = ["finetune", "--task", "rte", "--model", str(tmp_path / "lm"), "--data", str(GOLDEN), "--batch_size", "1",
               "--eval_every", "1", "--out_dir", str(out)]  # fmt: skip
    assert cli.main(command) == 130 and len(calls) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    folder = out / "rte" / "model"
    assert said.startswith("mom: interrupted; rte seed 0: step 2/") and said.endswith(f"kept in {folder}")
    written = json.loads((out / "rte" / "results.json").read_text())
    assert glue.evaluate(folder, "rte", GOLDEN) == written["metrics"]


def test_sigterm_ends_the_command_with_the_best_weights_kept(model: mom.MoM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "lm")
    command = ["finetune", "--task", "rte", "cola", "--model", str(tmp_path / "lm"), "--data", str(GOLDEN), "--epochs",
               "100000", "--patience", "0", "--out_dir", str(tmp_path / "out")]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "mom", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "dev score" not in (line := process.stderr.readline()):
        assert line, "the command has ended"
    process.terminate()
    _, err = process.communicate(timeout=60)
    folder = tmp_path / "out" / "rte" / "model"
    last = err.splitlines()[-1]
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in err
    assert last.startswith("mom: interrupted by SIGTERM; rte seed 0: step ") and last.endswith(f"kept in {folder}")
    written = json.loads((folder.parent / "results.json").read_text())
    assert written["interrupted"] == "SIGTERM" and written["seeds"][0]["interrupted"]
    assert glue.evaluate(folder, "rte", GOLDEN) == written["metrics"]
    assert not (tmp_path / "out" / "cola").exists()


def test_a_signal_after_training_keeps_results_and_ends_the_command(
    model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(glue.finetuning, "_metrics_of", killed)
    model.save_pretrained(tmp_path / "lm")
    command = ["finetune", "--task", "rte", "mnli", "cola", "--model", str(tmp_path / "lm"), "--data", str(GOLDEN),
               "--epochs", "1", "--seeds", "0", "1", "--out_dir", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(command) == 143
    out, err = capsys.readouterr()
    assert "mom: interrupted by SIGTERM; mnli: 2 of 2 seeds trained; seed" in err.splitlines()[-1]
    assert "\nRTE " in out and "MNLI" not in out, "tasks that were done before are in the table"
    written = json.loads((tmp_path / "out" / "mnli" / "results.json").read_text())
    assert written["interrupted"] == "SIGTERM" and len(written["seeds"]) == 2 and written["other"] == {}
    assert not (tmp_path / "out" / "cola").exists()
    assert json.loads((tmp_path / "out" / "rte" / "results.json").read_text())["interrupted"] is None


def test_a_model_knows_its_task(model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    glue.finetune(model, "rte", GOLDEN, out_dir=tmp_path, **QUICK)
    folder = tmp_path / "rte" / "model"
    assert json.loads((folder / "config.json").read_text())["finetuning_task"] == "rte"
    tuned = mom.MoMForSequenceClassification.from_pretrained(folder)
    assert tuned.finetuning_task == "rte" and copy.deepcopy(tuned).finetuning_task == "rte"
    for name in ("wnli", "qnli"):  # these have two labels, too
        for given in (tuned, folder):
            with pytest.raises(ConfigError, match=f"model: was fine-tuned for RTE, not for {TASKS[name].title}"):
                glue.evaluate(given, name, GOLDEN)
        assert cli.main(["evaluate", "--task", name, "--model", str(folder), "--data", str(GOLDEN)]) == 1
        assert "error: model: was fine-tuned for RTE, not for" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="model: was fine-tuned for RTE, not for XSUM"):
        mom.xsum.evaluate(folder, GOLDEN.parent / "xsum")

    tuned.finetuning_task = None  # on purpose, then
    assert set(glue.evaluate(tuned, "wnli", GOLDEN)) == {"accuracy"}
    tuned.finetuning_task = "somebody else's"
    assert set(glue.evaluate(tuned, "qnli", GOLDEN)) == {"accuracy"}
    again = glue.finetune(folder, "wnli", GOLDEN, **QUICK)
    assert again.model.finetuning_task == "wnli" and set(glue.evaluate(again.model, "wnli", GOLDEN)) == {"accuracy"}


def test_a_model_knows_the_length_it_was_tuned_with(model: mom.MoM, tmp_path: Path) -> None:
    result = glue.finetune(model, "stsb", GOLDEN, out_dir=tmp_path, max_length=7, **QUICK)
    folder = tmp_path / "stsb" / "model"
    loaded = mom.MoMForSequenceClassification.from_pretrained(folder)
    assert loaded.finetuning_lengths == copy.deepcopy(loaded).finetuning_lengths == {"max_length": 7}
    wanted = result.best.metrics
    assert glue.evaluate(folder, "stsb", GOLDEN) == glue.evaluate(loaded, "stsb", GOLDEN, max_length=7) == wanted
    short = glue.predict(folder, "stsb", GOLDEN, "dev")
    assert not np.array_equal(glue.predict(folder, "stsb", GOLDEN, "dev", max_length=40), short)


def test_a_model_of_mnli_answers_its_other_sets(model: mom.MoM) -> None:
    tuned = glue.finetune(model, "mnli", GOLDEN, **QUICK)
    for name in ("mnli-mm", "ax"):
        assert glue.evaluate(tuned.model, name, GOLDEN) == tuned.other_metrics[name]


def test_missing_metrics_are_said_before_training(model: mom.MoM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    listener = Listener()
    with pytest.raises(ImportError, match="needs the package scikit-learn"):
        glue.finetune(model, "rte", GOLDEN, callbacks=[listener], **QUICK)
    assert not listener.seeds


def test_unusable_rows_are_left_out_only_on_request(model: mom.MoM) -> None:
    good = [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}]
    data = {"train": [*good, {"sentence": "c", "label": 7}], "dev": good}
    with pytest.raises(DataError, match="1 of 3 rows cannot be used"):
        glue.finetune(model, "cola", data, **QUICK)
    with pytest.warns(UserWarning, match="1 of 3 rows cannot be used"):
        assert glue.finetune(model, "cola", data, on_error="skip", **QUICK).train_rows == 2


def test_one_iterator_for_two_sets_is_named(model: mom.MoM) -> None:
    rows = [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}]
    shared = (row for row in rows)
    with pytest.raises(DataError, match="data: 'train' and 'dev' are one iterator, which gives its rows once"):
        glue.finetune(model, "cola", {"train": shared, "dev": shared}, **QUICK)
    assert next(shared) is rows[0], "nothing was read"
    apart = {"train": iter(rows), "dev": iter(rows)}
    assert glue.finetune(model, "cola", apart, **QUICK).train_rows == 2
    with pytest.raises(DataError, match="CoLA train: no rows; an iterator gives its rows once: was it used before?"):
        glue.finetune(model, "cola", apart, **QUICK)
    assert glue.finetune(model, "cola", {"train": rows, "dev": rows}, **QUICK).train_rows == 2
    shared = iter([{"document": "a", "summary": "b"}])
    with pytest.raises(DataError, match="data: 'train' and 'validation' are one iterator"):
        mom.xsum.finetune(model, {"train": shared, "validation": shared}, **QUICK)


def test_what_readers_left_out_is_printed(
    model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "lm")
    shutil.copytree(GOLDEN / "RTE", tmp_path / "data" / "RTE")
    path = tmp_path / "data" / "RTE" / "train.tsv"
    path.write_bytes(path.read_bytes() + b"only one column\n")
    kept = len(read_glue(GOLDEN, "rte"))
    command = ("finetune", "--task", "rte", "--model", tmp_path / "lm", "--data", tmp_path / "data", "--max_steps", 1,
               "--out_dir", tmp_path / "out", "--on_error")  # fmt: skip
    status, _, err = run(capsys, *command, "skip")
    assert status == 0 and f"{path}: {kept + 1} rows, {kept} kept; left out: 1 columns\n" in err
    status, _, err = run(capsys, *command, "raise")
    assert status == 1 and "1 columns" in err and "left out" not in err


NLI = [{"premise": "a lamp", "hypothesis": f"a {word}", "label": i} for i, word in enumerate(("lamp", "cat", "box"))]


@pytest.mark.filterwarnings("ignore:.*but the official test set")
def test_only_sets_under_names_of_their_own_are_answered_beside_mnli(model: mom.MoM, tmp_path: Path) -> None:
    def others(data: Any, **changes: Any) -> list[str]:
        return sorted(glue.finetune(model, "mnli", data, **QUICK, **changes).other_metrics)

    own = {"train": NLI, "dev": NLI, "test": NLI}
    assert others(own) == []
    with pytest.warns(UserWarning, match="predict: the data hold no test set") as said:
        result = glue.finetune(model, "mnli", own, out_dir=tmp_path / "out", predict=True, **QUICK)
    missing = sorted(str(w.message) for w in said if "predict: " in str(w.message))
    assert missing == [
        f"predict: the data hold no test set of {title}, so there will be no {title}.tsv" for title in ("AX", "MNLI-mm")
    ]
    assert [path.name for path in result.submissions] == ["MNLI-m.tsv"]
    assert others({"train": NLI, "validation_matched": NLI, "validation_mismatched": NLI}) == ["mnli-mm"]
    assert others(GOLDEN / "MNLI") == ["mnli-mm"] and others(GOLDEN) == ["ax", "mnli-mm"]


@pytest.mark.filterwarnings("ignore:.*but the official test set")
def test_mnli_from_the_hubs_files_where_ax_has_no_labels(model: mom.MoM, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    hidden = [{**row, "label": -1} for row in NLI]
    for name, rows in (("mnli/train", NLI), ("mnli/validation_matched", NLI), ("mnli/validation_mismatched", NLI),
                       ("mnli/test_matched", hidden), ("ax/test", hidden)):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}-00000-of-00001.parquet")
    with pytest.warns(UserWarning, match="no test set of MNLI-mm, so there will be no MNLI-mm.tsv"):
        result = glue.finetune(model, "mnli", tmp_path, out_dir=tmp_path / "out", predict=True, **QUICK)
    assert list(result.other_metrics) == ["mnli-mm"]
    assert [path.name for path in result.submissions] == ["MNLI-m.tsv", "AX.tsv"]


def test_unusable_rows_of_further_dev_sets_are_left_out_on_request(model: mom.MoM, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "glue")
    path = tmp_path / "glue" / "MNLI" / "dev_mismatched.tsv"
    path.write_bytes(path.read_bytes() + b"only one column\n")
    with pytest.raises(DataError, match="1 of 4 rows cannot be used"):
        glue.finetune(model, "mnli", tmp_path / "glue", **QUICK)
    with pytest.warns(UserWarning, match="1 of 4 rows cannot be used"):
        glue.finetune(model, "mnli", tmp_path / "glue", on_error="skip", **QUICK)


def test_what_does_not_fit_is_said_before_training(model: mom.MoM, tmp_path: Path) -> None:
    for changes, kind, message in (
        ({"task": "ax"}, DataError, "task: AX has no train set; fine-tune on mnli"),
        ({"predict": True}, ConfigError, "predict: needs an out_dir"),
        ({"seeds": ()}, ConfigError, "seeds: expected one or more distinct integers"),
        ({"seeds": (1, 1)}, ConfigError, "seeds: expected one or more distinct integers"),
        ({"max_length": 41}, ConfigError, "max_length: 41 is more than the model's n_positions = 40"),
        ({"layers": 2}, ConfigError, "layers: unknown fine-tuning field"),
        ({"data": GOLDEN / "CoLA" / "train.tsv"}, ConfigError, "data: .*train.tsv is one file; a folder or a mapping"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message):
            glue.finetune(**{"model": model, "task": "cola", "data": GOLDEN, **QUICK, **changes})
    with pytest.raises(DataError, match="tokenizer: the model has none"):
        glue.finetune(mom.MoM(model.config), "cola", GOLDEN, **QUICK)
    shutil.copytree(GOLDEN / "RTE", tmp_path / "data" / "RTE")
    (tmp_path / "data" / "RTE" / "test.tsv").unlink()
    with pytest.raises(DataError, match="RTE: holds no test.tsv"):
        glue.finetune(model, "rte", tmp_path / "data", out_dir=tmp_path / "out", predict=True, **QUICK)
    (tmp_path / "out" / "rte" / "model").mkdir(parents=True)
    (tmp_path / "out" / "rte" / "model" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match="holds 'thesis.tex'"):
        glue.finetune(model, "rte", GOLDEN, out_dir=tmp_path / "out", **QUICK)


# ---------------------------------------------------------------------- submissions
OFFICIAL = {  # names and numbers of rows of the site's sample submission
    "cola": ("CoLA.tsv", 1063, "0"), "sst2": ("SST-2.tsv", 1821, "0"), "mrpc": ("MRPC.tsv", 1725, "0"),
    "stsb": ("STS-B.tsv", 1379, "0.000"), "qqp": ("QQP.tsv", 390965, "0"), "mnli": ("MNLI-m.tsv", 9796, "entailment"),
    "mnli-mm": ("MNLI-mm.tsv", 9847, "entailment"), "qnli": ("QNLI.tsv", 5463, "entailment"),
    "rte": ("RTE.tsv", 3000, "entailment"), "wnli": ("WNLI.tsv", 146, "0"), "ax": ("AX.tsv", 1104, "entailment"),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_submission_files_have_the_sites_form(name: str, tmp_path: Path) -> None:
    file, rows, first = OFFICIAL[name]
    answers = np.zeros(rows, float if name == "stsb" else int)
    answers[-1] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = glue.write_submission(name, answers, tmp_path / "new")
    lines = path.read_text().splitlines()
    assert path.name == file and lines[:2] == ["index\tprediction", f"0\t{first}"] and len(lines) == rows + 1
    assert lines[-1].startswith(f"{rows - 1}\t")


def test_submissions_of_another_length_are_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="WNLI.tsv: 2 rows, but the official test set of WNLI has 146"):
        path = glue.write_submission("wnli", [1, 0], tmp_path, index=[5, 9])
    assert path.read_text() == "index\tprediction\n5\t1\n9\t0\n"
    with pytest.warns(UserWarning):
        assert glue.write_submission("stsb", [7.0, -1.0], tmp_path).read_text().split() == [
            "index", "prediction", "0", "5.000", "1", "0.000",
        ]  # fmt: skip
    for task, answers, index, message in (
        ("rte", [2], None, r"predictions: expected integers in \[0, 2\)"),
        ("rte", [0.5], None, "predictions: expected integers"), ("rte", [], None, r"shape \(0,\)"),
        ("stsb", [np.nan], None, "not all are finite"), ("rte", [1], [1, 2], "index: 2 numbers for 1 predictions"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            glue.write_submission(task, answers, tmp_path, index)


@pytest.mark.filterwarnings("ignore:.*but the official test set")
@pytest.mark.parametrize("name, answers, word", [("rte", [1, 1, 1], "not_entailment"), ("stsb", [7.0, 6.0], "5.000")])
def test_a_submission_of_equal_answers_is_warned_of(name: str, answers: Any, word: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"{TASKS[name].submission}: all {len(answers)} answers are '{word}'"):
        glue.write_submission(name, answers, tmp_path)
    with warnings.catch_warnings():  # a single row says nothing about the model
        warnings.filterwarnings("error", message=".*answers are")
        glue.write_submission(name, answers[:1], tmp_path)


# ---------------------------------------------------------------------- the command
def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_prints_a_table_over_tasks(
    model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "lm")
    out_dir = tmp_path / "out"
    flags = ("--model", tmp_path / "lm", "--data", GOLDEN, "--epochs", 1, "--batch-size", 4, "--lr", 0.001)
    status, out, err = run(
        capsys, "finetune", "--task", "cola", "mrpc", *flags, "--out_dir", out_dir, "--seeds", 1, 2, "--predict",
        "--activation_checkpointing",
    )
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split() == "task metric median lowest highest baseline seeds train dev".split()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["CoLA", "matthews"], ["MRPC", "f1"], ["MRPC", "accuracy"], ["mean", "score"],
    ]  # fmt: skip
    assert lines[5:] == [f"submission {out_dir / 'submission' / name}" for name in ("CoLA.tsv", "MRPC.tsv")]
    assert "cola seed 1: step 2/2 loss " in err and "examples/s" in err and "but the official test set" in err
    for name, task_name, split in (("CoLA", "cola", "train"), ("MRPC", "mrpc", "dev"), ("MRPC", "mrpc", "test")):
        line = read_glue(GOLDEN, task_name, split).report.summary()
        assert err.count(f"{line}\n") == 1 and line.startswith(f"{GOLDEN / name / split}.tsv: ")

    expected = glue.evaluate(out_dir / "mrpc" / "model", "mrpc", GOLDEN)
    evaluate = ("evaluate", "--task", "mrpc", "--model", out_dir / "mrpc" / "model", "--data", GOLDEN)
    status, out, _ = run(capsys, *evaluate)
    assert status == 0 and out.split() == ["f1", f"{100 * expected['f1']:.2f}", "accuracy",
                                           f"{100 * expected['accuracy']:.2f}"]  # fmt: skip
    assert json.loads(run(capsys, *evaluate, "--json")[1]) == expected


def test_the_command_takes_all_of_glue(model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "lm")
    status, out, err = run(
        capsys, "finetune", "--task", "glue", "cola", "--model", tmp_path / "lm", "--data", GOLDEN, "--max_steps", 1,
        "--out_dir", tmp_path / "out", "--progress", "false", "--train", "routers",
    )  # fmt: skip
    assert status == 0, err
    assert {line.split()[0] for line in out.splitlines()[1:]} == {t.title for t in TASKS.values()} | {"mean"}
    assert out.count("CoLA") == 1, "a task that is named twice is done once"


def test_command_errors(model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "lm")
    flags = ("--model", tmp_path / "lm", "--out_dir", tmp_path / "out")
    for words, message in (
        (("--task", "imdb", "--data", GOLDEN), "task: 'imdb' is not one of cola"),
        (("--task", "cola", "--data", tmp_path), "holds no train.tsv"),
        (("--task", "cola", "--data", GOLDEN, "--train", "x"), "train: 'x' is not one of"),
    ):
        status, _, err = run(capsys, "finetune", *flags, *words)
        assert status == 1 and message in err
    status, _, err = run(capsys, "evaluate", "--model", tmp_path / "lm", "--task", "cola", "--text", tmp_path)
    assert status == 1 and "task: needs --data" in err


def test_the_command_takes_settings_from_a_file_and_resumes(
    model: mom.MoM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "lm")
    file = tmp_path / "tune.toml"
    file.write_text("[finetune]\nepochs = 1\nbatch_size = 4\nwarmup = 0.5\nlr = 0.01\n")
    command = ["finetune", "--task", "rte", "--model", tmp_path / "lm", "--data", GOLDEN, "--out_dir", tmp_path / "out",
               "--config", file, "--lr", 0.002, "--run_dir", tmp_path / "run"]  # fmt: skip
    status, out, err = run(capsys, *command)
    assert status == 0, err
    written = json.loads((tmp_path / "out" / "rte" / "results.json").read_text())
    config = written["config"]
    assert [config[name] for name in ("epochs", "batch_size", "warmup", "lr")] == [1, 4, 0.5, 0.002]
    assert (tmp_path / "run" / "rte" / "seed-0" / "log.jsonl").is_file()

    status, _, err = run(capsys, *command)
    assert status == 1 and "already holds checkpoints; use resume" in err
    status, again, _ = run(capsys, *command, "--resume")
    assert (status, again) == (0, out)
    assert json.loads((tmp_path / "out" / "rte" / "results.json").read_text())["seeds"] == written["seeds"]
    status, _, err = run(capsys, *command, "--resume", "--warmup", "1")  # a step
    assert status == 1 and "belongs to another run: warmup was 0.5 and is now 1." in err
    status, _, err = run(capsys, *command, "--resume", "--warmup", "1", "--allow_changes")
    assert status == 0 and "resume: warmup was 0.5 and is now 1" in err
    file.write_text("epoch = 1\n")
    status, _, err = run(capsys, *command, "--resume")
    assert status == 1 and err == f"mom: error: {file}: epoch: unknown fine-tuning field; did you mean 'epochs'?\n"
