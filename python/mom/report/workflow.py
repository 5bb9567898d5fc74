"""The paper in a box: from the plan to the report, and on after any interruption."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._arguments import PathLike, flags
from .._arguments import seed as seed_of
from .._extras import need
from .._html import html_table
from .._json import sha256_of
from .._reading import check_name, kind_of, read_object
from ..distributed import current
from ..errors import ConfigError
from ..files.folders import write_file, write_json
from ..files.locks import lock_folder
from ..runtime import cpu_info
from . import measuring, tasks
from .box import DONE, SETTINGS, TIME_UP, Box, Unit, check_settings
from .content import Facts, blocks_of, plan_rows
from .findings import Claim, claims_of
from .page import Figure, as_html, as_markdown
from .plan import Plan, choose, measure, read_plan, shares_of
from .shapes import sizes_for
from .training import data_folder, prepare_data, train_models, trained, vocabulary_of

__all__ = ["ReproduceResult", "reproduce"]

#: Stages after training, in their order.
STAGES = ("framework", "ledger", "pruning", "glue", "xsum")
_LOCK = ".reproduce.lock"


@dataclass(frozen=True, repr=False)
class ReproduceResult:
    """How a reproduction ended.

    Attributes
    ----------
    report : Path
        ``report.html``; ``report.md`` is beside it.
    claims : list of Claim
        What the run says about the claims of the paper.
    left_out : dict of str to str
        What was left out, and why.
    """

    report: Path
    claims: list[Claim]
    left_out: dict[str, str]

    def __repr__(self) -> str:
        counts = [sum(claim.verdict == verdict for claim in self.claims)
                  for verdict in ("supports", "contradicts", "cannot decide")]  # fmt: skip
        return "<ReproduceResult: supports {}, contradicts {}, cannot decide {}; {}>".format(*counts, self.report)

    def _repr_html_(self) -> str:
        rows = [(claim.words, claim.verdict, claim.found) for claim in self.claims]
        return html_table(str(self.report), ["claim", "this run", "difference"], rows, text_columns=3)


def reproduce(
    hours: float = 2.0,
    out_dir: PathLike = "paper",
    *,
    data: PathLike | None = None,
    glue: PathLike | None = None,
    xsum: PathLike | None = None,
    seed: int = 0,
    plan: PathLike | None = None,
    rerun: str | None = None,
    progress: bool = True,
) -> ReproduceResult | None:
    """Run the workflow of the paper at the scale that the machine allows, and write a report.

    Parameters
    ----------
    hours : float
        For everything. Size, tokens and seeds of the models follow from the measured speed of the machine.
    out_dir : path
        Folder of the reproduction. The same call goes on with what is there.
    data : path, optional
        File or folder of text, or a folder made by `mom.prepare`. By default the source code of Python's standard
        library.
    glue, xsum : path, optional
        Folders of GLUE's tasks and of XSUM. What is not there is left out, and the report says so.
    seed : int
        The first seed.
    plan : path, optional
        Do what the ``plan.json`` of another reproduction says, instead of measuring the speed.
    rerun : str, optional
        Instead of all this, compute a finished stage such as ``"pruning"``, or one piece of it such as
        ``"models/deep-seed0"``, again in a temporary folder. Other arguments but `out_dir` have no effect.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    ReproduceResult or None
        None if `rerun` is given.

    Raises
    ------
    ConfigError, DataError
        If an argument is wrong, the time is too short, or the folder was begun with other settings. After `rerun`: if
        the numbers are others.
    TrainingInterrupted
        On Ctrl-C and SIGTERM while a model is trained. It has saved a checkpoint.
    """
    (progress,) = flags(progress=progress)
    check_name(out_dir, ConfigError)
    out = Path(out_dir)
    if current().size > 1:
        raise ConfigError(
            "reproduce: starts processes of its own, so start it as a single process, without 'mom launch'"
        )
    for module, package in (("pandas", "pandas"), ("scipy.stats", "scipy")):
        need(module, "reproduce", package)
    if rerun is not None:
        _rerun(out, rerun, progress)
        return None
    if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not 0 < hours < 10_000:
        raise ConfigError(f"hours: {hours!r} is not a positive number of hours")
    paths = {name: None if path is None else os.path.abspath(path) for name, path in
             (("data", data), ("glue", glue), ("xsum", xsum))}  # fmt: skip
    for name, path in paths.items():
        if path is not None and kind_of(path) is None:
            raise ConfigError(f"{name}: there is no {path}")
    given = None if plan is None else read_plan(plan)
    settings = {"format": 1, "hours": float(hours), **paths, "seed": seed_of(seed),
                "plan": None if given is None else sha256_of(given.to_dict())}  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with lock_folder(out, "out_dir", _LOCK):
        check_settings(out, settings)
        return _Work(out, settings, given, progress).run()


class _Work:
    """One call of `reproduce`."""

    def __init__(self, out: Path, settings: dict[str, Any], given: Plan | None, progress: bool) -> None:
        self.out, self.settings, self._given, self._progress = out, settings, given, progress
        self.paths = {
            name: None if settings[name] is None else Path(settings[name]) for name in ("data", "glue", "xsum")
        }

    def say(self, words: str) -> None:
        """A line about the progress."""
        if self._progress:
            print(words, file=sys.stderr, flush=True)

    def run(self) -> ReproduceResult:
        box = self.box()
        try:
            self._run_stages(box)
        finally:
            box.note_time()
        return self._report(box)

    def _run_stages(self, box: Box) -> None:
        if box.run(self.data_unit(box), needed=True) is None:
            raise ConfigError("hours: the time was up before the text was prepared; give more")
        data = data_folder(box, self.paths["data"])
        self._train(box, data)
        for stage in STAGES:
            for unit in self.units(box, stage, data):
                box.run(unit)

    # ------------------------------------------------------------------ plan
    def box(self) -> Box:
        """The reproduction with its plan, which is made and shown if there is none yet."""
        seconds, begun = 3600 * self.settings["hours"], time.monotonic()
        file = self.out / "plan.json"
        if kind_of(file) is not None:
            return self._box(read_plan(file), read_object(file, ConfigError)["left_out"], seconds)
        names, left_out = tasks.glue_at_hand(self.paths["glue"])
        left_out.update(tasks.xsum_at_hand(self.paths["xsum"]))
        speeds: dict[str, Any] = {}
        if self._given is None:
            self.say("measuring the speed of training steps")
            processes = cpu_info()["threads"]
            sizes = sizes_for(vocabulary_of(self.paths["data"]))
            speeds = measure(seconds, processes, sizes)
            plan = choose(speeds, seconds, processes, names, "xsum" not in left_out, sizes)
            if names and len(plan.glue_tasks) < len(names):
                left_out["glue"] = f"time for {len(plan.glue_tasks)} of {len(names)} tasks"
            if "xsum" not in left_out and not plan.xsum_steps:
                left_out["xsum"] = "there is no time for it"
        else:
            plan = self._given
            missing = [name for name in plan.glue_tasks if name not in names] + ["xsum"] * (
                bool(plan.xsum_steps) and "xsum" in left_out)  # fmt: skip
            if missing:
                raise ConfigError(f"plan: needs the files of {', '.join(missing)}; give --glue and --xsum as before")
        told = plan_rows(plan, self.settings["hours"])
        print(
            "\n".join(two_columns([("the plan", ""), *told, *((f"no {n}", why) for n, why in left_out.items())])),
            flush=True,
        )
        write_json(file, {**plan.to_dict(), "left_out": left_out, "seconds_per_step": speeds})
        box = self._box(plan, left_out, seconds)
        box.note_time(time.monotonic() - begun)
        return box

    def _box(self, plan: Plan, left_out: dict[str, str], seconds: float) -> Box:
        box = Box(self.out, plan, seconds, self.settings["seed"], self.say, self._progress)
        box.left_out.update(left_out)
        return box

    # ------------------------------------------------------------------ stages
    def data_unit(self, box: Box) -> Unit:
        """The unit that prepares the text."""
        return Unit("data", "text", lambda folder: prepare_data(box, self.paths["data"], folder))

    def _train(self, box: Box, data: Path) -> None:
        done = self.out / "models" / DONE
        if kind_of(done) is not None:
            box.left_out.update(read_object(done, ConfigError)["left_out"])
            return
        before = set(box.left_out)
        share = shares_of(bool(box.plan.glue_tasks), bool(box.plan.xsum_steps))["training"]
        train_models(box, data, self.out / "models", share=share)
        left_out = {name: why for name, why in box.left_out.items() if name not in before}
        if all(why == TIME_UP for why in left_out.values()):  # otherwise the next call tries again
            write_json(done, {"left_out": left_out})

    def units(self, box: Box, stage: str, data: Path) -> Sequence[Unit]:
        """The pieces of a stage."""
        made: dict[str, Callable[[], Sequence[Unit]]] = {
            "framework": lambda: measuring.framework(box, data), "ledger": lambda: measuring.counting(box, data),
            "pruning": lambda: measuring.pruning(box, data), "glue": lambda: tasks.glue(box, self.paths["glue"]),
            "xsum": lambda: tasks.xsum(box, self.paths["xsum"]), "data": lambda: [self.data_unit(box)],
        }  # fmt: skip
        return made[stage]()

    # ------------------------------------------------------------------ report
    def _report(self, box: Box) -> ReproduceResult:
        results: dict[str, Any] = {"models": trained(self.out / "models")}
        results.update({stage: box.results(stage) for stage in ("data", *STAGES)})
        digests = {stage: stage_digest(found) for stage, found in results.items()}
        claims = claims_of(results)
        text = results["data"]["text"]["result"]
        cpu = cpu_info()
        facts = Facts(
            box.plan, self.settings["hours"], box.spent, self.settings["seed"],
            f"{cpu['threads']} thread{'s' * (cpu['threads'] > 1)} at the level {cpu['level']}",
            f"{text['source']}; {text['train_tokens']:,} tokens for training and {text['val_tokens']:,} for "
            f"validation, {text['vocab_size']:,} different ones. Their frequencies alone give a loss of "
            f"{text['unigram']:.3f}", command_of(self.out, self.settings),
            f"mom reproduce --out_dir {shlex.quote(str(self.out))} --rerun", digests, box.left_out,
        )  # fmt: skip
        blocks, title = blocks_of(facts, results, claims), "Mixture-of-Modules, reproduced"
        (self.out / "figures").mkdir(exist_ok=True)
        for block in blocks:
            if isinstance(block, Figure) and block.svg:
                write_file(self.out / "figures" / f"{block.name}.svg", block.svg)
        write_file(self.out / "report.md", as_markdown(title, blocks))
        write_file(self.out / "report.html", as_html(title, blocks))
        return ReproduceResult(self.out / "report.html", claims, dict(box.left_out))


def stage_digest(found: dict[str, Any]) -> str:
    """SHA-256 sum of a stage: of the sums of its pieces, by their names."""
    return sha256_of({name: done["sha256"] for name, done in found.items()})


def command_of(out: Path, settings: dict[str, Any]) -> str:
    """The command of a reproduction."""
    words = ["mom", "reproduce", "--hours", str(settings["hours"]), "--out_dir", str(out)]
    for name in ("data", "glue", "xsum"):
        words += [] if settings[name] is None else [f"--{name}", settings[name]]
    words += [] if settings["plan"] is None else ["--plan", str(out / "plan.json")]
    return shlex.join([*words, *(["--seed", str(settings["seed"])] if settings["seed"] else [])])


def two_columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of a table that fits the terminal."""
    width = max(40, min(100, shutil.get_terminal_size((100, 24)).columns))
    first = min(max(len(name) for name, _ in rows) + 2, width // 2)
    lines = []
    for name, words in rows:
        folded = textwrap.wrap(words, width - first, break_on_hyphens=False) or [""]
        lines += [f"{name if number == 0 else '':{first}}{line}".rstrip() for number, line in enumerate(folded)]
    return lines


# ---------------------------------------------------------------------- again
def _rerun(out: Path, what: str, progress: bool) -> None:
    """Compute a finished stage again, and compare."""
    if kind_of(out / SETTINGS) is None:
        raise ConfigError(f"out_dir: {out} holds no reproduction")
    settings = read_object(out / SETTINGS, ConfigError)
    work = _Work(out, settings, None, progress)
    stage, _, name = what.partition("/")
    if stage not in ("data", "models", *STAGES):
        raise ConfigError(f"rerun: {what!r} is not a stage; there are data, models, {', '.join(STAGES)}")
    if kind_of(out / "plan.json") is None:
        raise ConfigError(f"rerun: {out} has no plan yet")
    box = Box(out, read_plan(out / "plan.json"), 1e9, settings["seed"], work.say, progress)
    before = trained(out / "models") if stage == "models" else box.results(stage)
    wanted = [unit for unit in before if not name or unit == name]
    if not wanted:
        raise ConfigError(f"rerun: {what} is not done; done are {', '.join(before) or 'none'}")
    data = data_folder(box, work.paths["data"])
    with tempfile.TemporaryDirectory(prefix=".rerun-", dir=out) as folder:
        again: dict[str, Any] = {}
        if stage == "models":
            train_models(box, data, Path(folder), wanted)
            again = trained(Path(folder))
        else:
            for unit in work.units(box, stage, data):
                if unit.name in wanted:
                    again[unit.name] = box.work(unit, Path(folder) / unit.name)
    other = [own for own in wanted if again.get(own) is None or again[own]["sha256"] != before[own]["sha256"]]
    if other:
        names = ", ".join(f"{stage}/{own}" for own in other)
        raise ConfigError(f"rerun: {names}: the numbers are not those of before. Another version, kind of processor or "
                          "compiler may round otherwise")  # fmt: skip
    for own in wanted:
        print(f"{stage}/{own}  same bits  {again[own]['sha256']}")
    if not name:
        print(f"{stage}  same bits  {stage_digest({own: again[own] for own in wanted})}")
