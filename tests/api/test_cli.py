"""The command ``mom``: every command on small inputs, its errors and exit statuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import cli, config, demo
from mom.data import TokenFile
from mom.training import evaluate_loss

SMALL = ["n_embd=16", "n_head=2", "n_positions=32", "num_attn=2", "num_ffn=3", "depth_per_chunk=2", "router_dim=8"]
MODEL = ["--preset", "demo", *(word for change in SMALL for word in ("--set", change))]
SETTINGS = ["--steps", "4", "--batch-size", "2", "--lr", "0.01", "--warmup", "0"]


@pytest.fixture
def mom_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; gives status, output and messages."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.main([str(a) for a in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of some 30 kB of text."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    rng = np.random.default_rng(0)
    words = ["the", "module", "token", "router", "chooses", "skips", "a", "path", "and", "again"]
    file.write_text("".join(" ".join(rng.choice(words, 8)) + ".\n\n" for _ in range(700)))
    return file


@pytest.fixture(scope="module")
def data(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    flags = ["--out_dir", str(folder), "--vocab_size", "300", "--split", "blank_line", "--val_fraction", "0.1"]
    assert cli.main(["prepare", str(text), *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", "--data", str(data), "--run_dir", str(folder), *MODEL, *SETTINGS]) == 0
    return folder


# ------------------------------------------------------------------ the command as such
def test_help_lists_the_commands_and_each_explains_itself(mom_command: Any) -> None:
    status, out, _ = mom_command("--help")
    assert status == 0
    commands = "demo prepare train pretrain sweep evaluate generate finetune prune ledger reproduce launch lm_eval"
    for name in (*commands.split(), "info", "bench"):
        assert re.search(rf"^ +{name} +\w", out, re.MULTILINE), name
        status, explained, _ = mom_command(name, "--help")
        assert status == 0 and f"usage: mom {name}" in explained
        for flag, value in re.findall(r"--(\w+) (\w+)", explained):
            assert value != flag.upper(), f"mom {name} --{flag}: say what the value is, such as N"


@pytest.mark.parametrize(("command", "settings"), [("train", mom.TrainingConfig), ("finetune", mom.FinetuneConfig)])
def test_every_training_field_is_a_flag_with_help(mom_command: Any, command: str, settings: Any) -> None:
    _, out, _ = mom_command(command, "--help")
    texts = cli.flags.field_help(settings)
    for field in dataclasses.fields(settings):
        assert f"--{field.name} " in out
        assert len(texts[field.name]) > 5, field.name


def test_version(mom_command: Any) -> None:
    assert mom_command("--version")[:2] == (0, f"mom {mom.__version__}\n")


def test_the_package_is_a_command() -> None:
    command = [sys.executable, "-m", "mom"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mom {mom.__version__}\n", "")
    done = subprocess.run([*command, "fly"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("usage: mom ") and not done.stdout


@pytest.mark.parametrize("arguments", [(), ("fly",), ("train",), ("generate", "--model", "x"), ("bench", "fast")])
def test_wrong_usage_is_status_2(mom_command: Any, arguments: tuple[str, ...]) -> None:
    status, out, err = mom_command(*arguments)
    assert status == 2 and not out and "usage: mom" in err


def test_dashes_do_as_well_as_underscores() -> None:
    assert cli.with_underscores(["--out-dir", "a-b", "--set=a-b=c-d", "-x", "--", "--not-this"]) == [
        "--out_dir", "a-b", "--set=a-b=c-d", "-x", "--", "--not-this",
    ]  # fmt: skip


def test_error_is_one_line_and_a_traceback_on_request(
    mom_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOM_DEBUG_TRACEBACK", raising=False)
    arguments = ("generate", "--model", tmp_path / "none", "--prompt", "a")
    status, out, err = mom_command(*arguments)
    assert (status, out) == (1, "") and err == f"mom: error: model: {tmp_path / 'none'} is not a folder\n"
    monkeypatch.setenv("MOM_DEBUG_TRACEBACK", "1")
    with pytest.raises(mom.CheckpointError):
        mom_command(*arguments)


def test_closed_output_is_no_error() -> None:
    command = subprocess.Popen([sys.executable, "-m", "mom", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait(timeout=60) == 128 + signal.SIGPIPE


def test_interrupt_is_status_130(mom_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.info, "cpu_info", interrupt)
    assert mom_command("info") == (130, "", "mom: interrupted\n")


def test_number_of_threads_is_set_and_checked(mom_command: Any, trained: Path, data: Path) -> None:
    flags = ("evaluate", "--model", trained / "model", "--data", data, "--batches", 1)
    assert mom_command(*flags, "--threads", 1)[0] == 0 and mom.get_num_threads() == 1
    status, _, err = mom_command(*flags, "--threads", 0)
    assert status == 1 and err.startswith("mom: error: ") and err.count("\n") == 1


# ------------------------------------------------------------------ prepare
def test_prepare_writes_token_files(data: Path) -> None:
    meta = json.loads((data / "meta.json").read_text())
    assert meta["vocab_size"] == 300 and meta["documents"] == 700 and meta["val_split"] == "documents"
    assert len(TokenFile(data / "val.bin")) == meta["files"]["val.bin"]["tokens"]


def test_prepare_with_a_tokenizer_a_key_and_unreadable_records(mom_command: Any, data: Path, tmp_path: Path) -> None:
    source = tmp_path / "some.jsonl"
    source.write_text('{"body": "the token"}\n{"other": 1}\n{"body": "a path"}\n')
    flags = (
        "prepare",
        source,
        "--out-dir",
        tmp_path / "out",
        "--key",
        "body",
        "--tokenizer",
        data,
        "--val_fraction",
        0,
    )
    status, _, err = mom_command(*flags)
    assert status == 1 and "some.jsonl: line 2: no key 'body'" in err and not (tmp_path / "out").exists()
    status, out, err = mom_command(*flags, "--on_error", "skip", "--append_eos", "false")
    assert status == 0 and "warning: 1 unreadable records left out" in err
    assert "2 documents" in out and not (tmp_path / "out" / "val.bin").exists()
    tokenizer = mom.Tokenizer.load(tmp_path / "out")
    ids = TokenFile(tmp_path / "out").read(0, len(TokenFile(tmp_path / "out")))
    assert tokenizer.decode(ids) == "the tokena path"


def test_prepare_takes_the_standard_library_without_sources(
    mom_command: Any, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.prepare, "standard_library_text", lambda: mom.data.Documents(text, name="standard library"))
    assert mom_command("prepare", "--out_dir", tmp_path, "--vocab_size", 260)[0] == 0
    assert json.loads((tmp_path / "meta.json").read_text())["sources"] == ["standard library"]


# ------------------------------------------------------------------ train
def test_train_saves_model_and_tokenizer(trained: Path, data: Path) -> None:
    model = mom.MoM.from_pretrained(trained / "model")
    assert (model.config.vocab_size, model.config.num_ffn, model.config.n_positions) == (300, 3, 32)
    assert model.tokenizer.sha256 == mom.Tokenizer.load(data).sha256
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in lines if e["kind"] == "train"] == [1, 2, 3, 4]
    assert [e["step"] for e in lines if e["kind"] == "eval"] == [4]
    saved = json.loads((trained / "step-00000004" / "training.json").read_text())["config"]
    assert (saved["batch_size"], saved["sequence_length"]) == (2, 32)


def test_used_run_dir_needs_resume(mom_command: Any, trained: Path, data: Path) -> None:
    flags = ("train", "--data", data, "--run_dir", trained)
    status, _, err = mom_command(*flags, *MODEL, *SETTINGS)
    assert status == 1 and "already holds checkpoints" in err
    status, out, _ = mom_command(*flags, "--resume")
    assert status == 0 and out.startswith("step 4\n")
    status, _, err = mom_command(*flags, "--resume", *MODEL, "--set", "num_ffn=4")
    assert status == 1 and "belongs to another run: num_ffn was 3 and is now 4. " in err
    assert "pass allow_changes=True (on the command line --allow_changes)" in err
    status, _, err = mom_command(*flags, "--resume", "--lr", 0.5, "--beta1", 0.5)
    assert status == 1 and "lr was 0.01 and is now 0.5; beta1 was 0.9 and is now 0.5" in err
    status, _, err = mom_command(*flags, "--resume", "--lr", 0.5, "--allow_changes")
    assert status == 0 and "resume: lr was 0.01 and is now 0.5\n" in err
    status, _, err = mom_command(*flags, "--allow_changes", "--preset", "demo")
    assert status == 1 and "allow_changes: has a meaning only with resume" in err


def test_resume_takes_settings_from_the_checkpoint_and_flags_win(mom_command: Any, data: Path, tmp_path: Path) -> None:
    flags = ("train", "--data", data, "--run_dir", tmp_path, "--progress", "false")
    assert mom_command(*flags, "--resume", *MODEL, *SETTINGS, "--schedule", "constant")[0] == 0
    status, out, err = mom_command(*flags, "--resume", "--steps", 6)
    assert status == 0 and out.startswith("step 6\n") and "steps was 4 and is now 6" in err
    saved = json.loads((tmp_path / "step-00000006" / "training.json").read_text())["config"]
    assert (saved["batch_size"], saved["lr"], saved["schedule"], saved["steps"]) == (2, 0.01, "constant", 6)


def test_the_number_format_is_a_flag_and_kept_when_resuming(mom_command: Any, data: Path, tmp_path: Path) -> None:
    flags = ("train", "--data", data, "--run_dir", tmp_path, "--progress", "false")
    assert mom_command(*flags, *MODEL, *SETTINGS, "--dtype", "bfloat16")[0] == 0
    status, _, err = mom_command(*flags, "--resume", "--steps", 6)
    assert status == 0 and "dtype" not in err
    assert json.loads((tmp_path / "step-00000006" / "training.json").read_text())["dtype"] == "bfloat16"
    status, _, err = mom_command(*flags, "--resume", "--steps", 7, "--dtype", "float32")
    assert status == 0 and "resume: dtype was bfloat16 and is now float32" in err


def test_settings_from_a_file_and_flags_win(mom_command: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[training]\nsteps = 2\nbatch_size = 3\nsequence_length = 8\n")
    flags = ("train", "--data", data, "--run_dir", tmp_path / "run", *MODEL, "--config", file)
    assert mom_command(*flags, "--batch_size", 1)[0] == 0
    saved = json.loads((tmp_path / "run" / "step-00000002" / "training.json").read_text())["config"]
    assert (saved["batch_size"], saved["sequence_length"]) == (1, 8)
    file.write_text("stepz = 2\n")
    status, _, err = mom_command(*flags)
    assert status == 1 and err == f"mom: error: {file}: stepz: unknown training field; did you mean 'steps'?\n"


def test_both_phases_from_the_command_line(mom_command: Any, data: Path, tmp_path: Path) -> None:
    flags = ("train", "--data", data, *SETTINGS, "--progress", "false", "--run_dir")
    config_file = tmp_path / "config.json"
    asked = mom.MoMConfig.preset("demo").replace(**cli.flags.changes_of(SMALL))
    asked.to_json(config_file)
    assert mom_command(*flags, tmp_path / "one", "--model", config_file, "--vanilla")[0] == 0
    vanilla = mom.MoM.from_pretrained(tmp_path / "one" / "model")
    assert vanilla.config.is_vanilla and vanilla.config.n_layer == asked.vanilla_layers()
    one = ("--model", config_file, "--from_vanilla", tmp_path / "one" / "model")
    assert mom_command(*flags, tmp_path / "two", *one, "--lr", 0, "--weight_decay", 0)[0] == 0
    model = mom.MoM.from_pretrained(tmp_path / "two" / "model")
    np.testing.assert_array_equal(
        model.parameters["transformer.wte.weight"], vanilla.parameters["transformer.wte.weight"]
    )
    assert mom_command(*flags, tmp_path / "three", "--init_from", tmp_path / "two" / "model")[0] == 0

    flags, more = ("train", "--data", data, "--progress", "false", "--run_dir"), ("--resume", "--steps", 5)
    assert mom_command(*flags, tmp_path / "two", *more)[0] == 0  # the checkpoint alone says what the run is
    assert mom_command(*flags, tmp_path / "two", *more, *one)[0] == 0
    for run, other in (("two", ("--init_from", tmp_path / "three" / "model")), ("three", one[2:]), ("one", one[2:])):
        status, _, err = mom_command(*flags, tmp_path / run, *more, *other)
        assert status == 1 and "belongs to another run: start was " in err, (run, err)
    other = ("--init_from", tmp_path / "three" / "model", "--allow_changes")
    assert mom_command(*flags, tmp_path / "two", *more, *other)[0] == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "model: expected one of --preset, --model, --init_from, got nothing"),
        (["--preset", "demo", "--init_from", "x"], "got --preset and --init_from"),
        (["--preset", "huge"], "name: no preset 'huge'"),
        (["--init_from", "x", "--vanilla"], "init_from: cannot be combined with --vanilla"),
        (["--preset", "demo", "--from_vanilla", "x", "--vanilla"], "from_vanilla: cannot be combined with --vanilla"),
        (["--preset", "demo", "--set", "width"], "set: 'width' is not NAME=VALUE"),
        (["--preset", "demo", "--set", "width=3"], "width: unknown configuration field"),
        (["--preset", "demo", "--set", "vocab_size=100"], "vocab_size: the model has 100 tokens, the data 300"),
        ([*MODEL, "--lr", "-1"], "lr: -1.0 is not in"),
        ([*MODEL, "--sequence_length", "64"], "sequence_length: 64 is more than the model's n_positions = 32"),
        (["--model", "nowhere.json"], "No such file or directory: 'nowhere.json'"),
    ],
)  # fmt: skip
def test_train_errors(mom_command: Any, data: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    status, out, err = mom_command("train", "--data", data, "--run_dir", tmp_path / "run", *flags)
    assert status == 1 and not out
    assert message in err.splitlines()[-1] and "Traceback" not in err


def test_values_of_set_are_json_or_words() -> None:
    pairs = ["a=3", "b=0.5", "c=gru-softmax", "d=none", "e=True", "f=false", 'g="7"', "h=a=b"]
    expected = {"a": 3, "b": 0.5, "c": "gru-softmax", "d": None, "e": True, "f": False, "g": "7", "h": "a=b"}
    assert cli.flags.changes_of(pairs) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves_with_its_status(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    run_dir = tmp_path / "run"
    flags = ["train", "--data", str(data), "--run_dir", str(run_dir), *MODEL, "--batch_size", "1", "--steps", "100000"]
    command = subprocess.Popen([sys.executable, "-m", "mom", *flags], stderr=subprocess.PIPE, text=True)
    log = run_dir / "log.jsonl"
    end = time.monotonic() + 60
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(command.pid, number)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 128 + number
    [folder] = run_dir.glob("step-*")
    by = " by SIGTERM" if number == signal.SIGTERM else ""
    last = err.splitlines()[-1]
    assert last.startswith(f"mom: interrupted{by}; train: step ") and last.endswith(f"; resume goes on from {folder}")
    assert not (run_dir / "model").exists()
    steps = int(folder.name.removeprefix("step-")) + 2
    assert cli.main(["train", "--data", str(data), "--run_dir", str(run_dir), "--resume", "--steps", str(steps)]) == 0


# ------------------------------------------------------------------ evaluate and generate
def test_evaluate_prints_loss_and_perplexity(mom_command: Any, trained: Path, data: Path) -> None:
    model = mom.MoM.from_pretrained(trained / "model")
    tokens = TokenFile(data / "val.bin")
    expected = evaluate_loss(model, tokens, 8, 32, 10**6)
    status, out, _ = mom_command("evaluate", "--model", trained / "model", "--data", data)
    assert status == 0
    values = dict(line.rsplit(" ", 1) for line in out.splitlines())
    assert float(values["loss"]) == pytest.approx(expected, abs=1e-6)
    assert float(values["perplexity"]) == pytest.approx(np.exp(expected), rel=1e-4)
    assert out.startswith(f"data {data / 'val.bin'}, {len(tokens) // 32 * 32:,} tokens in windows of 32\n")
    other = mom_command("evaluate", "--model", trained / "step-00000004", "--data", data / "val.bin", "--batch-size", 3)
    assert other[1].splitlines()[1] == out.splitlines()[1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--sequence_length", "33"], "sequence_length: 33 is not in [2, 32]"),
        (["--batch_size", "0"], "batch_size: 0 is less than 1"),
        (["--batches", "0"], "batches: 0 is less than 1"),
    ],
)
def test_evaluate_errors(mom_command: Any, trained: Path, data: Path, flags: list[str], message: str) -> None:
    status, _, err = mom_command("evaluate", "--model", trained / "model", "--data", data, *flags)
    assert status == 1 and message in err


def test_generate_continues_the_prompt(mom_command: Any, trained: Path) -> None:
    model = mom.MoM.from_pretrained(trained / "model")
    prompt = model.tokenizer.encode("the router")
    ids = model.generate(prompt, 5, temperature=0.7, top_k=9, top_p=0.9, seed=3, stop_token=model.tokenizer.eos_id)
    flags = ("--max-new-tokens", 5, "--temperature", 0.7, "--top_k", 9, "--top_p", 0.9, "--seed", 3)
    status, out, _ = mom_command("generate", "--model", trained / "model", "--prompt", "the router", *flags)
    assert status == 0 and out == model.tokenizer.decode(ids) + "\n" and out.startswith("the router")
    ids = model.generate(prompt, 9, weights="int8", stop_token=model.tokenizer.eos_id)
    flags = ("--max-new-tokens", 9, "--weights", "int8")
    status, out, _ = mom_command("generate", "--model", trained / "model", "--prompt", "the router", *flags)
    assert status == 0 and out == model.tokenizer.decode(ids) + "\n"


def test_generate_never_draws_ids_that_the_tokenizer_lacks(mom_command: Any, trained: Path, tmp_path: Path) -> None:
    model = mom.MoM.from_pretrained(trained / "model")
    known = model.tokenizer.vocab_size
    padded = mom.MoM(model.config.replace(vocab_size=known + 60))
    for name, value in model.parameters.items():
        padded.parameters[name][: len(value)] = value
    padded.parameters["transformer.wte.weight"][known:] = 9 * model.parameters["transformer.wte.weight"][:60]
    padded.save_pretrained(tmp_path / "padded")
    model.tokenizer.save(tmp_path / "tokenizer")
    flags = ("--max_new_tokens", 20, "--temperature", 1.0, "--seed", 3)
    model_flags = ("--model", tmp_path / "padded", "--tokenizer", tmp_path / "tokenizer")
    status, out, _ = mom_command("generate", *model_flags, "--prompt", "the router", *flags)
    plain = mom_command("generate", "--model", trained / "model", "--prompt", "the router", *flags)
    assert status == 0 and out == plain[1]
    prompt = model.tokenizer.encode("the router")
    assert padded.generate(prompt, 20, temperature=1.0, seed=3).max() >= known, "the test says something"


def test_generate_from_nothing_fills_the_model(mom_command: Any, trained: Path) -> None:
    model = mom.MoM.from_pretrained(trained / "model")
    eos = model.tokenizer.eos_id
    ids = model.generate(np.array([eos]), 31, temperature=0.5, stop_token=eos)
    status, out, _ = mom_command("generate", "--model", trained / "model", "--prompt", "", "--temperature", 0.5)
    assert status == 0 and out == model.tokenizer.decode(ids[1:]) + "\n"


def test_generate_errors(mom_command: Any, trained: Path, tmp_path: Path) -> None:
    model = mom.MoM.from_pretrained(trained / "model")
    model.tokenizer = None
    model.save_pretrained(tmp_path / "bare")
    status, _, err = mom_command("generate", "--model", tmp_path / "bare", "--prompt", "a")
    assert status == 1 and "holds none; name one with --tokenizer" in err
    flags = ("--prompt", "a", "--tokenizer", trained / "model", "--max_new_tokens", 2)
    assert mom_command("generate", "--model", tmp_path / "bare", *flags)[0] == 0
    status, _, err = mom_command("generate", "--model", trained / "model", "--prompt", "a", "--max_new_tokens", 99)
    assert status == 1 and "max_new_tokens: prompt and 99 new tokens need 100 positions, the model has 32" in err


# ------------------------------------------------------------------ prune
def test_prune_writes_a_smaller_model_and_a_receipt(
    mom_command: Any, trained: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pandas")
    flags = ("--model", trained / "model", "--data", data, "--sequence_length", 16, "--batches", 2)
    status, out, err = mom_command("prune", *flags, "--out_dir", tmp_path, "--ffn", 0.34, "--by", "usage")
    assert status == 0, err
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    before, after = mom.MoM.from_pretrained(trained / "model"), mom.MoM.from_pretrained(tmp_path / "model")
    assert after.config.num_ffn == before.config.num_ffn - 1 and after.config.num_attn == before.config.num_attn
    assert after.tokenizer is not None
    kept = ", ".join(map(str, receipt["kept"]["ffn"][0]))
    assert f"block 0 ffn: modules {kept} stay\n" in out
    assert f"loss {receipt['before']['loss']:.4f} before, {receipt['after']['loss']:.4f} after\n" in out
    assert out.endswith(f"model {tmp_path / 'model'}\n")
    assert mom_command("evaluate", "--model", tmp_path / "model", "--data", data)[0] == 0


def test_prune_takes_numbers_of_modules(mom_command: Any, trained: Path, tmp_path: Path) -> None:
    model = mom.MoM.from_pretrained(trained / "model")
    count = model.config.num_ffn
    status, out, _ = mom_command("prune", "--model", trained / "model", "--out_dir", tmp_path, "--ffn", "0,")
    assert status == 0
    assert f"block 0 ffn: modules {', '.join(map(str, range(1, count)))} stay" in out
    assert mom.MoM.from_pretrained(tmp_path / "model").config.num_ffn == count - 1


def test_prune_says_what_is_missing(mom_command: Any, trained: Path, tmp_path: Path) -> None:
    flags = ("--model", trained / "model", "--out_dir", tmp_path)
    status, _, err = mom_command("prune", *flags)
    assert status == 1 and "attn, ffn: nothing to leave out" in err
    status, _, err = mom_command("prune", *flags, "--ffn", 0.5)
    assert status == 1 and "data: needed to measure 'drop_one'" in err and not (tmp_path / "model").exists()


# ------------------------------------------------------------------ info, bench, demo
def test_info_names_versions_and_kernels(mom_command: Any) -> None:
    status, out, _ = mom_command("info")
    assert status == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith("matrix"))
    assert rows["mom"] == mom.__version__ and rows["numpy"] == np.__version__
    assert rows["level"].startswith(mom.cpu_info()["level"])
    assert f"matrix kernel {mom.cpu_info()['gemm']}" in out


def test_info_tells_the_memory_of_a_model(mom_command: Any, tmp_path: Path) -> None:
    config = mom.MoMConfig.preset("demo")
    config.to_json(tmp_path / "config.json")
    shape = ("--batch_size", 3, "--sequence_length", 20, "--dtype", "bfloat16")
    status, out, _ = mom_command("info", "--preset", "demo", *shape)
    assert status == 0
    assert mom_command("info", "--model", tmp_path, *shape)[1] == out
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["training", "checkpointing", "forward"]
    model = mom.MoM(config, dtype="bfloat16")
    plans = [
        model.memory_plan(3, 20), model.memory_plan(3, 20, activation_checkpointing=True),
        model.memory_plan(3, 20, training=False),
    ]  # fmt: skip
    for i, (name, _) in enumerate(plans[0].rows()):
        assert lines[2 + i] == [name, *(f"{1e-6 * plan.rows()[i][1]:,.1f}" for plan in plans)]
    status, _, err = mom_command("info", "--preset", "demo", "--batch_size", 0)
    assert status == 1 and "batch: 0" in err


def test_bench_prints_the_speed_of_a_step(mom_command: Any) -> None:
    small = ("--preset", "demo", "--batch_size", 2, "--sequence_length", 16, "--seconds", 0)
    status, out, _ = mom_command("bench", *small)
    lines = out.splitlines()
    assert status == 0 and [line.split()[0] for line in lines] == ["level", "peak", "memory", "demo,"]
    found = re.fullmatch(r"demo, 2 x 16 tokens: (\S+) s per step, (\S+) tokens/s", lines[3])
    assert found and float(found[1]) >= 0 and int(found[2].replace(",", "")) > 0
    assert mom_command("bench", "--batch_size", 0)[0] == 1


def test_ledger_prints_what_a_model_computes(mom_command: Any, trained: Path) -> None:
    shape = ("--batch_size", 2, "--sequence_length", 16)
    status, out, _ = mom_command("ledger", "--preset", "demo", *shape, "--like", "mini")
    assert status == 0 and all(len(line) <= 80 for line in out.splitlines())
    table = mom.ledger(mom.MoMConfig.preset("demo"), 2, 16)
    assert out.startswith(f"{table}\n") and "memory, training" in out
    line = [line for line in out.splitlines() if line.startswith("FLOPs  ")][-1]
    ratio = table.flops() / mom.ledger(mom.MoMConfig.preset("mini"), 2, 16).flops()
    assert float(line.split()[-1]) == pytest.approx(ratio, abs=1e-3)
    status, out, _ = mom_command("ledger", "--model", trained / "model", *shape, "--measure")
    assert status == 0 and re.search(r"\n\S+ s per training step in float32, \S+ GFLOP/s\n$", out)
    status, _, err = mom_command("ledger", "--preset", "demo", "--sequence_length", 999)
    assert status == 1 and "length: 999, n_positions is 128" in err


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        **config.PRESETS["demo"],
        "n_embd": 16,
        "n_head": 2,
        "n_positions": 32,
        "vocab_size": 300,
        "router_dim": 8,
    }
    monkeypatch.setitem(config.PRESETS, "demo", fields)


def test_demo_runs_on_own_text(mom_command: Any, text: Path, tmp_path: Path, small_demo: None) -> None:
    pytest.importorskip("matplotlib")
    out_dir = tmp_path / "demo"
    status, out, err = mom_command("demo", "--text", text, "--out_dir", out_dir, "--steps", 10)
    assert status == 0, err
    for part in ("Phase one", "Phase two", "MoM at its end", ">>>>", "SKIP in all: ", "round 3", "Heat map"):
        assert part in out, part
    assert "GPT-2: step " in err and "MoM: step " in err and " balance " in err and " tok/s " in err
    assert (out_dir / "module_use.png").read_bytes().startswith(b"\x89PNG")
    model = mom.MoM.from_pretrained(out_dir / "model")
    assert model.tokenizer is not None and not model.config.is_vanilla
    # A second run replaces the first.
    assert mom_command("demo", "--text", text, "--out_dir", out_dir, "--minutes", 0.001)[0] == 0


def test_demo_without_matplotlib_goes_on(
    mom_command: Any, text: Path, tmp_path: Path, small_demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = mom_command("demo", "--text", text, "--out_dir", tmp_path, "--minutes", 0.001)
    assert status == 0 and "No heat map: a picture needs the package matplotlib" in err and "To go on:" in out


def test_demo_learns(text: Path, tmp_path: Path, small_demo: None) -> None:
    losses = demo.run_demo(text, tmp_path, steps=40)
    assert losses["untrained"] - 0.5 > losses["vanilla"] and losses["before"] > losses["after"]


def test_demo_errors(mom_command: Any, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short\n" * 3)
    status, _, err = mom_command("demo", "--text", short, "--out_dir", tmp_path / "out")
    assert status == 1 and "use a longer text" in err
    status, _, err = mom_command("demo", "--minutes", 0, "--out_dir", tmp_path / "out")
    assert status == 1 and "minutes: 0.0 is not a positive finite number" in err
    status, _, err = mom_command("demo", "--steps", 0, "--out_dir", tmp_path / "out")
    assert status == 1 and "steps: 0 is less than 1" in err
    status, _, err = mom_command("demo", "--text", tmp_path / "none.txt", "--out_dir", tmp_path / "out")
    assert status == 1 and "none.txt: no such file or folder" in err


def test_routes_of_a_text(mom_command: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = mom.MoM(mom.MoMConfig.preset("demo", n_embd=16, n_head=2, n_positions=32, vocab_size=300, router_dim=8))
    model.save_pretrained(tmp_path / "bare")
    assert mom_command("routes", "--model", tmp_path / "bare", "--text", "a")[0] == 1
    model.tokenizer = mom.Tokenizer.train(["the cat sat on the mat"] * 9, 280)
    model.save_pretrained(tmp_path / "m")
    for name, begins in (("routes.png", b"\x89PNG"), ("routes.html", b"<!DOCTYPE html>")):
        flags = ("--model", tmp_path / "m", "--text", "the\ncat", "--out", tmp_path / name)
        status, out, err = mom_command("routes", *flags)
        assert status == 0 and f"saved {tmp_path / name}" in err
        assert (tmp_path / name).read_bytes().startswith(begins)
        ids = model.tokenizer.encode("the\ncat")
        lines = out.splitlines()
        assert [line.split()[0] for line in lines[1 : 1 + len(ids)]] == mom.analysis.token_names(model, ids)
        assert "SKIP(" in out and out.count("share of the weight") == 2


# ------------------------------------------------------------------ sweeps
def test_sweep_prints_a_table_and_goes_on(mom_command: Any, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    model = "\n".join(change.replace("=", " = ") for change in SMALL)
    settings = "steps = 4\nbatch_size = 2\nlr = 0.01\nwarmup = 0\neval_batches = 2\npreset = 'demo'"
    grid = tmp_path / "grid.toml"
    grid.write_text(f"[base]\n{settings}\n[base.set]\n{model}\n[grid]\nseed = [0, 1]\nrouting_top_k = [1, 2]\n")
    flags = ("sweep", grid, "--dir", tmp_path / "runs", "--data", data, "--processes", 2, "--threads", 2)
    status, out, err = mom_command(*flags)
    assert status == 0, err
    head, *rows = out.splitlines()
    assert head.split()[:3] == ["routing_top_k", "n", "val_loss"] and {row.split()[1] for row in rows} == {"2"}
    assert "<SweepResult: 4 trials done" in err and "(4/4 done)" in err
    assert mom_command(*flags)[:2] == (0, out), "nothing is left to run"

    grid.write_text(grid.read_text().replace("seed = [0, 1]", "seed = [0]\ntrainable = ['no.*']"))
    status, out, err = mom_command(*flags)
    assert status == 1 and "2 failed" in err and "trainable: 'no.*' fits no parameter" in err
    status, out, err = mom_command("sweep", tmp_path / "none.toml", "--dir", tmp_path / "runs")
    assert status == 1 and "none.toml" in err and err.count("\n") == 1
    grid.write_text("[base]\nroutingtopk = 1\n")
    status, out, err = mom_command("sweep", grid, "--dir", tmp_path / "runs")
    assert (status, out) == (1, "") and "routingtopk: unknown field of a run; did you mean 'routing_top_k'?" in err
