"""`mom.pretrain` and ``mom pretrain``: the published recipe for any budget, and both phases one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom
from mom import cli
from mom.data import TextDocuments
from mom.data.prepare import prepare
from mom.errors import ConfigError, DataError
from mom.training import RECIPES, pretrain

CONFIG = mom.MoMConfig.preset("demo", n_embd=16, n_head=2, n_positions=32, router_dim=8, depth_per_chunk=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = ["the", "module", "token", "router", "chooses", "skips", "a", "path", "and", "again"]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(200)]
    folder = tmp_path_factory.mktemp("recipe") / "data"
    prepare(TextDocuments(texts), folder, vocab_size=300, val_fraction=0.1, progress=False)
    return folder


def test_the_recipe_is_the_published_one() -> None:
    paper = RECIPES["paper"]
    plan = paper.scaled(paper.tokens, 1024)
    assert (plan.steps, plan.tokens_per_step, plan.sequence_length) == (5000, 512 * 1024, 1024)
    defaults = mom.TrainingConfig()
    for name in ("lr", "schedule", "final_lr", "beta1", "beta2", "eps", "weight_decay", "clip"):
        assert getattr(plan, name) == getattr(defaults, name)
    assert plan.warmup_steps == 500


@pytest.mark.parametrize("tokens", [100, 5_000, 10**6, 10**7, 3 * 10**8])
@pytest.mark.parametrize("positions", [32, 256, 1024, 2048])
def test_a_budget_is_kept(tokens: int, positions: int) -> None:
    if tokens < 2 * min(positions, 1024):
        with pytest.raises(ConfigError, match=f"tokens: {tokens} are less than two sequences"):
            RECIPES["paper"].scaled(tokens, positions)
        return
    plan = RECIPES["paper"].scaled(tokens, positions)
    assert abs(plan.steps * plan.tokens_per_step - tokens) <= plan.tokens_per_step / 2, "no step too many or too few"
    assert tokens < 10**5 or plan.steps * plan.tokens_per_step == pytest.approx(tokens, rel=0.02)
    assert plan.steps <= 5300 and plan.sequence_length == min(positions, 1024)
    assert plan.tokens_per_step >= min(1024, tokens // 4) and plan.batch_size * plan.sequence_length <= 4096
    if tokens > 10**8:
        assert plan.steps >= 4700, "a step grows, their number stays"


def test_both_phases(data: Path, tmp_path: Path) -> None:
    first = pretrain(CONFIG, data, tmp_path / "one", phase="vanilla", tokens=40_000, progress=False, seed=1)
    assert first.model.config.is_vanilla and first.folder == tmp_path / "one" / "model"
    assert first.tokens == pytest.approx(40_000, rel=0.1) and first.training.val_loss is not None
    second = pretrain(
        CONFIG, data, tmp_path / "two", phase="mom", vanilla=first.folder, tokens=40_000, progress=False, lr=0.002
    )
    assert second.training.val_loss is not None and second.training.val_loss < first.training.val_loss
    assert second.config.lr == 0.002 and not second.model.config.is_vanilla
    saved = mom.MoM.from_pretrained(tmp_path / "two" / "model")
    assert saved.tokenizer.sha256 == mom.Tokenizer.load(data).sha256 and saved.config.vocab_size == 300
    written = json.loads((tmp_path / "two" / "recipe.json").read_text())
    assert written["phase"] == "mom" and written["tokens"] == second.tokens and written["training"]["lr"] == 0.002


def test_minutes_become_tokens(data: Path, tmp_path: Path) -> None:
    result = pretrain(CONFIG, data, tmp_path / "run", phase="vanilla", minutes=0.01, progress=False)
    assert result.tokens > 0 and result.training.step == result.config.steps


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resuming_keeps_the_plan_and_the_dtype(dtype: str, data: Path, tmp_path: Path) -> None:
    whole = pretrain(CONFIG, data, tmp_path / "a", phase="vanilla", tokens=30_000, dtype=dtype, progress=False)

    class Stop(Exception):
        pass

    class Interrupt:
        def record(self, record: dict[str, Any]) -> None:
            if record["step"] == whole.config.steps - 1:
                raise Stop

        def close(self) -> None:
            pass

    with pytest.raises(Stop):
        pretrain(
            CONFIG, data, tmp_path / "b", phase="vanilla", tokens=30_000, dtype=dtype, progress=False,
            callbacks=[Interrupt()],
        )  # fmt: skip
    resumed = pretrain(CONFIG, data, tmp_path / "b", phase="vanilla", resume=True, progress=False)
    assert resumed.config == whole.config and resumed.model.dtype == dtype
    assert all(np.array_equal(v, resumed.model.parameters[n]) for n, v in whole.model.parameters.items())


class Stop(Exception):
    pass


class StopAt:
    """Ends a run with an exception after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def record(self, record: dict[str, Any]) -> None:
        if record["step"] == self.step:
            raise Stop

    def close(self) -> None:
        pass


def test_a_resumed_phase_two_has_begun_with_the_same_model(data: Path, tmp_path: Path) -> None:
    plain = CONFIG.replace(vocab_size=300).vanilla_config()
    one, other = (mom.MoM(plain, seed=seed) for seed in (1, 2))
    other.save_pretrained(tmp_path / "other")

    def run(folder: str, **changes: Any) -> Any:
        settings = {"phase": "mom", "tokens": 20_000, "progress": False, "save_every": 1, **changes}
        return pretrain(CONFIG, data, tmp_path / folder, **settings)

    with pytest.raises(Stop):
        run("run", vanilla=one, callbacks=[StopAt(3)])
    for again in range(2):  # a resumed run that was not told of the model keeps what is known of it
        with pytest.raises(ConfigError, match=r"another run: start was [0-9a-f]{12} and is now [0-9a-f]{12}\. "):
            run("run", vanilla=tmp_path / "other", resume=True)
        with pytest.raises(Stop):
            run("run", vanilla=None if again else one, resume=True, callbacks=[StopAt(5 + again)])
    assert run("run", vanilla=other, resume=True, allow_changes=True).training.step == 10
    with pytest.raises(Stop):
        run("fresh", callbacks=[StopAt(3)])
    with pytest.raises(ConfigError, match="start was fresh weights and is now "):
        run("fresh", vanilla=one, resume=True)
    assert run("fresh", resume=True).training.step == 10


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"phase": "three"}, ConfigError, "phase: 'three' is not one of 'vanilla', 'mom'"),
        ({"vanilla": "x"}, ConfigError, "vanilla: phase 'vanilla' makes this model"),
        ({"recipe": "soup"}, ConfigError, "recipe: 'soup' is not one of paper"),
        ({"tokens": None}, ConfigError, "tokens: expected one of tokens and minutes"),
        ({"minutes": 1.0}, ConfigError, "tokens: expected one of tokens and minutes"),
        ({"tokens": None, "minutes": 0.0}, ConfigError, "minutes: 0.0 is not a positive finite number"),
        ({"tokens": 9}, ConfigError, "tokens: 9 are less than two sequences of 32"),
        ({"config": "huge"}, ConfigError, "name: no preset 'huge'"),
        ({"vanilla": mom.MoM(CONFIG), "phase": "mom"}, ConfigError, "vanilla: expected a plain GPT-2"),
        ({"config": "gpt2", "phase": "mom"}, ConfigError, "config: a plain GPT-2 has no phase 'mom'"),
        ({"data": "nowhere"}, DataError, "nowhere/meta.json: no such file; make the folder with 'mom prepare'"),
    ],
)
def test_arguments_are_checked(
    changes: dict[str, Any], kind: type[Exception], message: str, data: Path, tmp_path: Path
) -> None:
    given = {"config": CONFIG, "data": data, "run_dir": tmp_path / "run", "phase": "vanilla", "tokens": 9999, **changes}
    with pytest.raises(kind, match=message):
        pretrain(**given)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = [f"{n}={getattr(CONFIG, n)}" for n in ("n_embd", "n_head", "n_positions", "router_dim", "depth_per_chunk")]
    common = ["pretrain", "--data", str(data), "--tokens", "2e4", "--preset", "demo", "--progress", "false",
              *(word for change in shape for word in ("--set", change))]  # fmt: skip
    assert cli.main([*common, "--phase", "vanilla", "--run_dir", str(tmp_path / "one")]) == 0
    out = capsys.readouterr().out
    assert "tokens in 10 steps of 2,048" in out and out.endswith(f"model {tmp_path / 'one' / 'model'}\n")
    second = [*common, "--phase", "mom", "--run_dir", str(tmp_path / "two")]
    assert cli.main(second) == 1 and "phase: 'mom' starts --from" in capsys.readouterr().err
    assert cli.main([*second, "--from", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("mom: error: --from: ")
    assert cli.main([*common, "--phase", "vanilla", "--run_dir", str(tmp_path / "x"), "--from", "y"]) == 1
    assert capsys.readouterr().err.startswith("mom: error: --from: phase 'vanilla' makes this model")
    assert cli.main([*second, "--from", str(tmp_path / "one" / "model"), "--dtype", "bfloat16", "--lr", "0.01"]) == 0
    assert "validation loss" in capsys.readouterr().out
    assert json.loads((tmp_path / "two" / "recipe.json").read_text())["dtype"] == "bfloat16"
