"""Names of other libraries: what people type first, and what it means here.

Whoever comes from transformers, scikit-learn, nanoGPT or TransformerLens types their names. Those that have a meaning
here work, and the message about each of the others names what to use instead. All of them stand in three tables: fields
of settings, arguments of functions, and attributes. `mom` and its classes ask the tables only about names that they do
not have, so other names cost nothing.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

__all__ = ["Familiar", "Hint", "attribute", "field_hint", "takes_familiar_arguments", "text_batch"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Hint(str):
    """What to do instead of using a name that has no meaning here."""


# ---------------------------------------------------------------------- fields of settings
_SIZES: dict[str, str | Hint] = {
    "block_size": "n_positions", "n_ctx": "n_positions", "max_position_embeddings": "n_positions",
    "context_length": "n_positions", "d_model": "n_embd", "hidden_size": "n_embd", "embed_dim": "n_embd",
    "n_heads": "n_head", "num_heads": "n_head", "num_attention_heads": "n_head", "n_layers": "n_layer",
    "num_layers": "n_layer", "num_hidden_layers": "n_layer", "d_vocab": "vocab_size", "d_mlp": "n_inner",
    "intermediate_size": "n_inner", "d_ff": "n_inner", "hidden_dropout_prob": "resid_pdrop",
    "attention_dropout": "attn_pdrop", "top_k": "routing_top_k", "num_experts": "num_ffn",
    "num_experts_per_tok": "routing_top_k", "act_fn": "activation_function",
    "dropout": Hint("there are resid_pdrop, embd_pdrop and attn_pdrop"),
    "bias": Hint("all layers have biases, as in GPT-2"),
    "torch_dtype": Hint("it belongs to the model: dtype='bfloat16'"),
    "dtype": Hint("it belongs to the model: mom.MoM(config, dtype='bfloat16')"),
    "device": Hint("mom computes on the CPU, so leave it out"),
    "device_map": Hint("mom computes on the CPU, so leave it out"),
}  # fmt: skip

_OF_TRAINING: dict[str, str | Hint] = {
    "learning_rate": "lr", "max_lr": "lr", "max_steps": "steps", "max_iters": "steps", "num_steps": "steps",
    "per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation", "warmup_steps": "warmup", "warmup_iters": "warmup",
    "warmup_ratio": "warmup", "block_size": "sequence_length", "max_seq_length": "sequence_length",
    "lr_scheduler_type": "schedule", "max_grad_norm": "clip", "grad_clip": "clip", "adam_beta1": "beta1",
    "adam_beta2": "beta2", "adam_epsilon": "eps", "eval_steps": "eval_every", "eval_interval": "eval_every",
    "eval_iters": "eval_batches", "save_steps": "save_every", "save_total_limit": "keep_last",
    "logging_steps": "log_every", "log_interval": "log_every", "gradient_checkpointing": "activation_checkpointing",
    "wandb_log": "wandb", "early_stopping_patience": "patience", "min_lr": "final_lr",
    "init_from": Hint("begin with a model of MoM.from_pretrained or MoM.from_vanilla"),
    "output_dir": Hint("give run_dir to mom.train"), "out_dir": Hint("give run_dir to mom.train"),
    "num_train_epochs": Hint("training counts steps; steps * batch_size * sequence_length are the tokens it reads"),
    "device": Hint("mom computes on the CPU, so leave it out"),
    "compile": Hint("the core is compiled already, so leave it out"),
    "bf16": Hint("it belongs to the model: mom.MoM(config, dtype='bfloat16')"),
    "fp16": Hint("there is bfloat16: mom.MoM(config, dtype='bfloat16')"),
    "report_to": Hint("set tensorboard=True or wandb=True"),
}  # fmt: skip

_OF_FINETUNING: dict[str, str | Hint] = {
    "num_train_epochs": "epochs", "num_epochs": "epochs", "n_epochs": "epochs", "max_epochs": "epochs",
    "max_iter": "epochs", "learning_rate": "lr", "learning_rate_init": "lr", "random_state": "seed",
    "per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size", "max_seq_length": "max_length",
    "warmup_steps": "warmup", "warmup_ratio": "warmup", "alpha": "weight_decay", "max_grad_norm": "clip",
    "n_iter_no_change": "patience", "early_stopping_patience": "patience",
    "n_jobs": Hint("threads are for all models: mom.set_num_threads(n)"),
    "early_stopping": Hint("set validation_fraction and patience"),
    "device": Hint("mom computes on the CPU, so leave it out"),
}  # fmt: skip

#: By what settings call themselves (`Settings.noun`).
FIELDS: dict[str, dict[str, str | Hint]] = {
    "configuration": _SIZES, "training": _OF_TRAINING, "fine-tuning": _OF_FINETUNING,
}  # fmt: skip


def field_hint(noun: str, name: str, names: Sequence[str]) -> str:
    """The end of a message about an unknown field: what it is called here, or the nearest name, or nothing."""
    known = FIELDS.get(noun, {}).get(name)
    if isinstance(known, Hint):
        return f"; {known}"
    if known in names:
        return f"; did you mean {known!r}?"
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---------------------------------------------------------------------- arguments of functions
def _sampling_or_not(value: Any) -> dict[str, Any]:
    return {"temperature": 1.0 if value else 0.0}


_LABELS = Hint("give labels=tokens; the model compares each prediction with the next token itself")
_ON_CPU = Hint("mom computes on the CPU, so leave it out")
_HOOKS = Hint("read activations with capture=... and change them with model.intervene or interventions=...")
_DECODER = Hint("mom.Decoder keeps keys and values")
_OF_CALL: dict[str, str | Hint | Callable[[Any], dict[str, Any]]] = {
    "input_ids": "tokens", "idx": "tokens", "inputs": "tokens", "position_ids": "positions",
    "loss_per_token": "return_token_losses", "output_router_logits": "return_routes",
    "targets": _LABELS, "return_type": Hint(
        "model(tokens, labels=tokens).loss is the loss, and return_logits=True asks for logits"),
    "output_hidden_states": Hint("give capture='block*.output', or other places"),
    "output_attentions": Hint("call model.attention"), "return_dict": Hint("a ModelOutput is returned always"),
    "past_key_values": _DECODER, "use_cache": _DECODER,
    "fwd_hooks": _HOOKS, "token_type_ids": Hint("there are no types of tokens, so leave it out"),
    "inputs_embeds": Hint("give Patch('embedding', values) as an intervention"),
}  # fmt: skip

#: By qualified name of the function. A string is our name of the argument; a function gives our arguments.
ARGUMENTS: dict[str, dict[str, str | Hint | Callable[[Any], dict[str, Any]]]] = {
    "MoM.__call__": _OF_CALL,
    "MoMForSequenceClassification.__call__": {**_OF_CALL, "targets": "labels"},
    "MoM.generate": {
        "input_ids": "prompt", "inputs": "prompt", "idx": "prompt", "input": "prompt", "do_sample": _sampling_or_not,
        "eos_token_id": "stop_token", "stop_at_eos": Hint("give stop_token=tokenizer.eos_id"),
        "max_length": Hint("give max_new_tokens, which leaves the prompt out"),
        "max_tokens": "max_new_tokens", "attention_mask": Hint("give prompts of unequal length as a list of arrays"),
        "pad_token_id": Hint("prompts need no padding, so leave it out"), "verbose": Hint("leave it out"),
        "repetition_penalty": Hint("mom.model.beam_search has no_repeat_ngram_size"),
        "num_return_sequences": Hint("give the prompt as often, as a list"),
        "return_type": Hint("a text is continued as a text, ids as ids"),
        "output_router_logits": "return_routes",
    },
    "Network.from_pretrained": {
        "torch_dtype": "dtype", "pretrained_model_name_or_path": "folder", "model_name": "folder", "device": _ON_CPU,
        "device_map": _ON_CPU, "trust_remote_code": Hint("no code is read from folders, so leave it out"),
    },
    "Tokenizer.decode": {"token_ids": "ids", "clean_up_tokenization_spaces": Hint("texts come back as they were")},
    "Tokenizer.encode": {"add_special_tokens": Hint("nothing is added; eos_id is the token between documents"),
                         "return_tensors": Hint("an array of NumPy is returned")},
}  # fmt: skip


def takes_familiar_arguments(function: Function) -> Function:
    """The function, with the arguments of its entry in `ARGUMENTS` as well."""
    table, parameters = ARGUMENTS[function.__qualname__], inspect.signature(function).parameters
    ours = frozenset(parameters)
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if not ours.issuperset(given):
            given = _translated(function.__name__, table, ours, is_open, given)
        return function(*args, **given)

    return call  # type: ignore[return-value]


def _translated(
    function: str, table: Mapping[str, Any], ours: Iterable[str], is_open: bool, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments under our names. What is given under both names counts by ours."""
    result = dict(given)
    said: dict[str, Any] = {}
    for name in given:
        known = table.get(name)
        if name in ours or (is_open and known is None):
            continue
        value = result.pop(name)
        if known is None or isinstance(known, Hint):
            near = difflib.get_close_matches(name, ours, n=1)
            hint = known or (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ours)}")
            raise TypeError(f"{function}: unexpected argument {name!r}; {hint}")
        said |= {known: value} if isinstance(known, str) else known(value)
    return said | result


# ---------------------------------------------------------------------- attributes
def text_batch(tokenizer: Any, texts: str | Sequence[str]) -> dict[str, Any]:
    """Ids of texts as other libraries return them.

    Parameters
    ----------
    tokenizer : Tokenizer
    texts : str or sequence of str

    Returns
    -------
    dict
        ``"input_ids"`` and ``"attention_mask"``: for one text arrays (T,), for several (B, T) of int32, filled up on
        the right with 0 where the mask is 0.
    """
    if isinstance(texts, str):
        ids = tokenizer.encode(texts)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    rows = tokenizer.encode_batch(texts)
    longest = max(map(len, rows), default=0)
    mask = np.array([[i < len(row) for i in range(longest)] for row in rows], np.int32).reshape(len(rows), longest)
    ids = np.zeros_like(mask)
    for row, found in zip(rows, ids, strict=True):
        found[: len(row)] = row
    return {"input_ids": ids, "attention_mask": mask}


_ADAMW = Hint("mom.AdamW(model, lr=..., weight_decay=...) makes an optimizer")
_LETTERS = Hint("weights are in model.parameters by name, such as 'transformer.wte.weight'")
_TOKENS = Hint("the model's tokenizer does it: model.tokenizer.encode, .decode, and .token for one id")
_POOLS = Hint("a model has places, model.blocks, each with an attention_pool and an ffn_pool of modules")

#: By name of the class. A function gives the attribute of an object.
ATTRIBUTES: dict[str, dict[str, Hint | Callable[[Any], Any]]] = {
    "mom": {
        "Trainer": Hint("mom.train(model, data, steps=...) trains"), "estimate_loss": Hint(
            "mom.training.evaluate_loss measures a model, and mom.train's result has val_loss"),
        "TrainingArguments": Hint("mom.TrainingConfig has the settings"), "GPT": Hint("mom.MoM is the model"),
        "GPTConfig": Hint("mom.MoMConfig.vanilla(layers) makes that of a GPT-2"),
        "ActivationCache": Hint("activations are read with model(tokens, capture=...).captured"),
        "HookedTransformer": Hint("mom.MoM; read with capture=... and change with model.intervene"),
        "AutoModelForCausalLM": Hint("mom.MoM.from_pretrained reads a language model"), "AutoTokenizer": Hint(
            "mom.Tokenizer.load reads a tokenizer"),
        "Adam": Hint("mom.AdamW is the optimizer"),
    },
    "Network": {
        "state_dict": lambda model: lambda: dict(model.parameters),
        "named_parameters": lambda model: lambda: iter(model.parameters.items()),
        "load_state_dict": lambda model: model.load_state,
        "get_num_params": lambda model: lambda: model.num_parameters,
        "cfg": lambda model: model.config,
        "configure_optimizers": _ADAMW, "crop_block_size": Hint("give shorter sequences; n_positions is the longest"),
        "to": _ON_CPU, "cuda": _ON_CPU, "half": Hint("dtype='bfloat16' makes such a model"), "run_with_cache": Hint(
            "model(tokens, return_logits=True, capture=...) returns both"),
        "run_with_hooks": _HOOKS, "add_hook": _HOOKS, "hooks": _HOOKS, "register_forward_hook": _HOOKS,
        "reset_hooks": Hint("what model.intervene changes ends with its block"), "hook_dict": _HOOKS,
        "to_tokens": _TOKENS, "to_str_tokens": _TOKENS, "to_string": _TOKENS, "to_single_token": _TOKENS,
        "W_E": _LETTERS, "W_U": Hint("the head is tied to the embedding, 'transformer.wte.weight'"),
        "W_pos": Hint("it is model.parameters['transformer.wpe.weight']"), "layers": _POOLS, "h": _POOLS,
        "push_to_hub": Hint("save_pretrained(folder, naming='huggingface') writes files that transformers reads"),
        "fit": Hint("mom.train trains a language model, and mom.TextClassifier a classifier of texts"),
    },
    "MoMForSequenceClassification": {
        "generate": Hint("a classifier writes no text; mom.MoM.from_pretrained reads its body"),
    },
    "Block": {name: _POOLS for name in ("attn", "mlp", "ffn", "ln_1", "ln_2", "ln1", "ln2")},
    "Tokenizer": {
        "batch_decode": lambda tokenizer: lambda rows, **options: [tokenizer.decode(row, **options) for row in rows],
        "save_pretrained": lambda tokenizer: tokenizer.save,
        "eos_token_id": lambda tokenizer: tokenizer.eos_id, "bos_token_id": lambda tokenizer: tokenizer.bos_id,
        "tokenize": lambda tokenizer: lambda text: [tokenizer.token(int(id)) for id in tokenizer.encode(text)],
        "convert_ids_to_tokens": lambda tokenizer: lambda ids: [tokenizer.token(int(id)) for id in ids],
        "pad_token_id": Hint("there is no padding token; give lengths, or an attention_mask"),
        "get_vocab": Hint("Tokenizer.token gives the token of an id; vocab_size is their number"),
    },
    "AdamW": {
        "zero_grad": lambda optimizer: lambda set_to_none=True: optimizer.model.zero_grad(),
        "param_groups": Hint("set AdamW.lr, or give lr to mom.AdamW"),
    },
    "ModelOutput": {
        "hidden_states": Hint("give capture=... to the call; then captured has them"), "attentions": Hint(
            "model.attention computes them"),
        "router_logits": Hint("give return_routes=True; then routes.scores has them"),
    },
    "_TextEstimator": {"partial_fit": Hint("begin another one with the fitted model: TextClassifier(first.model_)")},
    "Loss": {
        "backward": Hint("a loss is a number; call model.backward()"), "item": lambda loss: lambda: float(loss),
        "detach": lambda loss: lambda: loss,
    },
    "TrainingResult": {"loss": lambda result: result.lm_loss, "global_step": lambda result: result.step},
}  # fmt: skip


def attribute(owner: Any, names: Iterable[str], name: str) -> Any:
    """The attribute `name` of `owner`, whose entries in `ATTRIBUTES` are `names`.

    Raises
    ------
    AttributeError
        If the tables do not have it, or have a hint.
    """
    of = "module 'mom'" if inspect.ismodule(owner) else f"{type(owner).__name__!r} object"
    for title in names:
        known = ATTRIBUTES.get(title, {}).get(name)
        if isinstance(known, Hint):
            raise AttributeError(f"{of} has no attribute {name!r}; {known}")
        if known is not None:
            return known(owner)
    raise AttributeError(f"{of} has no attribute {name!r}", name=name, obj=owner)


class Familiar:
    """Base of classes with attributes in `ATTRIBUTES`."""

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            return attribute(self, [kind.__name__ for kind in type(self).__mro__], name)
