"""Classify and rate texts with scikit-learn's interface: `TextClassifier` and `TextRegressor`.

This module needs the package scikit-learn; the rest of `mom` does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError(
        f"TextClassifier and TextRegressor need the package scikit-learn: pip install scikit-learn ({error})"
    ) from None

from ._arguments import PathLike, flag
from .config import MoMConfig
from .data.columns import checked_labels, texts_or_pairs
from .data.encode import encode_texts
from .data.tokenizer import Tokenizer
from .errors import ConfigError
from .familiar import Familiar, field_hint
from .interventions.rules import Intervention
from .model import MoM, MoMForSequenceClassification
from .model.answers import classify, finite_logits
from .training.adapt import classifier_from, warn_of_frozen, warn_of_idle_routers
from .training.config import FinetuneConfig
from .training.finetune import LoopResult, RunOptions, fit_classifier

__all__ = ["TextClassifier", "TextRegressor"]


#: Vocabulary of the tokenizer that is trained when there is no model to begin with.
_FRESH_VOCAB = 2048


class _TextEstimator(Familiar, BaseEstimator):  # type: ignore[misc]
    """What both estimators share: parameters, preparation of texts and training."""

    def __new__(cls, *args: Any, **settings: Any) -> Any:
        names = cls._get_param_names()
        for name in settings:
            if name not in names:
                raise TypeError(f"{cls.__name__}: unexpected argument {name!r}{field_hint('fine-tuning', name, names)}")
        return super().__new__(cls)

    def __init__(
        self,
        model: MoM | MoMForSequenceClassification | MoMConfig | PathLike | None = None,
        *,
        epochs: int = 5,
        batch_size: int = 16,
        lr: float = 1e-3,
        warmup: int | float = 0.1,
        weight_decay: float = 0.01,
        dropout: float | None = None,
        max_length: int | None = None,
        train: str = "all",
        validation_fraction: float = 0.0,
        patience: int = 3,
        seed: int = 0,
        verbose: bool = False,
        interventions: Sequence[Intervention] | None = None,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.warmup = warmup
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.max_length = max_length
        self.train = train
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.seed = seed
        self.verbose = verbose
        self.interventions = interventions

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string = True, False, True
        return tags

    # ------------------------------------------------------------------ work
    def _config(self) -> FinetuneConfig:
        shared = {name: value for name, value in vars(self).items() if name in FinetuneConfig.names()}
        return FinetuneConfig(**shared, evals_per_epoch=1)

    def _body(self, texts: list[tuple[str, ...]]) -> MoM | MoMForSequenceClassification:
        """The initial model: the given one, or a new small one with a tokenizer trained on the texts."""
        if isinstance(self.model, (str, os.PathLike)):
            return MoM.resolve(self.model)
        if isinstance(self.model, (MoM, MoMForSequenceClassification)):
            return self.model
        if self.model is not None and not isinstance(self.model, MoMConfig):
            raise TypeError(
                f"model: expected a model, a configuration, a path or None, got {type(self.model).__name__}"
            )
        size = _FRESH_VOCAB if self.model is None else self.model.vocab_size
        tokenizer = Tokenizer.train((text for row in texts for text in row), size)
        config = MoMConfig.preset("demo") if self.model is None else self.model
        made = MoM(config.replace(vocab_size=tokenizer.vocab_size, num_labels=None), seed=self.seed)
        made.tokenizer = tokenizer
        return made

    def _fit(
        self, texts: list[tuple[str, ...]], labels: npt.NDArray[Any], num_labels: int, problem: str, **learnt: Any
    ) -> None:
        """Train, then set all attributes at once, so that after an error the estimator predicts as before."""
        flag(self.verbose, "verbose")
        _check_number(labels, texts)
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ConfigError(f"validation_fraction: {self.validation_fraction} is not in [0, 1)")
        config = self._config()
        body = self._body(texts)
        with body.intervene(self._rules(), untouched="warn"):
            self._fit_body(body, config, texts, labels, num_labels, problem, **learnt)

    def _rules(self) -> Sequence[Intervention]:
        return () if self.interventions is None else self.interventions

    def _fit_body(
        self,
        body: MoM | MoMForSequenceClassification,
        config: FinetuneConfig,
        texts: list[tuple[str, ...]],
        labels: npt.NDArray[Any],
        num_labels: int,
        problem: str,
        **learnt: Any,
    ) -> None:
        warn_of_frozen(body, config.train, stacklevel=4)
        warn_of_idle_routers(body.config, config.train, language_model=False, stacklevel=4)
        made = classifier_from(body, num_labels, problem, self.seed, config.dropout)
        if "classes_" in learnt:
            made.label_names = _names(learnt["classes_"])
        length = config.length_for(made.config)
        rows, _ = encode_texts(made.tokenizer, texts, length)
        order = np.random.default_rng([self.seed, 1]).permutation(len(rows))
        held_out, kept = np.split(order, [int(round(self.validation_fraction * len(rows)))])
        if not len(kept):
            raise ConfigError(f"validation_fraction: {self.validation_fraction} leaves none of {len(rows)} texts")
        kept = np.sort(kept)

        def score() -> float:
            logits = classify(made, [rows[i] for i in held_out])
            if problem == "regression":
                return -float(np.mean((logits[:, 0] - labels[held_out]) ** 2))
            return float(np.mean(logits.argmax(axis=1) == labels[held_out]))

        loop = fit_classifier(
            made, [rows[i] for i in kept], labels[kept], config, self.seed, score if len(held_out) else None,
            RunOptions(label=type(self).__name__, progress=bool(self.verbose)),
        )  # fmt: skip
        self.model_: MoMForSequenceClassification = made
        self.loop_: LoopResult = loop
        self.max_length_ = length
        for name, value in learnt.items():
            setattr(self, name, value)

    def _logits(self, texts: Iterable[Any]) -> npt.NDArray[np.float32]:
        check_is_fitted(
            self,
            "model_",
            msg="This %(name)s instance is not fitted yet. Call fit, or load a fitted one with joblib; the model in a "
            "folder predicts itself: mom.MoMForSequenceClassification.from_pretrained(folder).predict(texts)",
        )
        rows, _ = encode_texts(self.model_.tokenizer, texts_or_pairs(texts), self.max_length_)
        with self.model_.intervene(self._rules(), untouched="warn"):
            return finite_logits(classify(self.model_, rows))


def _names(classes: npt.NDArray[Any]) -> list[str] | None:
    """Names of classes for the model's files; None if two of them would have one name."""
    names = [str(value) for value in classes.tolist()]
    return names if len(set(names)) == len(names) and all(names) else None


def _check_number(y: npt.NDArray[Any], texts: list[tuple[str, ...]]) -> None:
    if len(y) != len(texts):
        raise ValueError(f"y: {len(y)} values for {len(texts)} texts")


_PARAMETERS = """
    Parameters
    ----------
    model : MoM, MoMForSequenceClassification, MoMConfig, path or None
        What to begin with: a model or its folder, with a tokenizer; or the shape of a new one; None: a new small model.
        New ones get a tokenizer trained on the texts. The model given is left as it is.
    epochs, batch_size, lr, warmup, weight_decay, dropout, max_length, train
        See `FinetuneConfig`.
    validation_fraction : float
        Share of the texts that is held out to choose the best weights and to stop early; 0: the last weights are kept.
    patience : int
        Epochs in a row without a better score on the held-out texts after which training stops; 0: never.
    seed : int
        Of new weights, the order of the data and dropout.
    verbose : bool
        Write progress to standard error.
    interventions : sequence of Intervention, optional
        Active in training and in predictions, see `MoM.intervene`; ``model_`` itself is without them.
"""


class TextClassifier(ClassifierMixin, _TextEstimator):  # type: ignore[misc]
    __doc__ = f"""Texts in, labels out, with the verbs of scikit-learn.
{_PARAMETERS}
    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    model_ : MoMForSequenceClassification
    loop_ : LoopResult
        How training went.

    Examples
    --------
    >>> import mom
    >>> texts = ["good film", "a bad film", "good", "really bad"] * 8
    >>> labels = ["yes", "no", "yes", "no"] * 8
    >>> config = mom.MoMConfig.preset("demo", n_embd=32, n_positions=32, vocab_size=300)
    >>> classifier = mom.TextClassifier(config, epochs=25, lr=1e-2, batch_size=8).fit(texts, labels)
    >>> classifier.predict(["bad", "good"]).tolist()
    ['no', 'yes']
    """

    classes_: npt.NDArray[Any]

    def fit(self, X: Iterable[Any], y: Sequence[Any]) -> TextClassifier:  # noqa: N803
        """Learn from texts.

        Parameters
        ----------
        X : iterable of str, or of pairs of str
        y : array of labels, shape (N,)
            Of any type that NumPy can sort; at least two different ones.
        """
        texts = texts_or_pairs(X)
        values = checked_labels(y)
        _check_number(values, texts)
        classes, labels = np.unique(values, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y: expected at least two classes, got {len(classes)}")
        self._fit(texts, labels.astype(np.int64), len(classes), "single_label_classification", classes_=classes)
        return self

    def predict_log_proba(self, X: Iterable[Any]) -> npt.NDArray[np.float64]:  # noqa: N803
        """Logarithms of `predict_proba`, (N, classes)."""
        logits = self._logits(X).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return result

    def predict_proba(self, X: Iterable[Any]) -> npt.NDArray[np.float64]:  # noqa: N803
        """Probabilities of the labels in the order of ``classes_``, (N, classes)."""
        result: npt.NDArray[np.float64] = np.exp(self.predict_log_proba(X))
        return result

    def predict(self, X: Iterable[Any]) -> npt.NDArray[Any]:  # noqa: N803
        """The most probable label of each text, (N,)."""
        chosen = self._logits(X).argmax(axis=1)
        found: npt.NDArray[Any] = self.classes_[chosen]
        return found

    def score(self, X: Iterable[Any], y: Sequence[Any], sample_weight: Any = None) -> float:  # noqa: N803
        """Share of the texts whose label is predicted rightly."""
        return float(super().score(X, checked_labels(y), sample_weight))


class TextRegressor(RegressorMixin, _TextEstimator):  # type: ignore[misc]
    __doc__ = f"""Texts in, numbers out, with the verbs of scikit-learn.
{_PARAMETERS}
    Attributes
    ----------
    mean_, scale_ : float
        Mean and standard deviation of the numbers; the model learns them standardised.
    model_ : MoMForSequenceClassification
    loop_ : LoopResult
        How training went.
    """

    mean_: float
    scale_: float

    def fit(self, X: Iterable[Any], y: npt.ArrayLike) -> TextRegressor:  # noqa: N803
        """Learn from texts.

        Parameters
        ----------
        X : iterable of str, or of pairs of str
        y : array of float, shape (N,)
        """
        texts = texts_or_pairs(X)
        values = _numbers(y)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = float(values.mean()), float(values.std()) or 1.0
        if not np.isfinite([mean, scale]).all():
            raise ValueError(f"y: numbers as large as {np.abs(values).max():.3g} have no finite standard deviation")
        self._fit(texts, ((values - mean) / scale).astype(np.float32), 1, "regression", mean_=mean, scale_=scale)
        return self

    def predict(self, X: Iterable[Any]) -> npt.NDArray[np.float64]:  # noqa: N803
        """A number for each text, (N,)."""
        standardised = self._logits(X)[:, 0].astype(np.float64)
        with np.errstate(over="ignore"):
            result: npt.NDArray[np.float64] = standardised * self.scale_ + self.mean_
        return result

    def score(self, X: Iterable[Any], y: npt.ArrayLike, sample_weight: Any = None) -> float:  # noqa: N803
        """Coefficient of determination of the predictions."""
        return float(super().score(X, _numbers(y), sample_weight))


def _numbers(y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = checked_labels(y)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"y: {values.dtype} of shape {values.shape}, expected numbers of shape (N,)")
    if not np.isfinite(values).all():
        raise ValueError("y: not all are finite numbers")
    return values.astype(np.float64)
