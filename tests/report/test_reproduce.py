"""Whole reproductions at a tiny scale: the report, interruptions, files that are missing, and the same bits again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import mom
from mom import cli
from mom.errors import ConfigError
from mom.report import reproduce
from mom.report.box import Box, Unit
from mom.report.plan import read_plan

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

PLAN = {
    "size": {"name": "least", "width": 8, "heads": 2, "positions": 32, "vocab_size": 300, "rows": 4, "router": 8},
    "steps": 8, "seeds": 2, "processes": 2, "glue_tasks": ["sst2"], "glue_steps": 2, "glue_dev_rows": 6,
    "xsum_steps": 2, "xsum_rows": 2, "measured_batches": 1, "chars": 40_000,
}  # fmt: skip
STAGES = ("data", "models", "framework", "ledger", "pruning", "glue", "xsum")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, a plan, GLUE's SST-2 and XSUM."""
    folder = tmp_path_factory.mktemp("files")
    words = [f"The {a} token chooses a {b} module and skips {c}." for a in "abcde" for b in "fghij" for c in "klmno"]
    (folder / "text.txt").write_text("\n".join(words * 3))
    (folder / "plan.json").write_text(json.dumps(PLAN))
    (folder / "glue/SST-2").mkdir(parents=True)
    rows = "".join(f"{'good' if n % 2 else 'bad'} film {n}\t{n % 2}\n" for n in range(40))
    for split in ("train", "dev"):
        (folder / f"glue/SST-2/{split}.tsv").write_text(f"sentence\tlabel\n{rows}")
    (folder / "xsum").mkdir()
    documents = [{"document": f"It rained on day {n}. Nobody left.", "summary": f"Rain {n}."} for n in range(20)]
    for split in ("train", "validation", "test"):
        (folder / f"xsum/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    return folder


def arguments(files: Path, out: Path) -> dict[str, Any]:
    return {
        "hours": 1, "out_dir": out, "data": files / "text.txt", "glue": files / "glue", "xsum": files / "xsum",
        "plan": files / "plan.json", "progress": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed reproduction."""
    out = tmp_path_factory.mktemp("whole") / "paper"
    result = reproduce(**arguments(files, out))
    assert result is not None and result.report == out / "report.html"
    return out


def figures_of(out: Path) -> dict[str, str]:
    """The figures of a report: files of pictures, and hashes."""
    found = {path.name: path.read_text() for path in sorted((out / "figures").iterdir())}
    hashes = re.findall(r"SHA-256 of the numbers `(\w{64})`", (out / "report.md").read_text())
    return {**found, "hashes": " ".join(hashes)}


# ------------------------------------------------------------------ the report
class _Page(HTMLParser):
    """Collects addresses in a page, and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [str(values[name]) for name in ("src", "href") if name in values]
        if tag == "svg":
            self.pictures += 1
            assert values.get("aria-label")
        if tag not in ("meta", "link", "br", "line", "circle", "rect", "path", "polyline", "polygon"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without content."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_complete_and_needs_no_other_file(whole: Path) -> None:
    page, text = _Page(), (whole / "report.html").read_text()
    assert f"--plan {whole / 'plan.json'}" in text  # the command that goes on
    page.feed(text)
    assert page.open == [] and page.pictures == 5
    assert page.addresses == ["data:,"] and "@import" not in text and "url(" not in text
    markdown = (whole / "report.md").read_text()
    for words in ("claims", "The rules:", "The plan", "Training", "One framework", "Pruning", "GLUE", "XSUM", "SST-2"):
        assert words in text and words in markdown
    assert len(re.findall(r"<figure ", text)) == markdown.count("Made by `") == 8
    for picture in re.findall(r"!\[.+\]\((figures/\w+\.svg)\)", markdown):
        ElementTree.parse(whole / picture)
    assert "nan" not in re.sub(r"<[^>]*>", "", text).lower().replace("finance", "")


def test_a_gpt2_is_a_mom(whole: Path) -> None:
    done = json.loads((whole / "framework/gpt2-seed0/done.json").read_text())["result"]
    assert done["difference"] < 1e-4 < abs(done["free"] - done["loss"])


def test_numbers_of_the_report_are_those_of_the_stages(whole: Path) -> None:
    """The table of the models says what the sweep says."""
    table = mom.sweep.table(whole / "models", ["whole_val_loss"])
    lines = (whole / "report.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| GPT-2 | "))
    assert f"{table[table['name'] == 'gpt2']['whole_val_loss'].item():.3f}" in row


# ------------------------------------------------------------------ the same bits again
@pytest.mark.parametrize("stage", [*STAGES, "models/deep-seed1"])
def test_the_command_of_a_figure_gives_the_same_bits(
    whole: Path, stage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (whole / "report.md").read_text()
    commands = dict(re.findall(r"Made by `mom (.* --rerun (?:\w+))`, SHA-256 of the numbers `(\w+)`", text))
    command = next((words for words in commands if words.endswith(f"--rerun {stage}")), None)
    digest = commands.get(command or "")
    assert command is not None or stage in ("data", "models/deep-seed1")
    words = ["reproduce", "--out_dir", str(whole), "--rerun", stage] if command is None else shlex.split(command)
    assert cli.main([*words, "--progress", "false"]) == 0
    told = capsys.readouterr().out
    assert "same bits" in told and (digest is None or digest in told)
    assert not list(whole.glob(".rerun*"))


def test_other_numbers_are_an_error(whole: Path, tmp_path: Path) -> None:
    file = whole / "ledger/gpt2-seed0/done.json"
    before = file.read_text()
    try:
        file.write_text(before.replace(json.loads(before)["sha256"], "0" * 64))
        with pytest.raises(ConfigError, match="ledger/gpt2-seed0: the numbers are not those of before"):
            reproduce(out_dir=whole, rerun="ledger", progress=False)
    finally:
        file.write_text(before)
    with pytest.raises(ConfigError, match="'figures' is not a stage; there are data, models, "):
        reproduce(out_dir=whole, rerun="figures", progress=False)
    with pytest.raises(ConfigError, match="holds no reproduction"):
        reproduce(out_dir=tmp_path, rerun="ledger", progress=False)


# ------------------------------------------------------------------ interruptions and settings
def test_interrupted_twice_and_resumed(files: Path, whole: Path, tmp_path: Path) -> None:
    """By SIGTERM while models are trained, and by SIGKILL while they are measured."""
    out = tmp_path / "paper"
    words = [f"--{name}={value}" for name, value in arguments(files, out).items() if name != "progress"]
    command = [sys.executable, "-m", "mom", "reproduce", *words]
    for number, there, least in ((signal.SIGTERM, "models/*/log.jsonl", 1), (signal.SIGKILL, "*/*/done.json", 14)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while len(list(out.glob(there))) < least and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        assert process.poll() is None, "it ended before the signal"
        worked = time.time() - (out / "plan.json").stat().st_mtime  # since the plan was made
        process.send_signal(number)
        assert process.wait(60) in (-number, 128 + number)
        assert not (out / "report.html").exists()
        if number == signal.SIGTERM:
            assert json.loads((out / "clock.json").read_text())["seconds"] > worked - 0.1, "this time counts"
    assert reproduce(**arguments(files, out)) is not None
    assert figures_of(out) == figures_of(whole)


def test_another_setting_is_an_error(files: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hours: .* was begun with 1.0, now it is 2.0. Repeat the first value"):
        reproduce(**{**arguments(files, whole), "hours": 2})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds 'notes.txt' and no reproduction; choose a new folder"):
        reproduce(**arguments(files, tmp_path))
    with pytest.raises(ConfigError, match="glue: there is no"):
        reproduce(out_dir=tmp_path / "new", glue=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="hours: -1 is not a positive number"):
        reproduce(-1, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_missing_is_left_out_and_named(files: Path, tmp_path: Path) -> None:
    plan = {**PLAN, "glue_tasks": [], "xsum_steps": 0, "seeds": 1, "steps": 4}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    out = tmp_path / "paper"
    result = reproduce(
        1, out, data=files / "text.txt", plan=tmp_path / "plan.json", progress=False
    )  # fmt: skip
    assert result is not None and result.left_out == {"glue": "no --glue was given", "xsum": "no --xsum was given"}
    text = (out / "report.md").read_text()
    assert "- `glue`: no --glue was given" in text and "## GLUE" not in text and "## Pruning" in text
    decided = {claim.words for claim in result.claims if claim.verdict != "cannot decide"}
    assert len(decided) == 2 and "nan" not in text
    with pytest.raises(ConfigError, match="plan: needs the files of sst2, xsum"):
        reproduce(1, tmp_path / "new", data=files / "text.txt", plan=files / "plan.json", progress=False)


# ------------------------------------------------------------------ time
def test_when_the_time_is_up_work_is_left_out(files: Path, tmp_path: Path) -> None:
    plan = read_plan(files / "plan.json")
    box = Box(tmp_path, plan, 0.0, 0, lambda words: None)
    assert box.run(Unit("stage", "name", lambda folder: {"a": 1})) is None
    assert box.left_out == {"stage/name": "the time was up"}
    box = Box(tmp_path, plan, 60.0, 0, lambda words: None)
    done = box.run(Unit("stage", "name", lambda folder: {"a": 1}))
    assert done is not None and done["result"] == {"a": 1}
    assert box.run(Unit("stage", "name", lambda folder: {"a": 2})) == done


def test_work_is_broken_off_at_the_end_of_the_time(files: Path, tmp_path: Path) -> None:
    """As by training that hears SIGUSR1 and stops."""
    def work(folder: Path) -> dict[str, Any]:
        from mom.training.signals import stop_signals

        with stop_signals() as signals, signals.at_once():
            time.sleep(60)
        return {}

    box = Box(tmp_path, read_plan(files / "plan.json"), 0.5, 0, lambda words: None)
    begun = time.monotonic()
    assert box.run(Unit("stage", "name", work)) is None and time.monotonic() < begun + 30
    assert box.left_out == {"stage/name": "the time was up"}


def test_a_failure_is_left_out_and_tried_again(files: Path, tmp_path: Path) -> None:
    def fails(folder: Path) -> dict[str, Any]:
        raise ConfigError("rows: there are none")

    box = Box(tmp_path, read_plan(files / "plan.json"), 60.0, 0, lambda words: None)
    assert box.run(Unit("glue", "name", fails)) is None
    assert box.left_out == {"glue/name": "rows: there are none"}
    with pytest.raises(ConfigError, match="there are none"):
        box.run(Unit("glue", "name", fails), needed=True)
    assert box.run(Unit("glue", "name", lambda folder: {"a": 1})) is not None
