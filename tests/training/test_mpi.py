"""Training over MPI: what the processes of a real launcher compute, say and leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_run

pytest.importorskip("mpi4py", exc_type=ImportError)

from mom.distributed.launcher import find_mpiexec  # noqa: E402
from mom.errors import ConfigError  # noqa: E402

try:
    find_mpiexec()
except (ImportError, ConfigError) as error:
    pytest.skip(f"no MPI launcher: {error}", allow_module_level=True)

ALONE = {
    name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI_", "SLURM_", "MOM_"))
} | {"OMP_NUM_THREADS": "1"}  # fmt: skip

SCRIPT = """
import os, pathlib, signal, sys, mom
from mom.distributed import current
class Model(mom.MoM):
    steps = 0
    def backward(self, *args, **kwargs):
        if sys.argv[2] == "fails" and current().rank == 1:
            raise MemoryError("none is left")
        self.steps += 1
        died = pathlib.Path(sys.argv[4] + ".died")
        if sys.argv[2] == "dies" and current().rank == 1 and self.steps == 4 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().backward(*args, **kwargs)
config = mom.MoMConfig.from_json(sys.argv[3])
model = Model(config, seed=0)
if sys.argv[2] == "differs" and current().rank == 1:
    model.parameters["transformer.ln_f.bias"][0] = 1
kept = {"run_dir": sys.argv[4] + ".run", "resume": True, "save_every": 1} if sys.argv[2] == "dies" else {}
settings = {"steps": 3, "batch_size": 4, "sequence_length": 16, "warmup": 0, "reproducible": "ranks"}
mom.train(model, sys.argv[1], progress=False, **settings, **kept)
model.save_pretrained(sys.argv[4])
if sys.argv[2] == "fails later" and current().rank == 1:
    raise KeyError("mine")
# One write for the whole line: `print` makes two where Python does not buffer, and lines of other ranks come between.
sys.stdout.write(f"rank {current().rank} of {current().size}\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_run.write_data(tmp_path / "data")
    small_run.config().to_json(tmp_path / "config.json")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def launch(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mom", *map(str, words)]
    env = {**ALONE, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)


def script(folder: Path, what: str, ranks: int, *flags: object) -> subprocess.CompletedProcess[str]:
    words = (folder / "script.py", folder / "data", what, folder / "config.json", folder / "model")
    return launch("launch", "-n", ranks, *flags, *words)


def train_words(folder: Path, run: str) -> list[object]:
    return [
        "train", "--data", folder / "data", "--run_dir", folder / run, "--model", folder / "config.json", "--steps", 4,
        "--batch_size", 4, "--accumulation", 2, "--sequence_length", 16, "--warmup", 0, "--save_every", 2,
        "--reproducible", "ranks",
    ]  # fmt: skip


def test_the_command_gives_the_same_files_on_any_number_of_ranks(folder: Path) -> None:
    alone = launch(*train_words(folder, "alone"))
    assert alone.returncode == 0, alone.stderr
    for ranks in (2, 3):
        run = f"run-{ranks}"
        together = launch("launch", "-n", ranks, *train_words(folder, run))
        assert together.returncode == 0, together.stderr
        assert together.stdout == alone.stdout.replace("alone", run)
        assert together.stderr.count("step 4/4") == 1
        for name in ("model/model.safetensors", "step-00000002/optimizer.safetensors"):
            assert (folder / run / name).read_bytes() == (folder / "alone" / name).read_bytes()


def test_a_script_needs_no_change(folder: Path) -> None:
    done = script(folder, "works", 2)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
    alone = subprocess.run(
        [sys.executable, folder / "script.py", folder / "data", "works", folder / "config.json", folder / "alone"],
        env=ALONE, check=True, capture_output=True,
    )  # fmt: skip
    assert alone.stdout == b"rank 0 of 1\n"
    files = [folder / name / "model.safetensors" for name in ("alone", "model")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "what, expected",
    [
        ("fails", ["rank 1: Traceback", "MemoryError: none is left"]),
        ("fails later", ["rank 1: Traceback", "KeyError: 'mine'"]),
        ("differs", ["rank 0: Traceback", "ConfigError: rank 1 has another run than rank 0: weights: "]),
    ],
)
def test_the_failure_of_a_rank_ends_the_others(folder: Path, what: str, expected: list[str]) -> None:
    done = script(folder, what, 2)
    assert done.returncode not in (0, None)
    assert all(text in done.stderr for text in expected), done.stderr
    assert done.stderr.count("Traceback") == 1


def test_a_killed_rank_is_started_again_and_leaves_no_trace(folder: Path) -> None:
    whole = script(folder, "works", 2)
    assert whole.returncode == 0, whole.stderr
    weights = (folder / "model" / "model.safetensors").read_bytes()
    done = script(folder, "dies", 2, "--max_restarts", 2)
    assert done.returncode == 0, done.stderr
    assert "; restart 1 of 2 on 2 ranks" in done.stderr and "restart 2" not in done.stderr
    assert (folder / "model.died").exists() and (folder / "model" / "model.safetensors").read_bytes() == weights


def test_errors_of_the_command_are_told_once(folder: Path) -> None:
    done = launch("launch", "-n", 2, *train_words(folder, "run"), "--lr", -1)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if "lr" in line]
    assert told == ["mom: error: lr: -1.0 is not in [0.0, 1000.0]"]


def test_a_launcher_of_another_mpi_is_named() -> None:
    other = {"MPICH": "OMPI_COMM_WORLD_SIZE", "Open MPI": "PMI_SIZE"}[find_mpiexec()[1]]
    done = launch("--version", **{other: "3"})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "mom: error: this mpiexec belongs to another MPI: it has started 3 processes" in done.stderr
    assert launch("--version", **{other: "3", "MOM_DISTRIBUTED": "0"}).returncode == 0


def test_without_mpi4py_the_message_names_it() -> None:
    code = "import sys; sys.modules['mpi4py'] = None; from mom.cli import main; sys.exit(main(['--version']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**ALONE, "PMI_SIZE": "2"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "A run on several ranks needs the package mpi4py" in done.stderr


EVENTFUL_SCRIPT = """
import os, signal, sys, mom
from mom.distributed import current
from mom.training.pretraining import evaluate_loss
ranks, data, what, out = current(), sys.argv[1], sys.argv[2], sys.argv[4]
model = mom.MoM(mom.MoMConfig.from_json(sys.argv[3]), seed=0)

class Listener:
    def record(self, record):
        if what == "callback evaluates" and record["kind"] == "train":
            tokens = mom.data.TokenFile(data + "/val.bin", vocab_size=64)
            print("loss", evaluate_loss(model, tokens, 2, 16, 3), flush=True)
            model.save_pretrained(out)
        if what.startswith("last callback fails") and record["kind"] == "checkpoint":
            raise KeyError("late")
        return what.startswith("last callback fails") and record["kind"] == "eval"

def train(**changes):
    settings = dict(steps=3, batch_size=4, sequence_length=16, warmup=0, eval_every=1, progress=False) | changes
    return mom.train(model, data, callbacks=[Listener()], **settings)

def caught(kind):
    try:
        train(run_dir=out + "-run", steps=-1 if what == "told before" else 3)
    except kind as error:
        sys.stdout.write(f"rank {ranks.rank} caught {type(error).__name__}\\n")
        sys.stdout.flush()

if what == "stops in a swap" and ranks.rank == 1:
    type(ranks).swap = lambda *_: __import__("time").sleep(30)
if what.startswith("last callback fails"):
    caught(KeyError if what.endswith("and one rank catches") else Exception)
    sys.exit()
if what == "told before":
    caught(ValueError)
    if ranks.rank == 1:
        raise KeyError("mine")
train()
model.save_pretrained(out)
assert mom.MoM.from_pretrained(out).num_parameters == model.num_parameters
if os.fork() == 0:
    os._exit(current().size - 1)
assert os.wait()[1] == 0
"""


def eventful_script(folder: Path, what: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "eventful.py").write_text(EVENTFUL_SCRIPT)
    words = (folder / "eventful.py", folder / "data", what, folder / "config.json", folder / "out")
    return launch("launch", "-n", 2, *words, **environment)


def test_callbacks_may_evaluate_and_save(folder: Path) -> None:
    done = eventful_script(folder, "callback evaluates")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") == 3 and (folder / "out" / "model.safetensors").exists()


def test_all_ranks_can_read_what_the_first_has_saved_and_fork(folder: Path) -> None:
    done = eventful_script(folder, "reads what it saved")
    assert done.returncode == 0, done.stderr


def test_all_ranks_fail_with_the_last_callback(folder: Path) -> None:
    done = eventful_script(folder, "last callback fails")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 caught KeyError", "rank 1 caught RankError"]


def test_an_exception_that_one_rank_alone_catches_is_shown_by_the_others(folder: Path) -> None:
    done = eventful_script(folder, "last callback fails and one rank catches")
    assert done.returncode not in (0, None)
    assert "RankError: rank 0: KeyError: 'late'" in done.stderr


def test_an_exception_that_was_caught_hides_no_other(folder: Path) -> None:
    done = eventful_script(folder, "told before")
    assert done.returncode not in (0, None)
    assert "KeyError: 'mine'" in done.stderr


def test_a_rank_that_stops_between_messages_is_named(folder: Path) -> None:
    done = eventful_script(folder, "stops in a swap", MOM_RANK_TIMEOUT="3")
    assert done.returncode not in (0, None)
    assert "rank 1 did not answer for 3 s in step 1" in done.stderr
