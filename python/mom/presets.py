"""Named configurations as plain dictionaries of fields, among them the family: one function per architecture.

The functions state each architecture as formulas. In all of them x is the residual stream, with a row x_t for each
token. ``LN`` is a LayerNorm, and ``c_attn``, ``c_proj`` and ``c_fc`` are linear layers with biases. Each place where
one of them is written has weights of its own. x starts as ``wte[id_t] + wpe[t]``, and the logits are the products of
``LN(x_t)`` with all rows of ``wte``. A layer adds first attention A, then a feed-forward network F. D is the width of a
head::

    q_t, k_t, v_t = c_attn(LN(x_t))
    h_t    = sum over j <= t of softmax_j(q_t . k_j / sqrt(D)) v_j        in each head
    A(x)_t = c_proj(h_t)
    F(x)_t = c_proj(gelu(c_fc(LN(x_t))))

**SKIP.** A token may skip A or F. Then nothing is added to its x_t, and nothing is computed for it. A token that skips
A has no query, key and value. Later tokens count it all the same, as a key with score 0 and value 0. It adds
``exp(0) = 1`` to the denominator of their softmax. Architectures that leave such tokens out altogether differ here.

**Routers.** ``p = softmax(W x_t + b)`` has a probability for each module. Where there is SKIP, its probability is the
last. The choices with the largest probabilities are kept, and no gradient passes through the selection itself. What a
kept module adds is multiplied by its probability, so the language-model loss trains the router.

**Balance loss.** ``S * sum of f_s P_s`` over the S choices, added with weight 0.01 (`MoMConfig.router_aux_loss_coef`).
P_s is the mean probability of a choice. f_s is the share of tokens that prefer it, and counts as a constant.

The family leaves out factorised embeddings, adaptive computation time and expert choice. Its sizes are those of GPT-2
small. `MoMConfig.preset` takes other fields as arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = [
    "FAMILY", "PRESETS", "albert", "early_exit", "layerskip", "mod", "moe", "moe_attention", "mom", "shared_pool",
    "universal", "vanilla",
]  # fmt: skip

Fields = dict[str, Any]

_SMALL: Fields = {"n_embd": 768, "n_head": 12, "n_layer": 12}
_NO_ANCHORS: Fields = {"num_bottom_layers": 0, "num_top_layers": 0, "require_anchor_layer": False}
#: A linear router, whose best choice is weighted by its own probability.
_SWITCH: Fields = {"router_type": "linear-softmax", "routing_top_k": 1, "router_renormalise": False}


# ---------------------------------------------------------------------- the family
def vanilla() -> Fields:
    """A plain GPT-2.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    For each of L = 12 layers, with weights of its own::

        x <- x + A(x)
        x <- x + F(x)

    Source: Radford et al. 2019, which is not on arXiv; the transformer is that of Vaswani et al., arXiv:1706.03762,
    with LayerNorm at the beginning of each half. There is no difference from the source, except that dropout is off by
    default.
    """
    return {**_SMALL, "chunks": 0, "num_bottom_layers": 0, "num_top_layers": 0}


def albert() -> Fields:
    """One layer, applied many times.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    L = 12 times with the same weights, those of LayerNorm included::

        x <- x + A(x)
        x <- x + F(x)

    Source: Lan et al., ALBERT, arXiv:1909.11942. Differences: the source reads in both directions, is trained on masked
    words and the order of sentences, and has factorised embeddings. Its LayerNorms stand after the sums.
    """
    return {**_SMALL, **_NO_ANCHORS, "chunks": 1, "num_attn": 1, "num_ffn": 1, "depth_per_chunk": 12}


def universal() -> Fields:
    """One layer, applied until a token halts.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    In rounds r = 0 .. L - 1 with the same weights, with a vector e_r of each round (one for each half), and with all
    tokens running in both halves at first::

        p_t = softmax(W (x_t + e_r) + b)                two probabilities: the layer, SKIP
        if t runs in this half and p_t[layer] >= p_t[SKIP]:  x_t <- x_t + p_t[layer] A(x)_t
        otherwise: t halts and runs in this half never again

    and then the same with F, which has a router, vectors and halting of its own. A halted token is counted by the
    attention of later tokens, as one that skips.

    The balance loss counts what ran. f of the layer is the share of tokens, over all rounds, that ran the layer. f of
    SKIP is the share that halted just then. A token halts at most once. So as long as tokens run more than one round on
    average, the balance loss lowers the probability of the layer: it is a price of rounds.

    Source: Dehghani et al., Universal Transformers, arXiv:1807.03819. Differences: the source adds up halting
    probabilities and mixes the states of all rounds by them (adaptive computation time, arXiv:1603.08983). It halts a
    token as a whole, and other tokens still read the token's last state. It adds positions and e_r to x in every round;
    here the routers alone read e_r.
    """
    return {
        **albert(), **_SWITCH, "route_single": True, "skip_is_final": True, "router_rounds": "embedding",
        "balance_routes": "used",
    }  # fmt: skip


def moe() -> Fields:
    """A stack of layers with experts in place of each feed-forward network.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    For each of L = 12 layers, with E = 8 experts F_e::

        x   <- x + A(x)
        p_t = softmax(W LN(x_t) + b)
        e   = the largest of p_t
        x_t <- x_t + p_t[e] F_e(x)_t

    There is no SKIP. The balance loss is the mean of those of the layers.

    Source: Fedus et al., Switch Transformer, arXiv:2101.03961. Differences: experts have no capacity, so no token is
    dropped. The router and each expert have a LayerNorm of their own. All layers have experts, in the source every
    other one. The balance loss is a mean over layers, not a sum. For noise on the router's outputs set
    ``router_jitter``.
    """
    return {
        **_SMALL, **_NO_ANCHORS, **_SWITCH, "chunks": 12, "num_attn": 1, "num_ffn": 8, "depth_per_chunk": 1,
        "enable_pause": False, "router_layernorm": True, "depthwise_bal_loss": True,
    }  # fmt: skip


def moe_attention() -> Fields:
    """A stack of layers with experts in both halves.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    For each of L = 12 layers, with E = 4 attention experts and E = 4 feed-forward experts. Both halves have a router::

        p_t = softmax(W LN(x_t) + b)
        a, b = the two largest of p_t,   w_a = p_t[a] / (p_t[a] + p_t[b]),   w_b = p_t[b] / (p_t[a] + p_t[b])

    Attention mixes queries, keys and values of the chosen experts, then attends once, and mixes the outputs::

        q_t, k_t, v_t = c_attn_a(LN_a(x_t)) + c_attn_b(LN_b(x_t))
        x_t <- x_t + w_a c_proj_a(h_t) + w_b c_proj_b(h_t)

    Feed-forward: ``x_t <- x_t + w_a F_a(x)_t + w_b F_b(x)_t``. There is no SKIP. The balance loss of each half is the
    mean of those of the layers.

    Sources: Zhang et al., Mixture of Attention Heads, arXiv:2210.05144; with experts in both halves Shen et al.,
    JetMoE, arXiv:2404.07413. Differences: their attention experts are single heads that share keys and values. Here an
    expert is a whole attention with several heads, and the keys and values of a token come from the experts of this
    token. Their divisor ``p_t[a] + p_t[b]`` has no gradient.
    """
    return {**moe(), "num_attn": 4, "num_ffn": 4, "routing_top_k": 2, "router_renormalise": True}


def mod() -> Fields:
    """A stack of layers of which every other one is done or skipped.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    Six times a routed layer and an ordinary one, with weights of their own. A routed layer computes::

        p_t = softmax(W x_t + b)                        two probabilities: the layer, SKIP
        if p_t[layer] >= p_t[SKIP]:  x_t <- x_t + p_t[layer] A(x)_t

    and then the same with F, which has a router of its own. A token that skips A is counted by the attention of later
    tokens.

    Source: Raposo et al., Mixture-of-Depths, arXiv:2404.02258. Differences: this is token choice. Each token decides
    for itself, the share of tokens that run a layer is not fixed, and the balance loss draws it to one half. In the
    source each layer takes a fixed share of the tokens, those with the largest scores (expert choice). So its choices
    depend on later tokens, and a predictor makes them when text is generated. The source decides once for both halves,
    multiplies by the score without softmax, and leaves tokens that skip out of the keys.
    """
    return {
        **_SMALL, **_NO_ANCHORS, **_SWITCH, "chunks": 6, "num_attn": 1, "num_ffn": 1, "depth_per_chunk": 1,
        "require_anchor_layer": True, "route_single": True,
    }  # fmt: skip


def layerskip() -> Fields:
    """A stack of layers that are left out at random in training, for an early exit at inference.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    For each of L = 12 layers, with weights of its own::

        x <- x + A(x)
        x <- x + F(x)

    In training, a layer is left out with the probability ``round_pdrop`` = 0.1, for all tokens of a pass. Nothing is
    scaled. In evaluation all layers run, and the model is a plain GPT-2. For an exit after n layers, set the places
    ``block{i}.round0.*.output`` of all i >= n to zero (`mom.Zero`); ``docs/family.md`` shows how.

    Source: Elhoushi et al., LayerSkip, arXiv:2404.16710; leaving out whole layers is from Fan et al., arXiv:1909.11556.
    Differences: all layers have the same probability, which in the source grows with depth. It is drawn once for each
    pass and layer, not once for each sequence. There is no loss at the exits, and no speculative decoding.
    """
    return {
        **_SMALL, **_NO_ANCHORS, "chunks": 12, "num_attn": 1, "num_ffn": 1, "depth_per_chunk": 1, "round_pdrop": 0.1,
    }  # fmt: skip


def early_exit() -> Fields:
    """A pool of layers, one of them in each round, until a token exits.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    There are M = 12 modules A_m and M modules F_m, and rounds r = 0 .. L - 1 with L = 12. The router of each half has a
    map W_r, b_r for each round. All tokens run in both halves at first::

        p_t = softmax(W_r x_t + b_r)                    M modules, SKIP
        m   = the largest of p_t
        if t runs in this half and m is a module:  x_t <- x_t + p_t[m] A_m(x)_t
        otherwise: t exits, and runs in this half never again

    and then the same with F_m, which has a router and exits of its own. The query, key and value of each token come
    from the module that this token has chosen. A token that has exited is counted by the attention of later tokens.

    `mom.MoM.from_vanilla` makes layer m of a plain GPT-2 module m, and adds ``vanilla_path_bias`` = 4 to b_r[r]. So
    tokens first go through the layers in their order, each with a probability of about 0.8, and training finds where to
    exit. The balance loss counts what ran, see `universal`.

    Sources: Elbayad et al., Depth-Adaptive Transformer, arXiv:1910.10073; Schuster et al., CALM, arXiv:2207.07061.
    Differences: a router decides about the exit, not the confidence of the output layer, and there is no loss at the
    exits. A token that has exited has no keys and values in later rounds, where the sources copy its last state. Both
    halves exit on their own, and the order of the modules is free.
    """
    return {
        **_SMALL, **_NO_ANCHORS, **_SWITCH, "chunks": 1, "num_attn": 12, "num_ffn": 12, "depth_per_chunk": 12,
        "skip_is_final": True, "router_rounds": "projection", "vanilla_path_bias": 4.0, "balance_routes": "used",
    }  # fmt: skip


def shared_pool() -> Fields:
    """A stack of layers that take their feed-forward networks out of one pool.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    For each of L = 12 layers, with attention and router of its own, and E = 12 experts F_e that all layers share::

        x    <- x + A(x)
        p_t  = softmax(W LN(x_t) + b)
        a, b = the two largest of p_t
        x_t  <- x_t + p_t[a] F_a(x)_t + p_t[b] F_b(x)_t

    There is no SKIP. The balance loss counts the tokens of all layers together, since they meet in the same experts.

    Source: Xue et al., WideNet, arXiv:2107.11817. Differences: the source shares attention between layers, too. Each of
    its layers has a LayerNorm of its own; here that of F_e belongs to the expert and is shared with it. Experts have no
    capacity.
    """
    return {
        **moe(), "num_ffn": 12, "routing_top_k": 2, "shared_pools": "ffn", "depthwise_bal_loss": False,
    }  # fmt: skip


def mom() -> Fields:
    """Mixture-of-Modules: blocks of modules, several rounds, and routers with a memory.

    Returns
    -------
    dict of str to object
        Fields of `MoMConfig`.

    Notes
    -----
    Two ordinary layers, two blocks, two ordinary layers. A block has M = 4 modules A_m and M = 4 modules F_m and runs
    L = 4 rounds. Each half has a recurrent router. A token has a state s in it, which starts at 0 in each block::

        y    = X x_t + b_X,   z = H s + b_H             each cut into three parts r, i, n
        r    = sigmoid(y_r + z_r),   i = sigmoid(y_i + z_i),   n = tanh(y_n + r z_n)
        s    <- n + i (s - n)
        p_t  = softmax((W s + b) / 0.2)                 M modules, SKIP
        a, b = the two largest of p_t,   w_a, w_b = p_t[a], p_t[b] divided by their sum

    Attention first, then feed-forward with a router of its own. If a or b is SKIP, its terms are 0::

        q_t, k_t, v_t = c_attn_a(LN_a(x_t)) + c_attn_b(LN_b(x_t))
        x_t <- x_t + w_a c_proj_a(h_t) + w_b c_proj_b(h_t)

        x_t <- x_t + w_a F_a(x)_t + w_b F_b(x)_t

    With two choices, one of them is always a module. So no token skips a half altogether. The balance loss of a half
    counts all rounds of all blocks together.

    Source: Gong et al., Mixture-of-Modules, arXiv:2407.06677. The paper's structure files are not published, so these
    sizes are a choice of this package. Differences: the balance loss takes no second softmax of the probabilities. This
    and other differences from the published code are fields, see ``mom.config.BEHAVIOUR_FIELDS``.
    """
    return _mom(768, 12, 2, routing_top_k=2, num_bottom_layers=2, num_top_layers=2)


#: The family: functions that return the fields of each architecture, by name.
FAMILY: dict[str, Callable[[], Fields]] = {
    "vanilla": vanilla, "albert": albert, "universal": universal, "moe": moe, "moe-attention": moe_attention,
    "mod": mod, "layerskip": layerskip, "early-exit": early_exit, "shared-pool": shared_pool, "mom": mom,
}  # fmt: skip


# ---------------------------------------------------------------------- sizes
def _mom(n_embd: int, n_head: int, chunks: int, **fields: Any) -> Fields:
    return {
        "n_embd": n_embd, "n_head": n_head, "chunks": chunks, "num_attn": 4, "num_ffn": 4, "depth_per_chunk": 4,
        "num_bottom_layers": 1, "num_top_layers": 1, "require_anchor_layer": False, "router_type": "gru-softmax",
        "router_softmax_temperature": 0.2, "routing_top_k": 1, **fields,
    }  # fmt: skip


def _gpt2(n_embd: int, n_head: int, n_layer: int, **fields: Any) -> Fields:
    return {
        "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer, "chunks": 0, "num_bottom_layers": 0,
        "num_top_layers": 0, **fields,
    }  # fmt: skip


#: Named configurations. ``mini`` and ``base`` are the benchmark sizes; the family comes last. ``mom-large-deep`` and
#: ``mom-large-wide`` have as many parameters as ``gpt2-large``: 52 layers deep, or 14 with 16 modules in each pool.
PRESETS: dict[str, Fields] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 16, 24),
    "gpt2-large": _gpt2(1280, 20, 36),
    "mom-small": _mom(768, 12, 2, routing_top_k=2, num_bottom_layers=2, num_top_layers=2),
    "mom-medium": _mom(1024, 16, 5, routing_top_k=2, num_bottom_layers=2, num_top_layers=2),
    "mom-large": _mom(1280, 20, 8, routing_top_k=2, num_bottom_layers=2, num_top_layers=2),
    "mom-large-deep": _mom(
        1280, 20, 8, n_inner=4915, depth_per_chunk=6, routing_top_k=2, num_bottom_layers=2, num_top_layers=2
    ),
    "mom-large-wide": _mom(
        1280, 20, 2, n_inner=5069, depth_per_chunk=5, num_attn=16, num_ffn=16, routing_top_k=3, num_bottom_layers=2,
        num_top_layers=2,
    ),
    "mini": _mom(256, 4, 1, vocab_size=8192, n_positions=256, routing_top_k=1),
    "base": _mom(512, 8, 1, vocab_size=16384, n_positions=512, routing_top_k=2),
    "mini-vanilla": _gpt2(256, 4, 6, vocab_size=8192, n_positions=256),
    "base-vanilla": _gpt2(512, 8, 6, vocab_size=16384, n_positions=512),
    "demo": _mom(128, 4, 1, vocab_size=2048, n_positions=128, router_dim=64, routing_top_k=2),
    **{name: fields() for name, fields in FAMILY.items()},
}
