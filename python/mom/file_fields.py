"""What this package does with every field of the files that stand beside weights and token files.

`TABLE` decides once, per file and field, and `check` applies the decision to a file that is read. No field is passed
over in silence: a field that is not in the table gives a warning. ``docs/files.md`` shows the table; `as_markdown`
writes it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from . import _reading
from ._reading import PathLike, shown
from .errors import MomError

__all__ = ["LEGACY_GENERATION", "TABLE", "USES", "FileField", "as_markdown", "check", "read_object"]

#: What can be done with a field.
USES = {
    "used": "read and used, and written again",
    "only": "one of the values that are listed, or null. Any other value is an error",
    "told": "the values that are listed change nothing, nor does null. Any other value gives a warning, because "
    "nothing here computes what the value asks for; it is not written again",
    "kept": "no effect on what is computed here; written again as it was read",
    "left": "no effect on what is computed here; not written again",
    "made": "written for other programs, not read",
}  # fmt: skip


@dataclass(frozen=True)
class FileField:
    """What is done with a field.

    Attributes
    ----------
    use : str
        A key of `USES`.
    note : str
        What the field means here.
    values : tuple
        For ``"only"`` and ``"told"``: the values that are accepted.
    """

    use: str
    note: str = ""
    values: tuple[Any, ...] = ()


def _rows(*groups: tuple[Any, ...]) -> dict[str, FileField]:
    """Fields by name, from groups: names, use, note and values."""
    return {name: FileField(*rest) for names, *rest in groups for name in names.split()}


_GENERATION = _rows(
    ("do_sample", "used", "if not true, `generate` is greedy"),
    ("temperature", "used", "default of `generate`, if `do_sample` is true; 1 if the field is missing"),
    ("top_k", "used", "default of `generate`; 0 means all tokens, and a missing field 50, as in transformers"),
    ("top_p", "used", "default of `generate`; 1 means all tokens"),
    ("max_new_tokens", "used", "default of `generate` and `generate_text`"),
    ("max_length", "used", "default length of prompt and continuation, where `max_new_tokens` is missing"),
    ("eos_token_id", "used", "a number or a list; `generate_text` ends at each of them. Written: the tokenizer's"),
    ("bos_token_id pad_token_id", "made", "the ids of config.json"),
    ("num_beams num_beam_groups num_return_sequences", "told", "`generate` has no beams; "
     "`mom.model.beam_search` has", (1,)),
    ("repetition_penalty encoder_repetition_penalty typical_p length_penalty", "told", "", (1, 1.0)),
    ("no_repeat_ngram_size encoder_no_repeat_ngram_size min_length min_new_tokens diversity_penalty epsilon_cutoff "
     "eta_cutoff", "told", "", (0, 0.0)),
    ("min_p penalty_alpha guidance_scale max_time stop_strings bad_words_ids force_words_ids constraints sequence_bias "
     "suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id forced_decoder_ids "
     "exponential_decay_length_penalty watermarking_config dola_layers top_h", "told", "", ()),
    ("renormalize_logits token_healing remove_invalid_values", "told", "", (False,)),
    ("early_stopping", "left", "of beams"),
    ("use_cache cache_implementation cache_config return_legacy_cache prefill_chunk_size compile_config "
     "disable_compile low_memory is_assistant num_assistant_tokens num_assistant_tokens_schedule "
     "assistant_confidence_threshold assistant_lookbehind assistant_early_exit "
     "target_lookbehind prompt_lookup_num_tokens max_matching_ngram_size "
     "continuous_batching_config", "left", "how fast tokens are made, not which"),
    ("output_attentions output_hidden_states output_scores output_logits return_dict_in_generate "
     "decoder_start_token_id transformers_version _from_model_config generation_kwargs trust_remote_code", "left",
     "has no meaning here"),
)  # fmt: skip

#: Fields of generation that files of older versions of transformers have in config.json.
LEGACY_GENERATION: Collection[str] = _GENERATION.keys() - {"eos_token_id", "bos_token_id", "pad_token_id"}

_CONFIG = _rows(
    ("mom_format", "only", "says that a file is ours, so that the fields of this package's own behaviour count", (1,)),
    ("id2label label2id", "used", "names of a classifier's labels (`label_names`); the order of the model counts. "
     "Written: the task's names"),
    ("finetuning_task finetuning_lengths", "used", "what the model was fine-tuned for; names of tasks that are not "
     "known here have no effect"),
    ("hidden_size max_position_embeddings num_attention_heads num_hidden_layers", "used", "other names of `n_embd`, "
     "`n_positions`, `n_head` and `n_layer`"),
    ("model_type", "used", "`gpt2`, or `gpt2-mot` for the published code's models. Without fields of a "
     "Mixture-of-Modules, another value is an error"),
    ("tie_word_embeddings", "only", "the head is always the embedding", (True,)),
    ("add_cross_attention is_encoder_decoder cross_attention_hidden_size", "only", "", (False,)),
    ("scale_attn_by_inverse_layer_idx", "only", "the published code forces it off, so in its files any value is "
     "accepted", (False,)),
    ("pruned_heads quantization_config", "only", "", ({},)),
    ("resid_dropout embd_dropout attn_dropout", "told", "GPT-2's fields are `resid_pdrop`, `embd_pdrop` and "
     "`attn_pdrop`", (0, 0.0)),
    ("layer_types", "told", "every layer attends to all earlier tokens", ()),
    ("chunk_size_feed_forward", "left", "how much memory is taken, not what is computed"),
    ("use_cache reorder_and_upcast_attn gradient_checkpointing torch_dtype dtype use_bfloat16 attn_implementation "
     "_attn_implementation _attn_implementation_autoset torchscript", "left", "how a result is computed in other "
     "programs. Here `dtype` of `from_pretrained` decides. `torch_dtype` is written for a plain GPT-2"),
    ("summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout n_ctx n_special "
     "predict_special_tokens _num_labels is_decoder tie_encoder_decoder tf_legacy_loss sep_token_id "
     "decoder_start_token_id return_dict output_hidden_states output_attentions prefix", "left", "has no meaning here"),
    ("task_specific_params", "left", "defaults of pipelines, which are not part of a model"),
    ("architectures", "made", "for a plain GPT-2"),
    ("transformers_version _name_or_path tokenizer_class auto_map _commit_hash", "left", "says where a file comes "
     "from"),
)  # fmt: skip

_TOKEN_NAMES = "eos_token bos_token unk_token sep_token pad_token cls_token mask_token"
_NAMED = (
    ("eos_token", "used", "the token that ends documents (`eos_id`), as text or as `{\"content\": ...}`"),
    ("bos_token", "used", "the token that begins texts (`bos_id`); without one, the end token does"),
    ("unk_token sep_token pad_token cls_token mask_token", "used", "special tokens"),
    ("additional_special_tokens extra_special_tokens", "used", "further special tokens"),
)  # fmt: skip

_TOKENIZER_CONFIG = _rows(
    *_NAMED,
    ("added_tokens_decoder", "used", "tokens that the vocabulary lacks are added under their ids; written into "
     "tokenizer.json"),
    ("add_prefix_space", "used", "whether a text gets a space in front; of byte-level tokenizers"),
    ("add_bos_token", "used", "`generate_text` and the scoring of texts begin with `bos_id`; `encode` and "
     "`mom.data.prepare` add nothing"),
    ("tokenizer_class", "used", "without a tokenizer.json, it must be a class with GPT-2's way of cutting text. "
     "Written: `PreTrainedTokenizerFast`"),
    ("model_max_length", "kept", "in a model's folder, `n_positions` is written"),
    ("add_eos_token", "kept", "`append_eos` of `mom.data.prepare` decides"),
    ("clean_up_tokenization_spaces", "kept", "`decode` never changes spaces. Written: false, if nothing was read"),
    ("model_input_names", "made", "without `token_type_ids`, which transformers would add to the embeddings"),
    ("errors", "told", "bytes that form no character become U+FFFD", ("replace",)),
    ("do_lower_case", "told", "the normalizer in tokenizer.json decides", (False,)),
    ("split_special_tokens", "kept", "`encode(special=...)` decides"),
    ("chat_template padding_side truncation_side pad_token_type_id response_schema", "kept", ""),
    ("name_or_path special_tokens_map_file tokenizer_file vocab_file merges_file added_tokens_file from_slow use_fast "
     "legacy backend is_local auto_map processor_class trust_remote_code max_len trim_offsets add_special_tokens "
     "transformers_version verbose local_files_only", "left", "says where a file comes from, or how transformers reads "
     "it"),
)  # fmt: skip

_TOKENIZER = _rows(
    ("version", "left", "the library `tokenizers` reads it"),
    ("truncation padding", "left", "switched off: `encode` gives all tokens of a text and no others"),
    ("added_tokens normalizer pre_tokenizer decoder model", "used", "by the library `tokenizers`"),
    ("post_processor", "used", "tokens around a text are not added. A `bos_token` in front counts as `add_bos_token`; "
     "other tokens give a warning"),
)  # fmt: skip

_META = _rows(
    ("format", "only", "", (1,)),
    ("dtype vocab_size", "used", "how token files are read; larger ids and larger vocabularies than the model's are "
     "errors"),
    ("eos_id", "used", "the end token, if no other file names it"),
    ("tokenizer_sha256", "used", "compared with the model's tokenizer wherever a model meets the data; a difference "
     "gives a warning"),
    ("files", "used", "tokens of each file are compared with its size"),
    ("val_split val_fraction seed append_eos sources source_files source_bytes documents empty_documents skipped "
     "problems", "made", "how the files came about"),
)  # fmt: skip

#: A token file's own description.
_DESCRIPTION = {
    **{name: row for name, row in _META.items() if name in ("format", "dtype", "vocab_size", "eos_id", "append_eos")},
    **_rows(
        ("tokenizer_sha256", "used", "as in meta.json"),
        ("tokens", "used", "compared with the size of the file"),
        ("documents sha256", "made", "how the file came about"),
    ),
}

#: Per file, what is done with each field. The fields of `mom.MoMConfig`, which are used, come to those of config.json.
TABLE: dict[str, dict[str, FileField]] = {
    "config.json": _CONFIG,
    "generation_config.json": _GENERATION,
    "tokenizer_config.json": _TOKENIZER_CONFIG,
    "special_tokens_map.json": _rows(*_NAMED),
    "added_tokens.json": {},
    "tokenizer.json": _TOKENIZER,
    "meta.json": _META,
    "train.bin.json": _DESCRIPTION,
}

#: What holds for a file as a whole.
_REMARKS = {
    "config.json": "All fields of [`mom.MoMConfig`](../python/mom/config.py) are used. `eos_token_id` and "
    "`bos_token_id` may be lists, of which the first counts; where there is a tokenizer, its tokens count. In files of "
    "ours and of the published code, any other field is an error. In those of transformers, which adds fields with "
    "every version, it gives a warning. If there is no generation_config.json, its fields are also read here.",
    "generation_config.json": "Kept as `model.generation`, the defaults of `generate`.",
    "added_tokens.json": "Not fields, but tokens and their ids: all are used, and written into tokenizer.json.",
    "meta.json": "Any other field has no effect.",
    "train.bin.json": "Beside every token file, under its own name. Any other field has no effect.",
    "tokenizer_config.json": "Any other field gives a warning, and is written again.",
}


def check(
    file: str, values: Mapping[str, Any], source: str, error: type[MomError], also: Collection[str] | None = ()
) -> None:
    """Apply the table to a file that was read.

    Parameters
    ----------
    file : str
        A key of `TABLE`.
    values : mapping
        The file's fields.
    source : str
        Path for messages.
    error : type
        What is raised for a value that is not accepted.
    also : collection of str or None
        Further fields that are known. None: say nothing of unknown fields.

    Warns
    -----
    UserWarning
        Of fields that are not known, and of values that have no counterpart here.
    """
    rows = TABLE[file]
    told = []
    for name, value in values.items():
        row = rows.get(name)
        if row is None or row.use not in ("only", "told") or value is None or value in row.values:
            continue
        if row.use == "only":
            raise error(f"{source}: {name}: {shown(value)} is not supported, only {' or '.join(map(repr, row.values))}")
        told.append(f"{name} = {_short(value)}" + (f" ({row.note})" if row.note else ""))
    if told:
        warnings.warn(f"{source}: has no counterpart here and is left out: {', '.join(told)}", stacklevel=4)
    unknown = [] if also is None else sorted(str(name) for name in values.keys() - rows.keys() - set(also))
    if unknown:
        warnings.warn(f"{source}: unknown fields have no effect: {', '.join(unknown)}", stacklevel=4)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def read_object(path: PathLike, error: type[MomError]) -> dict[str, Any]:
    """The fields of a JSON file; none if there is no such file.

    Raises
    ------
    MomError
        Of the given type: if the file is too large, not UTF-8, not JSON or no object.
    """
    return {} if _reading.kind_of(path) is None else _reading.read_object(path, error)


def as_markdown() -> str:
    """The table, for ``docs/files.md``."""
    lines = ["| use | what it means |", "|---|---|", *(f"| {use} | {text} |" for use, text in USES.items()), ""]
    for file, rows in TABLE.items():
        lines += [f"### `{file}`", ""]
        if file in _REMARKS:
            lines += [_REMARKS[file], ""]
        groups: dict[tuple[str, str, str], list[str]] = {}
        for name, row in rows.items():
            listed = ", ".join(f"`{json.dumps(value)}`" for value in row.values if not isinstance(value, float))
            groups.setdefault((row.use, listed, row.note), []).append(f"`{name}`")
        if groups:
            lines += ["| fields | use | values | note |", "|---|---|---|---|"]
            lines += [
                f"| {', '.join(names)} | {use} | {listed or ('null' if use == 'told' else '')} | {note} |"
                for (use, listed, note), names in groups.items()
            ]
            lines.append("")
    return "\n".join(lines)
