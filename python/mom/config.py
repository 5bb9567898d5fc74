"""Model configuration: the field names of the published reference, plus fields that select behaviour of this package.

`MoMConfig` is frozen and validated on construction. The defaults of some fields differ from the reference's behaviour;
see ``BEHAVIOUR_FIELDS``. Files written by the reference (or by Hugging Face's GPT-2) select the reference's behaviour
in all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import file_fields
from ._arguments import PathLike
from ._json import to_json
from ._reading import read_json, shown
from .errors import ConfigError
from .presets import PRESETS
from .routers import KINDS, router_kind, spelling_problem
from .settings import Settings, at_least, between, one_of, setting

__all__ = ["BEHAVIOUR_FIELDS", "MoMConfig", "PRESETS"]

#: Fields in which the default of this package differs from the published reference, with the
#: value that restores the reference's behaviour. A configuration file that carries none of this
#: package's own fields gets these values.
BEHAVIOUR_FIELDS: dict[str, Any] = {
    "balance_loss": "reference",
    "balance_counts": "micro",
    "router_choices": "reference",
    "masked_query_attention": "reference",
    "pooling": "reference",
    "copy_final_norm": False,
    "copy_single_modules": False,
}

#: A configuration file with none of these fields describes a plain GPT-2.
_MOM_KEYS = frozenset({"chunks", "num_attn", "num_ffn", "router_type", "depth_per_chunk"})

#: Kinds of models that are computed here.
_MODEL_TYPES = ("gpt2", "gpt2-mot")

#: Other names of fields in configuration files of transformers.
_OTHER_NAMES = {
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}  # fmt: skip

#: Smallest normal and largest number of the core's arithmetic.
_TINY, _LARGEST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127
_MOST_PARTS, _MOST_ROUNDS, _MOST_MODULES = 4096, 65536, 65536
_SIZE = at_least(1, 2**24)
_DROPOUT = between(0, 1, open_end=True)
_POSITIVE = between(_TINY, _LARGEST, "a positive finite number of type float32")
_NON_NEGATIVE = between(0.0, _LARGEST, "a non-negative finite number of type float32")


@dataclass(frozen=True, repr=False)
class MoMConfig(Settings):
    """Shape and behaviour of a Mixture-of-Modules or of a plain GPT-2.

    The body of the network begins with ``num_bottom_layers`` ordinary ("anchor") layers and ends with
    ``num_top_layers`` anchor layers. Between them are ``chunks`` MoM blocks, each followed by one anchor layer if
    ``require_anchor_layer``. ``chunks=0`` is a plain GPT-2.

    Parameters
    ----------
    vocab_size, n_positions, n_embd, n_head : int
        Vocabulary V, longest sequence, width C and number of heads H (H divides C).
    n_layer : int
        Sets the initial standard deviation of the anchor layers' output projections,
        ``initializer_range / sqrt(2 * n_layer)``, as in GPT-2. The depth of the network follows
        from the structure fields, except that a plain GPT-2 (``chunks=0``) has ``n_layer`` layers.
    n_inner : int or None
        Width of the feed-forward modules; None means ``4 * n_embd``.
    activation_function : str
        ``"gelu_new"`` (the tanh form; ``"gelu_pytorch_tanh"`` is the same function).
    resid_pdrop, embd_pdrop, attn_pdrop : float
        Dropout probabilities in [0, 1), active in training mode only. Routed feed-forward outputs
        have no dropout, as in the reference.
    layer_norm_epsilon, initializer_range : float
        GPT-2's constants.
    scale_attn_weights : bool
        Divide attention scores by the square root of the head size.
    chunks, num_bottom_layers, num_top_layers, require_anchor_layer
        Structure of the body, see above.
    num_attn, num_ffn : int
        Modules in a block's attention and feed-forward pool. A half with a single module has no
        router: the module is applied in every round (but see `route_single`).
    depth_per_chunk : int or None
        Rounds per block; None means ``int(num_ffn * depth_multiplier)``.
    depth_multiplier : float
        See `depth_per_chunk`.
    router_type : str
        ``naive`` (two linear layers), ``linear`` (one), ``gru-dev`` or ``gru`` (recurrent over rounds), ``norm`` or
        ``hash``. The suffixes
        ``-softmax`` and ``-random`` may follow: ``"gru-random-softmax"``. The order of the words is free, but each
        may stand there once, and other words are refused. ``softmax`` normalises the scores. ``random`` adds the
        noise gate to a recurrent router; other kinds have none. A ``hash`` router has no parameters and no scores:
        a hash of token id, round and half chooses the modules, and all kept choices have the same weight. A ``norm``
        router has a projection for each module, ``router_dim // modules`` wide; the output of a module is the root mean
        square of the projected token (after Autonomy-of-Experts, arXiv:2501.13074, where the projection is a part of
        the module).
    router_dim : int
        Width R of the routers.
    router_softmax_temperature : float
        Divides the router's outputs before the softmax.
    router_renormalise : bool
        Whether kept probabilities are divided by their sum (default; the reference). With one choice per token its
        weight is then always 1, so that the loss does not train the router; without, it is the probability (as in the
        Switch Transformer, arXiv:2101.03961).
    router_layernorm : bool
        Routers read the stream through a LayerNorm of their own.
    router_rounds : {"shared", "embedding", "projection"}
        What a router has for each round of a block: nothing (default; the reference), a vector that is added to its
        input, or a last linear map of the round's own.
    router_state : {"kept", "detached", "reset"}
        Of a recurrent router: whether its state goes on to the next round with its gradient (default; the reference),
        without gradient, or not at all.
    router_jitter : float
        In training, uniform noise in [-router_jitter, router_jitter) is added to the outputs.
    router_frozen : bool
        The parameters of routers keep their first, random values. What they read still gets a gradient through them.
    router_bias_rate : float
        Balance without a loss (arXiv:2408.15664): each choice has a bias that is added to its score when the best
        choices are taken, but not to its weight. A step of `AdamW` lowers the bias of choices with more than their
        equal share of the tokens by this rate, and raises the others. With 0, the default, there is no bias.
    routing_top_k : int
        Choices kept per token. A number above that of the choices keeps all of them. The published code does the
        same, and its configurations use this, so it is no error.
    enable_pause : bool
        Whether SKIP is among the choices.
    route_single : bool
        A half with a single module has a router, too, which chooses between the module and SKIP.
    skip_is_final : bool
        A token whose first choice in a half is SKIP makes no choice in this half in all later rounds of the block.
    shared_pools : {"none", "attn", "ffn", "both"}
        Halves in which all blocks use the modules of the first block. Each block has routers of its own.
    round_pdrop : float
        In training, the probability with which a round of a block is left out of a pass, for all its tokens
        (arXiv:1909.11556). Nothing is scaled to make up for it.
    use_ste, weighted_qkv, routing_all_possible_path : bool
        Straight-through sign of the scores; scores also multiply q, k and v; dense mixture.
    router_aux_loss_coef : float
        Weight of the balance loss in ``loss = lm_loss + router_aux_loss_coef * balance_loss``; see `loss_weights`.
    router_z_loss_coef : float
        Weight of the z-loss, the mean square of the log-sum-exp of the routers' outputs before temperature and softmax
        (arXiv:2202.08906), in the same sum. With 0, the default, it is not computed.
    router_path_loss_coef : float
        Weight of the path loss in the same sum: with P the mean of a token's probabilities over the rounds of a block,
        M times the sum of P² over the M modules, divided by the square of the sum of P. It is 1 if the token is spread
        evenly over the modules, and M if it never leaves one. Needs probabilities. With 0, the default, it is not
        computed.
    router_route_loss_coef : float
        Weight of the route loss in the same sum: the mean over half-rounds and tokens of the negative logarithm of the
        probability that a router gives to the choices that were made. Where they are forced, it teaches the router to
        make them by itself; see `mom.surgery.distil_routes`. With 0, the default, it is not computed.
    router_coupling_loss_coef : float
        Weight of the coupling loss in the same sum, which ties a router to its modules (arXiv:2512.23447). The row of
        the map that selects a module goes through LayerNorm and first layer (``c_fc``, ``c_attn``) of every module.
        The loss is large where another module than the row's own gives a longer output. It is also large where
        another row excites a module more than its own row does. In training the rows are multiplied by random numbers
        near 1. The loss is the mean over the halves of blocks with several modules, and does not depend on the
        tokens. Needs a ``linear`` router. The published loss has no LayerNorm and is for feed-forward experts only.
        With 0, the default, it is not computed.
    output_router_logits : bool
        If False, there is no balance loss. With a ``hash`` router there is neither balance loss nor z-loss in any case.
    depthwise_bal_loss : bool
        The balance loss is the average over rounds and blocks, instead of one loss pooled over all of them.
    bind_ffn_attn : bool
        Has no effect, but requires ``num_attn == num_ffn``, as in the reference.
    balance_loss : {"switch", "reference"}
        ``"switch"`` (default): a softmax is applied only to scores that are not probabilities already, and every routed
        half counts. ``"reference"``: a softmax is applied in any case, and there is no balance loss at all when
        ``num_attn == 1``.
    balance_counts : {"micro", "step"}
        Whether the share of tokens f_m is counted in each micro-batch (default; the reference) or
        over the micro-batches since the gradients were last zeroed (arXiv:2501.11873).
    balance_routes : {"preferred", "used"}
        Which choice of a token f_m counts: the one with the best score (default; the reference), or the first one that
        was made. They differ where choices are forced, see `mom.Force`.
    router_choices : {"max", "own", "reference"}
        Outputs of a router, without SKIP: ``"max"`` (default) the larger pool for both halves,
        ``"own"`` each half's own pool, ``"reference"`` ``num_ffn`` for linear and ``dev`` routers
        and the larger pool for ``gru``. An index beyond the half's own pool means SKIP.
    surplus_attn, surplus_ffn : int
        Further outputs of the routers of a half, beyond those of `router_choices`; they mean SKIP, too. `mom.surgery`
        uses them for outputs of modules that it has left out.
    masked_query_attention : {"causal", "reference"}
        What a masked token attends to when everything before it is masked, too. ``"causal"`` (default): its own past.
        ``"reference"``: also real tokens in its future.
    pooling : {"mask", "reference"}
        Sequence classification pools at the last token whose mask is 1 (default; without a mask,
        as the reference), and positions count from the first such token; or, as in the reference, before the first
        ``pad_token_id`` (the last position if there is none), with positions that count padding on the left.
    vanilla_path_bias : float
        When starting from a plain GPT-2: added to the bias with which round r of a block prefers module r, so that
        tokens first pass the layers in the plain model's order. Needs ``router_rounds="projection"``.
    copy_final_norm, copy_single_modules : bool
        When starting from a plain GPT-2: copy the final LayerNorm; fill halves with a single
        module. Both True by default and False in the reference.
    num_labels : int or None
        Outputs of the classification head; None for a language model.
    problem_type : str or None
        ``"regression"``, ``"single_label_classification"``, ``"multi_label_classification"``;
        None decides from `num_labels` and the labels' type.
    bos_token_id, eos_token_id, pad_token_id : int or None
        Special tokens.

    Raises
    ------
    ConfigError
        If a field is out of range or contradicts another one.

    Notes
    -----
    Source: Gong et al., Mixture-of-Modules, arXiv:2407.06677. The reference's defaults for dropout
    are 0.1, but its training script sets them to 0, which is the default here.
    """

    noun = "configuration"
    table = "model"

    vocab_size: int = setting(50257, _SIZE)
    n_positions: int = setting(1024, _SIZE)
    n_embd: int = setting(768, _SIZE)
    n_layer: int = setting(12, at_least(1, _MOST_PARTS))
    n_head: int = setting(12, at_least(1))
    n_inner: int | None = setting(None, _SIZE)
    activation_function: str = setting("gelu_new", one_of("gelu_new", "gelu_pytorch_tanh"))
    resid_pdrop: float = setting(0.0, _DROPOUT)
    embd_pdrop: float = setting(0.0, _DROPOUT)
    attn_pdrop: float = setting(0.0, _DROPOUT)
    layer_norm_epsilon: float = setting(1e-5, _POSITIVE)
    initializer_range: float = setting(0.02, _NON_NEGATIVE)
    scale_attn_weights: bool = setting(True)
    bos_token_id: int | None = setting(None, at_least(0))
    eos_token_id: int | None = setting(None, at_least(0))
    pad_token_id: int | None = setting(None, at_least(0))
    chunks: int = setting(4, at_least(0, _MOST_PARTS))
    depth_multiplier: float = setting(4, between(0.0, _MOST_ROUNDS))
    num_top_layers: int = setting(2, at_least(0, _MOST_PARTS))
    num_bottom_layers: int = setting(1, at_least(0, _MOST_PARTS))
    num_attn: int = setting(8, at_least(1, _MOST_PARTS))
    num_ffn: int = setting(8, at_least(1, _MOST_PARTS))
    bind_ffn_attn: bool = setting(False)
    use_ste: bool = setting(False)
    output_router_logits: bool = setting(True)
    router_aux_loss_coef: float = setting(0.01, _NON_NEGATIVE)
    router_z_loss_coef: float = setting(0.0, _NON_NEGATIVE)
    router_path_loss_coef: float = setting(0.0, _NON_NEGATIVE)
    router_route_loss_coef: float = setting(0.0, _NON_NEGATIVE)
    router_coupling_loss_coef: float = setting(0.0, _NON_NEGATIVE)
    depth_per_chunk: int | None = setting(None, at_least(0))
    router_type: str = setting("naive")
    router_dim: int = setting(256, _SIZE)
    router_softmax_temperature: float = setting(1.0, _POSITIVE)
    router_renormalise: bool = setting(True)
    router_layernorm: bool = setting(False)
    router_rounds: str = setting("shared", one_of("shared", "embedding", "projection"))
    router_state: str = setting("kept", one_of("kept", "detached", "reset"))
    router_jitter: float = setting(0.0, _NON_NEGATIVE)
    router_frozen: bool = setting(False)
    router_bias_rate: float = setting(0.0, _NON_NEGATIVE)
    enable_pause: bool = setting(True)
    require_anchor_layer: bool = setting(True)
    depthwise_bal_loss: bool = setting(False)
    weighted_qkv: bool = setting(False)
    routing_all_possible_path: bool = setting(False)
    routing_top_k: int = setting(1, at_least(0))
    route_single: bool = setting(False)
    skip_is_final: bool = setting(False)
    shared_pools: str = setting("none", one_of("none", "attn", "ffn", "both"))
    round_pdrop: float = setting(0.0, _DROPOUT)
    num_labels: int | None = setting(None, _SIZE)
    problem_type: str | None = setting(
        None, one_of("regression", "single_label_classification", "multi_label_classification")
    )
    balance_loss: str = setting("switch", one_of("reference", "switch"))
    balance_counts: str = setting("micro", one_of("micro", "step"))
    balance_routes: str = setting("preferred", one_of("preferred", "used"))
    router_choices: str = setting("max", one_of("max", "own", "reference"))
    surplus_attn: int = setting(0, at_least(0, _MOST_PARTS))
    surplus_ffn: int = setting(0, at_least(0, _MOST_PARTS))
    masked_query_attention: str = setting("causal", one_of("causal", "reference"))
    pooling: str = setting("mask", one_of("mask", "reference"))
    vanilla_path_bias: float = setting(0.0, _NON_NEGATIVE)
    copy_final_norm: bool = setting(True)
    copy_single_modules: bool = setting(True)

    # ------------------------------------------------------------------ validation
    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **values: Any) -> MoMConfig:
            if "n_layer" in values and not _MOM_KEYS & values.keys():
                warnings.warn(
                    f"n_layer: the depth of a Mixture-of-Modules follows from chunks and depth_per_chunk; "
                    f"MoMConfig.vanilla({values['n_layer']}, ...) is a GPT-2 with so many layers",
                    stacklevel=2,
                )
            return super().__new__(cls, *args, **values)

    def _check(self) -> None:
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_head: {self.n_head} does not divide n_embd = {self.n_embd}")
        if self.chunks:
            self._check_routing()

    def _check_routing(self) -> None:
        if problem := spelling_problem(self.router_type):
            raise ConfigError(f"router_type: {problem}")
        if self.routing_all_possible_path and not KINDS[self.router_kind].scored:
            raise ConfigError(
                f"routing_all_possible_path: weighs all modules with their scores, but a router of the type "
                f"{self.router_type!r} has no scores; use False, or another router_type"
            )
        self._check_options()
        if self.bind_ffn_attn and self.num_attn != self.num_ffn:
            raise ConfigError(f"bind_ffn_attn: needs num_attn == num_ffn, got {self.num_attn} and {self.num_ffn}")
        if self.rounds > _MOST_ROUNDS:
            raise ConfigError(
                f"depth_per_chunk: {self.rounds} rounds are more than the supported maximum {_MOST_ROUNDS}"
            )
        modules = self.chunks * (self.num_attn + self.num_ffn)
        if modules > _MOST_MODULES:
            raise ConfigError(f"chunks: {modules} modules in all are more than the supported maximum {_MOST_MODULES}")
        if self.router_choices == "reference" and KINDS[self.router_kind].sized_by_ffn:
            have = self.num_ffn + self.enable_pause
            if self.num_attn > 1 and self.num_attn > have:
                raise ConfigError(
                    f"num_attn: {self.num_attn} modules but the reference's {self.router_kind} router has only "
                    f"{have} outputs (num_ffn + SKIP); use router_choices='max' or 'own'"
                )

    def _check_options(self) -> None:
        kind = KINDS[self.router_kind]
        if self.route_single and not self.enable_pause:
            raise ConfigError("route_single: a single module's router chooses between it and SKIP; set enable_pause")
        if self.skip_is_final and not self.enable_pause:
            raise ConfigError("skip_is_final: needs SKIP among the choices; set enable_pause")
        if self.round_pdrop and self.depthwise_bal_loss and self.balance_counts == "step":
            raise ConfigError("round_pdrop: not together with counts of a step by depth; use balance_counts='micro'")
        if self.router_path_loss_coef > 0.0 and not self.router_softmax:
            raise ConfigError("router_path_loss_coef: needs probabilities; add '-softmax' to router_type")
        if self.router_coupling_loss_coef > 0.0 and kind.name != "linear":
            raise ConfigError(
                f"router_coupling_loss_coef: compares the rows of a linear router with the modules, but a router of "
                f"the type {self.router_type!r} has no such rows; use router_type='linear' or 'linear-softmax', or a "
                "coefficient of 0"
            )
        if not kind.scored:
            for name in ("router_layernorm", "router_frozen", "router_bias_rate", "router_jitter"):
                if getattr(self, name):
                    raise ConfigError(f"{name}: a router of the type {self.router_type!r} computes no scores")
            if self.router_rounds != "shared":
                raise ConfigError(f"router_rounds: a router of the type {self.router_type!r} computes no scores")
        if self.vanilla_path_bias and self.router_rounds != "projection":
            raise ConfigError("vanilla_path_bias: needs a last map for each round; set router_rounds='projection'")
        if self.router_rounds == "projection" and self.router_kind == "norm":
            raise ConfigError("router_rounds: a 'norm' router has no last map; use 'embedding'")
        if self.router_state != "kept" and not kind.recurrent:
            raise ConfigError(f"router_state: a router of the type {self.router_type!r} has no state")
        if self.router_kind == "norm" and self.router_dim < max(self.num_attn, self.num_ffn):
            raise ConfigError(f"router_dim: {self.router_dim} units are too few for the modules of a half")
        for name in ("router_bias_rate", "skip_is_final"):
            if getattr(self, name) and self.routing_all_possible_path:
                raise ConfigError(f"{name}: is about choices, of which routing_all_possible_path makes none")

    # ------------------------------------------------------------------ derived facts
    @property
    def is_vanilla(self) -> bool:
        """True for a plain GPT-2 (no blocks)."""
        return self.chunks == 0

    @property
    def inner_size(self) -> int:
        """Width F of the feed-forward modules."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each term of the loss, by name. As in the reference, a classifier has only its own loss."""
        of_routers = {
            "balance": self.router_aux_loss_coef, "z": self.router_z_loss_coef, "path": self.router_path_loss_coef,
            "route": self.router_route_loss_coef, "coupling": self.router_coupling_loss_coef,
        }  # fmt: skip
        return {"lm": 1.0, **(of_routers if self.num_labels is None else dict.fromkeys(of_routers, 0.0))}

    @property
    def rounds(self) -> int:
        """Rounds L of a block."""
        return int(self.num_ffn * self.depth_multiplier) if self.depth_per_chunk is None else self.depth_per_chunk

    @property
    def has_routers(self) -> bool:
        """Whether any half of a round has a router."""
        return bool(self.rounds) and (self.is_routed("attn") or self.is_routed("ffn"))

    @property
    def router_kind(self) -> str:
        """Name of the kind of router, a key of `mom.routers.KINDS`; ``"naive"`` without blocks."""
        kind = router_kind(self.router_type)
        return "naive" if kind is None else kind.name

    @property
    def router_softmax(self) -> bool:
        """Whether scores are probabilities."""
        return "softmax" in self.router_type and KINDS[self.router_kind].scored

    @property
    def router_random(self) -> bool:
        """Whether the router has the noise gate; only recurrent routers have one."""
        return "random" in self.router_type and KINDS[self.router_kind].recurrent

    def num_choices(self, half: str) -> int:
        """Outputs S of the router of ``half`` (``"attn"`` or ``"ffn"``), SKIP and surplus included."""
        if half not in ("attn", "ffn"):
            raise ValueError(f"half: expected 'attn' or 'ffn', got {half!r}")
        own = self.num_attn if half == "attn" else self.num_ffn
        if self.router_choices == "own":
            modules = own
        elif self.router_choices == "reference" and KINDS[self.router_kind].sized_by_ffn:
            modules = self.num_ffn
        else:
            modules = max(self.num_attn, self.num_ffn)
        return modules + int(self.enable_pause) + (self.surplus_attn if half == "attn" else self.surplus_ffn)

    def is_routed(self, half: str) -> bool:
        """Whether the blocks have a router for ``half`` (``"attn"`` or ``"ffn"``)."""
        modules = self.num_attn if half == "attn" else self.num_ffn
        return not self.is_vanilla and (modules > 1 or self.route_single)

    def owner(self, place: int, half: str) -> int:
        """The place whose modules a place uses: itself, or with `shared_pools` the first block."""
        shared = self.shared_pools in (half, "both") and self.places()[place] == "block"
        return self.num_bottom_layers if shared else place

    def places(self) -> list[str]:
        """Kind of every entry of ``transformer.h`` in order: ``"anchor"`` or ``"block"``."""
        if self.is_vanilla:
            return ["anchor"] * self.n_layer
        chunk = ["block", "anchor"] if self.require_anchor_layer else ["block"]
        return ["anchor"] * self.num_bottom_layers + chunk * self.chunks + ["anchor"] * self.num_top_layers

    def vanilla_layers(self) -> int:
        """Layers of the plain GPT-2 that fills every place of this model (phase one of the recipe)."""
        if self.is_vanilla:
            return self.n_layer
        per_chunk = max(self.num_attn, self.num_ffn) + int(self.require_anchor_layer)
        return self.num_bottom_layers + self.chunks * per_chunk + self.num_top_layers

    def vanilla_config(self) -> MoMConfig:
        """Configuration of the plain GPT-2 whose layers become this model's modules."""
        if self.is_vanilla:
            return self
        return self.replace(chunks=0, n_layer=self.vanilla_layers(), num_bottom_layers=0, num_top_layers=0)

    # ------------------------------------------------------------------ presets and files
    @classmethod
    def vanilla(cls, n_layer: int = 12, **fields: Any) -> MoMConfig:
        """A plain GPT-2 of ``n_layer`` layers."""
        shape = {"chunks": 0, "num_bottom_layers": 0, "num_top_layers": 0, "n_layer": n_layer}
        return cls._build({**shape, **fields}, "vanilla")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MoMConfig:
        """A named configuration, optionally with some fields changed.

        Parameters
        ----------
        name : str
            One of ``mom.config.PRESETS``; `mom.presets` describes those of the family. The paper's structure files are
            not published: the ``mom-*`` presets have the sizes of the GPT-2 family with blocks of 4 + 4 modules.
        """
        if name not in PRESETS:
            raise ConfigError(f"name: no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
        return cls._build({**PRESETS[name], **changes}, f"preset {name}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "configuration") -> MoMConfig:
        """Build from a mapping as found in a ``config.json``: ours, the reference's or GPT-2's.

        Raises
        ------
        ConfigError
            For an unknown field or an invalid value; the message begins with `source`.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: expected a mapping of fields, got {type(values).__name__}")
        if (version := values.get("mom_format", 1)) != 1:
            raise ConfigError(f"{source}: mom_format: {shown(version)} is not 1; written by a newer version of mom?")
        own = "mom_format" in values or bool(_MOM_KEYS & set(values))
        kind = values.get("model_type")
        if not own and kind is not None and kind not in _MODEL_TYPES:
            raise ConfigError(f"{source}: model_type: {shown(kind)} is no model of this package; it reads 'gpt2'")
        resaved = "transformers_version" in values and values.get("chunks") == 0  # with our fields among its own
        of_transformers = kind == "gpt2" and (resaved or not own)
        fields = _without_others(cls.names(), values, source, of_transformers, own)
        label_names = values.get("id2label")
        if isinstance(label_names, Mapping) and label_names and "num_labels" not in fields:
            fields["num_labels"] = len(label_names)
        if "mom_format" not in values and not set(BEHAVIOUR_FIELDS) & set(fields):
            fields.update(BEHAVIOUR_FIELDS)
        if not _MOM_KEYS & set(fields):
            fields.update(chunks=0, num_bottom_layers=0, num_top_layers=0)
        return cls._build(fields, source)

    @classmethod
    def from_json(cls, path: PathLike) -> MoMConfig:
        """Read a ``config.json`` (or the folder that holds one)."""
        path = Path(path)
        if path.is_dir():
            path = path / "config.json"
        return cls.from_dict(read_json(path, ConfigError), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """All fields, with the marker ``mom_format`` that says the behaviour fields are meant."""
        model_type = "gpt2" if self.is_vanilla else "gpt2-mot"
        return {"mom_format": 1, "model_type": model_type, **super().to_dict()}

    def to_json(self, path: PathLike) -> None:
        """Write the configuration as JSON."""
        Path(path).write_text(to_json(self.to_dict()), encoding="utf-8")


def _without_others(
    known: list[str], values: Mapping[str, Any], source: str, of_transformers: bool, own: bool
) -> dict[str, Any]:
    """The fields of a configuration among those of its file. Unknown fields stay, unless transformers wrote the file.

    What is done with other programs' fields is in `mom.file_fields`.
    """
    checked = dict(values)
    if own and "mom_format" not in values:
        checked.pop("scale_attn_by_inverse_layer_idx", None)  # the published code forces it off
    also = {*known, *file_fields.LEGACY_GENERATION} if of_transformers else None
    file_fields.check("config.json", checked, source, ConfigError, also)
    others = file_fields.TABLE["config.json"]
    fields = {name: value for name, value in values.items() if name not in others}
    if of_transformers:
        fields = {name: value for name, value in fields.items() if name in known}
    for other, name in _OTHER_NAMES.items():
        if other in values:
            fields.setdefault(name, values[other])
    for name in ("bos_token_id", "eos_token_id"):
        if isinstance(fields.get(name), list) and fields[name]:
            fields[name] = fields[name][0]
    return fields
