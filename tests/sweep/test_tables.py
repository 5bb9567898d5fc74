"""Tables, comparisons and curves of a sweep's folder."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_grid

import mom
from mom.sweep import compare, plot, read_grid, table
from mom.sweep.pictures import curve
from mom.sweep.trial import read_records

pytest.importorskip("pandas")

#: Validation losses of two variants by seed.
LOSSES = {"one": [2.0, 2.25, 1.75], "two": [1.5, 2.0, 1.0]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_grid.write_data(tmp_path_factory.mktemp("tables") / "data")


@pytest.fixture
def runs(data: Path, tmp_path: Path) -> Path:
    """The folder of a sweep whose trials were not trained: two variants, three seeds."""
    variant = [{"name": "one", "routing_top_k": 1}, {"name": "two"}]
    write(tmp_path / "runs", small_grid.grid(data, {"seed": [0, 1, 2]}, variant=variant), LOSSES)
    return tmp_path / "runs"


def write(folder: Path, grid: dict[str, Any], losses: dict[str, list[float]]) -> None:
    for trial in read_grid(grid).trials():
        own = folder / trial.hash
        own.mkdir(parents=True)
        values = {**trial.to_dict(), "names": [trial.name] if trial.name else []}
        (own / "config.json").write_text(json.dumps(values))
        loss = losses[trial.name or trial.label][trial.seed]
        done = {"val_loss": loss, "best_val_loss": loss - 0.5, "seconds": 3.0, "routes": {"ffn": {"skip": 0.25}}}
        (own / "done.json").write_text(json.dumps({**done, "stopped_early": False, "version": "1"}))
        lines = [{"kind": "train", "step": 1, "lm_loss": 9.0}]
        lines += [{"kind": "eval", "step": step, "val_loss": loss + 1 / step} for step in (4, 8)]
        (own / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "ev')


def test_a_row_per_setting_with_mean_and_spread(runs: Path) -> None:
    found = table(runs)
    assert list(found.columns) == [
        "name", "routing_top_k", "n", "val_loss", "val_loss_sd", "best_val_loss", "best_val_loss_sd",
        "routes.ffn.skip", "routes.ffn.skip_sd",
    ]  # fmt: skip
    assert list(found["name"]) == ["two", "one"] and list(found["n"]) == [3, 3]
    for _, row in found.iterrows():
        assert row["val_loss"] == pytest.approx(statistics.mean(LOSSES[row["name"]]))
        assert row["val_loss_sd"] == pytest.approx(statistics.stdev(LOSSES[row["name"]]))
    assert list(table(runs, ["seconds"]).columns) == ["name", "routing_top_k", "n", "seconds", "seconds_sd"]


def test_seeds_that_come_later_belong_to_their_rows(runs: Path, data: Path) -> None:
    write(runs, small_grid.grid(data, {"seed": [3]}, variant=[{"name": "two"}]), {"two": [0, 0, 0, 3.5]})
    found = table(runs)
    assert dict(zip(found["name"], found["n"], strict=True)) == {"two": 4, "one": 3}
    assert found["val_loss"][list(found["name"]).index("two")] == 2.0


def test_the_table_depends_on_the_folders_alone(runs: Path, tmp_path: Path) -> None:
    for number, trial in enumerate(sorted(runs.iterdir())):
        shutil.copytree(trial, tmp_path / f"machine-{number % 2}" / trial.name)
    for number in (1, 0):
        shutil.copytree(tmp_path / f"machine-{number}", tmp_path / "merged", dirs_exist_ok=True)
    (tmp_path / "merged" / "notes").mkdir()
    (tmp_path / "merged" / "notes.txt").write_text("not a trial")
    assert table(tmp_path / "merged").equals(table(runs))


def test_one_trial_has_no_spread_and_unfinished_ones_do_not_count(runs: Path) -> None:
    first, second, *rest = sorted(runs.glob("*/done.json"))
    for path in rest:
        path.unlink()
    assert set(table(runs)["n"]) in ({1}, {2})
    second.unlink()
    found = table(runs)
    assert list(found["n"]) == [1] and math.isnan(found["val_loss_sd"][0])
    first.unlink()
    with pytest.raises(mom.ConfigError, match="no trial in .* is done"):
        table(runs)
    with pytest.raises(mom.ConfigError, match="dir: .* is not a folder"):
        table(runs / "nothing")


def test_plain_models_have_no_fields_of_routing(data: Path, tmp_path: Path) -> None:
    variant = [{"name": "gpt2", "vanilla": True}, {"name": "one", "routing_top_k": 1}, {"name": "two"}]
    write(tmp_path / "runs", small_grid.grid(data, {}, variant=variant), {**LOSSES, "gpt2": [1.0]})
    found = table(tmp_path / "runs")
    assert list(found["name"]) == ["gpt2", "two", "one"] and list(found["routing_top_k"]) == [None, 2, 1]
    assert "router_dim" not in found.columns


# ------------------------------------------------------------------ comparisons
def test_pairs_have_equal_seeds(runs: Path) -> None:
    found = compare(runs, "one", "two")
    differences = [0.5, 0.25, 0.75]
    assert list(found.table["seed"]) == [0, 1, 2] and list(found.table["difference"]) == differences
    assert found.n == 3 and found.difference == pytest.approx(0.5)
    reach = 4.302652729749464 * statistics.stdev(differences) / math.sqrt(3)  # t of two degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.5 - reach, 0.5 + reach))
    assert repr(found) == (
        f"<Comparison: val_loss of one minus two: +0.5000 (95 % from {found.low:+.4f} to {found.high:+.4f}, 3 pairs)>"
    )
    assert "<td" in found._repr_html_()
    by_fields = compare(runs, {"routing_top_k": 1}, {"routing_top_k": 2}, value="best_val_loss", interval="bootstrap")
    assert by_fields.difference == pytest.approx(0.5) and 0.25 <= by_fields.low < 0.5 < by_fields.high <= 0.75


def test_other_fields_that_vary_are_equal_in_a_pair(data: Path, tmp_path: Path) -> None:
    axes = {"lr": [0.1, 0.2], "routing_top_k": [1, 2], "seed": [0]}
    labels = [f"lr={lr} routing_top_k={k} seed=0" for lr in (0.1, 0.2) for k in (1, 2)]
    write(tmp_path / "runs", small_grid.grid(data, axes), dict(zip(labels, [[1.0], [2.0], [4.0], [8.0]], strict=True)))
    found = compare(tmp_path / "runs", {"routing_top_k": 2}, {"routing_top_k": 1})
    assert list(found.table["difference"]) == [1.0, 4.0] and list(found.table["lr"]) == [0.1, 0.2]
    single = compare(tmp_path / "runs", {"routing_top_k": 2, "lr": 0.1}, {"routing_top_k": 1, "lr": 0.1})
    assert single.n == 1 and math.isnan(single.low) and "one pair, so no interval" in repr(single)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (("one", "three"), {}, "b: no trial that is done has the name 'three'; the folder has one, two"),
        (("one", {"routing_topk": 1}), {}, "b: routing_topk: unknown field; did you mean 'routing_top_k'"),
        (("one", {"routing_top_k": 5}), {}, "b: no trial that is done has routing_top_k=5"),
        (("one", "two"), {"value": "val_los"}, "has no 'val_los'; did you mean 'val_loss'"),
        (("one", "two"), {"interval": "f"}, "interval: 'f' is not one of 't', 'bootstrap'"),
        (({"seed": 0}, {"seed": 1}), {}, "no trial of seed=0 has the seed and routing_top_k of one of seed=1"),
    ],
)  # fmt: skip
def test_comparisons_that_are_refused(runs: Path, arguments: Any, more: Any, message: str) -> None:
    with pytest.raises(mom.ConfigError, match=message):
        compare(runs, *arguments, **more)


# ------------------------------------------------------------------ curves
def test_curves_are_means_over_seeds_with_bands(runs: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = plot(runs)
    (axis,) = figure.axes
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"one (n=3)", "two (n=3)"} and axis.get_xlabel() == "tokens"
    two = lines["two (n=3)"]
    np.testing.assert_allclose(two.get_xdata(), [4 * 2 * 16, 8 * 2 * 16])
    np.testing.assert_allclose(two.get_ydata(), [1.75, 1.625])
    first = {"sd": 0.5, "range": 0.5}
    for band, reach in first.items():
        (axis,) = plot(runs, ["two"], band=band, x="steps").axes
        low, high = np.ptp([v[0] for v in axis.collections[0].get_paths()[0].vertices]), axis.collections[0]
        ys = high.get_paths()[0].vertices[:, 1]
        assert low == 4 and ys.max() == pytest.approx(1.75 + reach) and axis.get_xlabel() == "steps"
    assert axis.get_legend() is None


def test_a_curve_leaves_out_half_a_line(runs: Path) -> None:
    record = next(iter(read_records(runs)))
    assert list(curve(record, x="steps")) == [4, 8]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x": "epochs"}, "x: 'epochs' is not one of 'tokens', 'steps'"),
        ({"band": "se"}, "band: 'se' is not one of 'sd', 'range'"),
        ({"value": "score"}, "no trial in .* has an evaluation with 'score'"),
        ({"settings": ["three"]}, "settings: no trial that is done has the name 'three'"),
    ],
)
def test_curves_that_are_refused(runs: Path, more: dict[str, Any], message: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(mom.ConfigError, match=message):
        plot(runs, **more)
