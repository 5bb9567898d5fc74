"""The machine that looks for faults finds none in a few seconds, and nothing that it once found is back."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuzz import case, mutate, run

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="cannot limit a child's memory")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {part: run.part_named(part, tmp_path_factory.mktemp(part)) for part in case.PARTS}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_kept_cases(parts: dict[str, Any], path: Path) -> None:
    tried = case.load(path)
    outcome = parts[tried["part"]].run(tried)
    assert outcome.problem is None, outcome.problem


@pytest.mark.parametrize("part", case.PARTS)
def test_a_few_cases(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run.main(
        ["--seconds", "600", "--cases", "20", "--seed", "1", "--part", part, "--failures", str(tmp_path)]
    )
    said = capsys.readouterr().out
    assert status == 0 and "0 kinds of faults" in said, said
    assert int(said.split(f"{part}: ")[1].split()[0]) == 20, said


@pytest.mark.parametrize("part", case.PARTS)
def test_a_case_depends_on_its_number_alone(parts: dict[str, Any], part: str) -> None:
    forward = [parts[part].draw(7, number) for number in range(20)]
    assert [parts[part].draw(7, number) for number in reversed(range(20))] == forward[::-1]
    assert [parts[part].draw(8, number) for number in range(20)] != forward


def test_what_a_reader_does_wrong_is_found(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuzz import readers

    def read(path: Path) -> None:
        json.loads(path.read_bytes())["vocab_size"]  # JSONDecodeError, KeyError, ...

    form = readers.Format("model/config.json", readers.JSON, read)
    monkeypatch.setitem(parts["readers"]._formats, "careless", form)
    tried = {"part": "readers", "format": "careless", "text": "{}"}
    outcome = parts["readers"].run(tried)
    assert outcome.problem is not None and "KeyError" in outcome.problem
    file = case.store(tmp_path, "kept", outcome.case, outcome.problem)
    assert case.load(file) == tried and "KeyError" in file.with_suffix(".txt").read_text()


def test_what_a_read_changes_is_found_and_the_sequence_is_shortened(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuzz import world

    def careless(model: Any, rng: np.random.Generator) -> None:
        model.model.parameters["transformer.wte.weight"][0, 0] += 1

    monkeypatch.setitem(world.IDLE, "read", careless)
    actions = [["forward", 1], ["read", 2], ["zero_grad", 3], ["forward", 4]]
    tried = {"part": "sequences", "config": "plain", "dtype": "float32", "actions": actions}
    outcome = parts["sequences"].run(tried)
    assert outcome.problem is not None and "differ" in outcome.problem
    assert outcome.case["actions"] == [["read", 2]]


def test_a_call_that_changes_an_argument_it_refuses_is_found() -> None:
    from fuzz import arguments, calls

    array = np.ones(3, np.float32)

    def careless(values: Any, keep: list[Any] | None = None) -> None:
        if keep is not None:
            keep.append(values)
            return
        values[0] = 2
        raise ValueError("values: no")

    with pytest.raises(case.Fault, match="changed an argument"):
        calls.checked(careless, [array], {})
    kept: list[Any] = []
    with pytest.raises(case.Fault, match="references before"):
        calls.checked(lambda values: careless(values, kept), [array], {})
    with pytest.raises(KeyError):
        calls.checked(lambda values: {}[values], [3], {})
    assert not calls.checked(len, [arguments.Strange("raises", 1, [])], {})


def test_a_process_that_dies_is_found_and_the_loop_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = (
        "import json, os, pathlib, sys; first = sys.argv[sys.argv.index('--first') + 1]; "
        "pathlib.Path(sys.argv[-1], 'current.json').write_text(json.dumps({'part': 'calls', 'number': first})); "
        f"os.kill(os.getpid(), {signal.SIGKILL.value})"
    )
    tally = run.Parent(3, tmp_path, 2, [sys.executable, "-c", child]).run("calls", 600.0)
    assert tally.cases == 2 and "SIGKILL" in capsys.readouterr().out
    assert [case.load(file)["number"] for file in tmp_path.glob("*.json")] == ["0"]


@pytest.mark.parametrize("change", [mutate.mutate_json, mutate.mutate_bytes, mutate.mutate_lines])
def test_mutations_change_something_and_are_repeatable(change: Any) -> None:
    content = b'{"a": [1, 2.5, "x"], "b": {"c": null}}\n'
    made = [change(np.random.default_rng(i), content) for i in range(50)]
    assert made == [change(np.random.default_rng(i), content) for i in range(50)]
    assert len(set(made)) > 25
