"""What people try first; each does what the person meant or says how.

The person knows another library and has not read the documentation of this one. Ten tests are about transformers, ten
about scikit-learn, ten about nanoGPT and ten about TransformerLens. A try passes if its result is right. It also passes
if the message of its exception or its warning has the name or the words to use instead.
"""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mom

SHAPE: dict[str, int] = {"vocab_size": 300, "n_embd": 32, "n_positions": 64, "router_dim": 16}
CONFIG = mom.MoMConfig.preset("demo", **SHAPE)
SENTENCES = [f"The {who} {did} on the {where}." for who in ("cat", "dog") for did in ("sat", "ran") for where in "abc"]
IDS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 12))
PROMPT = IDS[:1, :5]
#: A short training run.
SHORT: dict[str, Any] = {"batch_size": 2, "sequence_length": 16, "progress": False}

TEXTS = [
    f"{word} {kind} {thing}" for word in ("a", "the", "one")
    for kind in ("warm", "funny", "dull", "flat") for thing in ("film", "play", "book", "song")
]  # fmt: skip
LABELS = ["good" if "warm" in text or "funny" in text else "bad" for text in TEXTS]


def does_or_says(call: Callable[[], Any], check: Callable[[Any], Any], says: str) -> None:
    """A first try does what was meant, which `check` finds out, or raises or warns and says how."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            found = call()
    except Exception as error:
        assert re.search(says, str(error)), f"{type(error).__name__} does not say {says!r}: {error}"
        return
    assert check(found), f"this is not what was meant: {found!r}"


def says_how(call: Callable[[], Any], says: str) -> None:
    """A first try that has no meaning here raises and says what to do instead."""
    with pytest.raises(Exception, match=says):
        call()


def takes_setting(make: Callable[..., Any], typed: str, value: Any, name: str) -> None:
    """An argument under another library's name is taken as the one called `name` here, or the message has this name."""
    does_or_says(lambda: make(**{typed: value}), lambda made: getattr(made, name) == value, rf"\b{name}\b")


def same_weights(found: Mapping[str, Any], model: Any) -> bool:
    """Whether a mapping holds all weights of a model."""
    return set(found) == set(model.parameters) and all(
        np.array_equal(found[name], value) for name, value in model.parameters.items()
    )


@pytest.fixture(scope="module")
def tokenizer() -> mom.Tokenizer:
    return mom.Tokenizer.train(SENTENCES * 4, vocab_size=300)


@pytest.fixture
def model(tokenizer: mom.Tokenizer) -> mom.MoM:
    made = mom.MoM(CONFIG, seed=0)
    made.tokenizer = tokenizer
    return made


@pytest.fixture
def folder(model: mom.MoM, tmp_path: Path) -> Path:
    """A saved model with its tokenizer."""
    model.save_pretrained(tmp_path / "my-model")
    return tmp_path / "my-model"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """Token ids as nanoGPT writes them: nothing but numbers of two bytes."""
    np.random.default_rng(1).integers(0, 300, 400).astype(np.uint16).tofile(tmp_path / "train.bin")
    return tmp_path / "train.bin"


# ---------------------------------------------------------------------- from transformers
def test_call_the_model_with_input_ids(model: Any) -> None:
    mask = np.ones_like(IDS)
    mask[1, 9:] = 0
    labels = np.where(mask == 1, IDS, -100)
    expected = model(IDS, labels=labels, attention_mask=mask).loss
    does_or_says(
        lambda: model(input_ids=IDS, attention_mask=mask, labels=labels),
        lambda out: out.loss == expected,
        r"\btokens\b",
    )


@pytest.mark.xfail(reason="logits are returned on request, as those of a batch can take more memory than the model")
def test_take_the_most_probable_next_token_from_the_logits(model: Any) -> None:
    expected = model(IDS, return_logits=True).logits[0, -1].argmax()
    does_or_says(lambda: model(IDS).logits[0, -1].argmax(), lambda token: token == expected, r"\breturn_logits\b")


def test_sample_until_the_end_token(model: Any) -> None:
    sampled = model.generate(PROMPT, max_new_tokens=8, temperature=1.0, top_k=5)
    does_or_says(
        lambda: model.generate(PROMPT, max_new_tokens=8, do_sample=True, top_k=5),
        lambda found: np.array_equal(found, sampled),
        r"\btemperature\b",
    )
    end = int(sampled[0, 7])
    ended = model.generate(PROMPT, max_new_tokens=8, temperature=1.0, top_k=5, stop_token=end)
    does_or_says(
        lambda: model.generate(PROMPT, max_new_tokens=8, temperature=1.0, top_k=5, eos_token_id=end),
        lambda found: len(found) == 1 and np.array_equal(found[0], ended[0]),
        r"\bstop_token\b",
    )


def test_generate_with_beams(model: Any) -> None:
    best = mom.model.beam_search(mom.Decoder(model), PROMPT, 6, num_beams=4)[0].tokens
    does_or_says(
        lambda: model.generate(PROMPT, max_new_tokens=6, num_beams=4),
        lambda found: np.array_equal(found[0], [*PROMPT[0], *best]),
        r"\bbeam_search\b",
    )


def test_continue_a_text_or_a_list_of_texts(model: Any) -> None:
    says = r"\bgenerate_text\b|\bencode(_batch)?\b"
    prompts = ["The cat", "The dog sat"]
    expected = [model.generate_text(prompt, max_new_tokens=5) for prompt in prompts]
    does_or_says(lambda: model.generate(prompts[0], max_new_tokens=5), lambda found: found == expected[0], says)
    does_or_says(lambda: model.generate(prompts, max_new_tokens=5), lambda found: list(found) == expected, says)


def test_call_the_tokenizer_and_decode_a_batch(tokenizer: Any) -> None:
    texts = ["The cat", "The dog ran on the b."]
    rows = [tokenizer.encode(text) for text in texts]
    does_or_says(lambda: tokenizer(texts[0])["input_ids"], lambda ids: np.array_equal(ids, rows[0]), r"\bencode\b")
    does_or_says(
        lambda: tokenizer(texts, padding=True, return_tensors="np"),
        lambda batch: np.array_equal(batch["input_ids"][batch["attention_mask"] == 1], np.concatenate(rows)),
        r"\bencode_batch\b",
    )
    does_or_says(lambda: tokenizer.batch_decode(rows), lambda found: found == texts, r"\bdecode\b")
    ended = [*rows[0], tokenizer.eos_id]
    does_or_says(
        lambda: tokenizer.decode(ended, skip_special_tokens=True), lambda text: text == texts[0], r"\beos_id\b"
    )


def test_load_a_model_in_bfloat16_for_evaluation(folder: Path, model: Any) -> None:
    does_or_says(
        lambda: mom.MoM.from_pretrained(folder, torch_dtype="bfloat16"),
        lambda loaded: loaded.dtype == "bfloat16",
        r"\bdtype\b",
    )
    loaded: Any = mom.MoM.from_pretrained(folder).eval()
    assert isinstance(loaded, mom.MoM) and not loaded.training
    model.train()
    does_or_says(lambda: model.train(False), lambda _: not model.training, r"\beval\(\)")


def test_load_gpt2_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the Hub, so nothing is downloaded."""
    gpt2 = mom.MoM(mom.MoMConfig.vanilla(2, vocab_size=97, n_positions=32, n_embd=32, n_head=4), seed=1)
    gpt2.save_pretrained(tmp_path / "on-the-hub", naming="huggingface")
    hub: Any = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, **_: str(tmp_path / "on-the-hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    does_or_says(
        lambda: mom.MoM.from_pretrained("gpt2"), lambda found: same_weights(found.parameters, gpt2), r"\bhub:gpt2\b"
    )


def test_bring_a_tokenizer(folder: Path, model: Any) -> None:
    import tokenizers

    loader: Any = mom.Tokenizer
    ids = model.tokenizer.encode(SENTENCES[0])
    does_or_says(
        lambda: loader.from_pretrained(folder),
        lambda found: np.array_equal(found.encode(SENTENCES[0]), ids),
        r"\bload\b",
    )
    expected = model.generate_text("The cat", max_new_tokens=5)

    def give_it_to_the_model() -> str:
        model.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        return str(model.generate_text("The cat", max_new_tokens=5))

    does_or_says(give_it_to_the_model, lambda text: text == expected, r"\bmom\.Tokenizer\b|\bTokenizer\(")


def test_write_training_arguments_and_a_trainer(model: Any, token_file: Path) -> None:
    arguments = [
        ("learning_rate", 3e-4, "lr"), ("per_device_train_batch_size", 4, "batch_size"), ("max_steps", 10, "steps"),
        ("gradient_accumulation_steps", 2, "accumulation"), ("warmup_steps", 3, "warmup"),
    ]  # fmt: skip
    for typed, value, name in arguments:
        takes_setting(mom.TrainingConfig, typed, value, name)
    library: Any = mom
    says_how(lambda: library.Trainer(model=model, train_dataset=token_file).train(), r"\bmom\.train\b")


# ---------------------------------------------------------------------- from scikit-learn
def small_classifier(**settings: Any) -> Any:
    """A classifier that learns `LABELS` of `TEXTS` in a moment."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    return mom.TextClassifier(CONFIG, **{"epochs": 10, "lr": 1e-2, **settings})


def test_fit_and_predict_with_all_defaults() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    classifier: Any = mom.TextClassifier()
    assert classifier.fit(TEXTS * 2, LABELS * 2) is classifier
    predicted = classifier.predict(["a warm book", "one flat song"])
    assert isinstance(predicted, np.ndarray) and predicted.tolist() == ["good", "bad"]
    does_or_says(lambda: classifier.predict("a warm book"), lambda found: found in ("good", ["good"]), r"into a list")


def test_give_settings_under_their_usual_names() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    for typed, value, name in (("random_state", 1, "seed"), ("max_iter", 20, "epochs"), ("learning_rate", 1e-2, "lr")):
        takes_setting(mom.TextClassifier, typed, value, name)
    maker: Any = mom.TextClassifier
    says_how(lambda: maker(n_jobs=2), r"\bset_num_threads\b|\bOMP_NUM_THREADS\b")


def test_read_probabilities_of_a_table() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    classifier = small_classifier().fit(table["text"], table["label"])
    proba = pandas.DataFrame(classifier.predict_proba(table["text"]), columns=classifier.classes_)
    assert proba.shape == (len(TEXTS), 2) and np.allclose(proba.sum(axis=1), 1)
    assert proba.idxmax(axis=1).tolist() == classifier.predict(table[["text"]]).tolist() == LABELS
    assert classifier.score(table["text"], table["label"]) == 1.0


def test_cross_validate() -> None:
    classifier = small_classifier()
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    scores = cross_val_score(classifier, TEXTS, LABELS, cv=2)
    texts, labels = np.array(TEXTS), np.array(LABELS)
    expected = [
        small_classifier().fit(texts[train], labels[train]).score(texts[test], labels[test])
        for train, test in StratifiedKFold(2).split(texts, labels)
    ]
    assert scores.tolist() == expected and min(expected) > 0.5


def test_search_a_grid_of_settings() -> None:
    classifier = small_classifier(epochs=1)
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(classifier, {"epochs": [1, 10], "lr": [1e-5, 1e-2]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_ == {"epochs": 10, "lr": 1e-2}
    assert search.predict(TEXTS[:4]).tolist() == LABELS[:4]
    copy = clone(classifier).set_params(epochs=3)
    assert copy.get_params()["epochs"] == 3 and classifier.get_params()["epochs"] == 1


def test_build_a_pipeline() -> None:
    classifier = small_classifier()
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, classifier).fit([text.upper() for text in TEXTS], LABELS)
    assert pipeline.predict(["A WARM BOOK", "ONE FLAT SONG"]).tolist() == ["good", "bad"]
    vectors = make_pipeline(TfidfVectorizer(), classifier)
    does_or_says(
        lambda: vectors.fit(TEXTS, LABELS), lambda fitted: fitted.score(TEXTS, LABELS) > 0.9, r"expected texts, got"
    )


def test_dump_a_fitted_classifier_with_joblib(tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    classifier = small_classifier().fit(TEXTS, LABELS)
    joblib.dump(classifier, tmp_path / "classifier.joblib")
    again = joblib.load(tmp_path / "classifier.joblib")
    assert np.array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert again.predict(TEXTS).tolist() == LABELS


def test_predict_with_a_saved_model(tmp_path: Path) -> None:
    """The fitted model was saved as a folder. Now its predictions are wanted, with the names of the labels."""
    classifier = small_classifier().fit(TEXTS, LABELS)
    classifier.model_.save_pretrained(tmp_path / "m")
    loaded: Any = mom.MoMForSequenceClassification.from_pretrained(tmp_path / "m")
    does_or_says(
        lambda: loaded.predict(TEXTS), lambda found: list(found) == LABELS, r"\bTextClassifier\b|\blabel_names\b"
    )
    does_or_says(
        lambda: mom.TextClassifier(tmp_path / "m").predict(TEXTS), lambda found: list(found) == LABELS, r"\bjoblib\b"
    )


def test_learn_from_more_texts_later() -> None:
    classifier = small_classifier(epochs=2).fit(TEXTS, LABELS)
    before = classifier.score(TEXTS, LABELS)
    does_or_says(
        lambda: classifier.partial_fit(TEXTS, LABELS),
        lambda found: found is classifier and classifier.score(TEXTS, LABELS) >= before,
        r"\bmodel_\b",
    )


def test_choose_a_size_by_its_name() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    demo = mom.MoMConfig.preset("demo")
    does_or_says(
        lambda: mom.TextClassifier("demo", epochs=1).fit(TEXTS, LABELS),
        lambda fitted: fitted.model_.config.n_embd == demo.n_embd,
        r"\bpreset\(",
    )


# ---------------------------------------------------------------------- from nanoGPT
def test_name_the_sizes_of_the_model(model: Any) -> None:
    takes_setting(mom.MoMConfig, "block_size", 32, "n_positions")
    takes_setting(lambda **sizes: mom.MoMConfig.preset("demo", **sizes), "block_size", 32, "n_positions")
    takes_setting(mom.MoMConfig, "dropout", 0.1, "resid_pdrop")
    does_or_says(
        lambda: model.crop_block_size(16),
        lambda _: model.config.n_positions == 16,
        r"\bn_positions\b|\bsequence_length\b",
    )


def test_make_a_model_of_two_layers() -> None:
    """In a Mixture-of-Modules `n_layer` has another meaning. A warning that says how is enough here."""

    def make() -> mom.MoMConfig:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return mom.MoMConfig(vocab_size=300, n_positions=64, n_layer=2, n_head=2, n_embd=32)

    does_or_says(make, lambda config: config.places() == ["anchor", "anchor"], r"\bvanilla\b")


def test_unpack_logits_and_loss(model: Any) -> None:
    expected = model(IDS, labels=IDS, return_logits=True)

    def unpack(**targets: Any) -> tuple[Any, Any]:
        logits, loss = model(IDS, **targets)
        return logits, loss

    def is_right(found: tuple[Any, Any]) -> bool:
        return np.allclose(found[0], expected.logits, atol=1e-5) and found[1] in (expected.loss, expected.lm_loss)

    does_or_says(lambda: unpack(labels=IDS), is_right, r"\.loss\b")
    does_or_says(
        lambda: model(IDS[:, :-1], targets=IDS[:, 1:]).lm_loss,
        lambda loss: loss == pytest.approx(expected.lm_loss, rel=1e-5),
        r"\blabels\b",
    )


def test_give_the_next_tokens_as_targets(model: Any) -> None:
    """Here labels are the tokens themselves. Targets that are shifted already would be shifted twice."""
    expected = model(IDS, labels=IDS).lm_loss
    does_or_says(
        lambda: model(IDS[:, :-1], IDS[:, 1:]).lm_loss,
        lambda loss: loss == pytest.approx(expected, rel=1e-5),
        r"\bshift",
    )


def test_take_a_step_by_hand(model: Any) -> None:
    does_or_says(
        lambda: model.configure_optimizers(weight_decay=0.1, learning_rate=1e-3, betas=(0.9, 0.95), device_type="cpu"),
        lambda optimizer: isinstance(optimizer, mom.AdamW) and optimizer.lr == 1e-3,
        r"\bmom\.AdamW\b",
    )
    library: Any = mom
    does_or_says(
        lambda: library.AdamW(model.parameters(), lr=1e-3),
        lambda optimizer: optimizer.model is model,
        r"\bAdamW\(model\b|\bexpected a mom model\b",
    )
    does_or_says(
        lambda: model(IDS, labels=IDS).loss.backward(),
        lambda _: model.has_gradient["transformer.wte.weight"],
        r"\b(model|MoM)\.backward\b",
    )
    optimizer: Any = mom.AdamW(model, lr=1e-3)
    model(IDS, labels=IDS)
    model.backward()
    does_or_says(
        lambda: optimizer.zero_grad(set_to_none=True),
        lambda _: not any(model.has_gradient.values()),
        r"\b(model|MoM)\.zero_grad\b|\bzero_grad=True",
    )


def test_count_and_copy_the_parameters(model: Any) -> None:
    count = model.num_parameters
    does_or_says(lambda: model.get_num_params(), lambda found: found == count, r"\bnum_parameters\b")
    does_or_says(
        lambda: sum(p.numel() for p in model.parameters()), lambda found: found == count, r"\bnum_parameters\b|\.size\b"
    )
    does_or_says(lambda: dict(model.named_parameters()), lambda found: same_weights(found, model), r"\bparameters\b")
    does_or_says(lambda: model.state_dict(), lambda found: same_weights(found, model), r"\bparameters\b")
    other: Any = mom.MoM(CONFIG, seed=1)
    does_or_says(
        lambda: other.load_state_dict(dict(model.parameters)),
        lambda _: same_weights(other.parameters, model),
        r"\bload_state\b",
    )


def test_train_on_a_file_an_array_or_a_folder_of_text(token_file: Path, tmp_path: Path) -> None:
    expected = mom.train(mom.MoM(CONFIG, seed=0), token_file, steps=2, **SHORT).lm_loss
    assert expected is not None and np.isfinite(expected)
    tokens: Any = np.memmap(token_file, dtype=np.uint16, mode="r")
    does_or_says(
        lambda: mom.train(mom.MoM(CONFIG, seed=0), tokens, steps=2, **SHORT),
        lambda result: result.lm_loss == expected,
        r"\bTokenFile\b|\btrain\.bin\b|\.npy\b",
    )
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt").write_text("First Citizen: Before we proceed any further, hear me speak.")
    says_how(lambda: mom.train(mom.MoM(CONFIG), tmp_path / "shakespeare", **SHORT), r"\bmom prepare\b")


def test_name_the_settings_of_the_training_script(model: Any, token_file: Path) -> None:
    does_or_says(
        lambda: mom.train(model, token_file, max_iters=2, **SHORT), lambda result: result.step == 2, r"\bsteps\b"
    )
    expected = mom.train(mom.MoM(CONFIG), token_file, steps=2, lr=5e-4, **SHORT).lm_loss
    does_or_says(
        lambda: mom.train(mom.MoM(CONFIG), token_file, steps=2, learning_rate=5e-4, **SHORT),
        lambda result: result.lm_loss == expected,
        r"\blr\b",
    )
    says_how(lambda: mom.train(model, token_file, steps=2, init_from="gpt2", **SHORT), r"\bfrom_(pretrained|vanilla)\b")
    library: Any = mom
    does_or_says(lambda: library.estimate_loss(model, token_file), np.isfinite, r"\bevaluate_loss\b|\bval_loss\b")


def test_misspell_a_name_or_give_a_wrong_path(model: Any, folder: Path, token_file: Path, tmp_path: Path) -> None:
    says_how(lambda: mom.MoMConfig.preset("dmeo"), r"\bdemo\b")
    says_how(lambda: mom.MoMConfig.preset("demo", n_hed=4), r"did you mean 'n_head'")
    says_how(lambda: mom.train(model, token_file, wandb_log=True, **SHORT), r"did you mean 'wandb'")
    says_how(lambda: mom.MoM.from_pretrained(folder.with_name("my-modle")), r"my-modle is not a folder")
    says_how(lambda: mom.train(model, tmp_path / "trian.bin", **SHORT), r"trian\.bin: no such file")
    (tmp_path / "input.txt").write_text("First Citizen: Before we proceed any further, hear me speak.")
    says_how(lambda: mom.train(model, tmp_path / "input.txt", **SHORT), r"\bmom prepare\b")


def test_sample_from_the_folder_of_a_run(token_file: Path, tmp_path: Path) -> None:
    trained = mom.MoM(CONFIG, seed=0)
    mom.train(trained, token_file, steps=2, run_dir=tmp_path / "out" / "first", **SHORT)
    does_or_says(
        lambda: mom.MoM.from_pretrained(tmp_path / "out" / "first"),
        lambda found: same_weights(found.parameters, trained),
        r"\bstep-0*2\b",
    )


# ---------------------------------------------------------------------- from TransformerLens
def test_make_a_model_by_its_name() -> None:
    maker: Any = mom.MoM
    does_or_says(
        lambda: maker("demo"),
        lambda found: found.config == mom.MoMConfig.preset("demo"),
        r"\bpreset\(",
    )


def test_put_the_model_on_a_gpu(folder: Path, model: Any) -> None:
    says_how(lambda: mom.MoM.from_pretrained(folder, device="cuda"), r"(?i)\bcpu\b")
    says_how(lambda: model.to("cuda"), r"(?i)\bcpu\b")


def test_see_the_routes_of_an_output(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model(IDS, return_routes=True)
    expected = mom.analysis.module_use(out.routes)["ffn"].share
    does_or_says(
        lambda: mom.analysis.module_use(out),
        lambda found: np.array_equal(found["ffn"].share, expected),
        r"\.routes\b",
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    says_how(lambda: mom.analysis.plot_routes(out.routes), r"pip install matplotlib")


def test_run_with_a_cache_of_activations(model: Any) -> None:
    expected = model(IDS, return_logits=True).logits
    does_or_says(
        lambda: model.run_with_cache(IDS),
        lambda found: np.allclose(found[0], expected, atol=1e-5) and len(found[1]) > 0,
        r"\bcapture\b",
    )
    library: Any = mom
    says_how(lambda: library.ActivationCache, r"\bcapture\b")


def test_run_with_hooks(model: Any) -> None:
    def zero(value: Any, hook: Any) -> Any:
        return 0 * value

    says = r"\bintervene\b|\binterventions\b"
    says_how(lambda: model.run_with_hooks(IDS, fwd_hooks=[("blocks.0.hook_mlp_out", zero)]), says)
    says_how(lambda: model.add_hook("blocks.0.hook_mlp_out", zero), says)
    says_how(lambda: model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", zero)]), says)


def test_turn_a_text_into_tokens_and_back(model: Any) -> None:
    text = "The cat sat on the a."
    ids = model.tokenizer.encode(text)
    words = [model.tokenizer.decode([token]) for token in ids]
    does_or_says(
        lambda: model.to_tokens(text),
        lambda found: np.shape(found)[0] == 1 and np.array_equal(found[0][-len(ids) :], ids),
        r"\bencode\b",
    )
    says = r"\bdecode\b|\.token\b"
    does_or_says(lambda: model.to_str_tokens(text), lambda found: list(found)[-len(ids) :] == words, says)
    does_or_says(lambda: model.to_string(ids), lambda found: found == text, says)


def test_run_the_model_on_a_text_and_get_its_loss(model: Any) -> None:
    text = "The cat sat on the a."
    ids = model.tokenizer.encode(text)
    out = model(ids, labels=ids, return_token_losses=True, return_logits=True)
    does_or_says(lambda: model(text), lambda found: np.allclose(found.logits, out.logits, atol=1e-5), r"\bencode\b")
    does_or_says(lambda: model(ids, return_type="loss"), lambda found: found in (out.loss, out.lm_loss), r"\blabels\b")
    does_or_says(
        lambda: model(ids, labels=ids, loss_per_token=True),
        lambda found: np.array_equal(found.token_losses, out.token_losses, equal_nan=True),
        r"\breturn_token_losses\b",
    )


def test_name_places_as_hooks(model: Any) -> None:
    """A stream after a layer, and the probabilities of attention, which a method of the model gives."""
    does_or_says(
        lambda: model(IDS, capture="blocks.0.hook_resid_post"),
        lambda out: next(iter(out.captured.values())).shape[-1] == CONFIG.n_embd,
        r"\b(block0\.round\d|anchor0)\.(attn|ffn)\.(input|output)\b",
    )
    does_or_says(
        lambda: model(IDS, capture="blocks.0.attn.hook_pattern"),
        lambda out: next(iter(out.captured.values())).shape == (2, CONFIG.n_head, 12, 12),
        r"\.attention\b|\battention\(",
    )
    captured = model(IDS, capture="hidden").captured
    says_how(lambda: captured["resid_post", 0], r"there are hidden|\bcapture=")


def test_read_and_write_the_configuration(model: Any) -> None:
    does_or_says(lambda: model.cfg, lambda found: found == model.config, r"\bconfig\b")
    sizes = [
        ("d_model", 96, "n_embd"), ("n_ctx", 64, "n_positions"), ("n_heads", 4, "n_head"), ("n_layers", 3, "n_layer"),
        ("d_vocab", 300, "vocab_size"), ("d_mlp", 64, "n_inner"),
    ]  # fmt: skip
    for typed, value, name in sizes:
        takes_setting(mom.MoMConfig, typed, value, name)
    config: Any = model.config
    does_or_says(lambda: config.d_model, lambda found: found == config.n_embd, r"\bn_embd\b")


def test_read_weights_by_their_letters(model: Any) -> None:
    wte, wpe = (model.parameters[f"transformer.{name}.weight"] for name in ("wte", "wpe"))
    does_or_says(lambda: model.W_E, lambda found: np.array_equal(found, wte), r"\btransformer\.wte\.weight\b")
    does_or_says(lambda: model.W_U, lambda found: np.array_equal(found, wte.T), r"\btransformer\.wte\.weight\b")
    does_or_says(lambda: model.W_pos, lambda found: np.array_equal(found, wpe), r"\btransformer\.wpe\.weight\b")
    says_how(lambda: model.blocks[0].attn.W_Q, r"\battention_pool\b")
    says_how(lambda: model.blocks[0].mlp.W_in, r"\bffn_pool\b")
