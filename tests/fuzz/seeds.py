"""Valid files of every format, which mom itself writes: the beginnings of all mutations."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

import mom
from mom.data.prepare import prepare
from mom.files import weights

__all__ = ["make"]

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
TEXTS = ["The cat sat on the mat.", "A second text, with numbers: 1234 and \u00e9\u00e8 and \U0001f600.\n\nEnd."]
CONFIG = mom.MoMConfig.preset("demo", vocab_size=300, n_embd=16, n_head=2, router_dim=8, n_positions=16)


def make(folder: Path) -> None:
    """Fill a folder with sub-folders of valid files, one for each maker of this module."""
    for name, maker in MAKERS.items():
        (folder / name).mkdir(parents=True)
        maker(folder / name)


def _model(folder: Path) -> None:
    model = mom.MoM(CONFIG, seed=1)
    model.tokenizer = mom.Tokenizer.train(TEXTS, 270)
    model.generation = type(model.generation)(temperature=0.7, top_k=5, top_p=0.9, max_new_tokens=3)
    model.save_pretrained(folder)
    (folder / "manifest.json").unlink()  # so that readers judge the files, and not their sums
    (folder / "added_tokens.json").write_text('{"<one>": 270, "<two>": 271}')


def _manifest(folder: Path) -> None:
    mom.MoM(CONFIG, seed=1).save_pretrained(folder)


def _classifier(folder: Path) -> None:
    model = mom.MoMForSequenceClassification(CONFIG.replace(num_labels=3), seed=1)
    model.label_names = ("no", "maybe", "yes")
    model.save_pretrained(folder)
    (folder / "manifest.json").unlink()


def _plain(folder: Path) -> None:
    """A plain GPT-2 in the format of transformers, its tokenizer in two files."""
    config = CONFIG.replace(chunks=0, n_layer=1)
    mom.MoM(config, seed=1).save_pretrained(folder, naming="huggingface", dtype="bfloat16")
    (folder / "manifest.json").unlink()
    content = json.loads(mom.Tokenizer.train(TEXTS, 270).to_json())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"]]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    end = {"content": "<end>", "special": True}
    settings = {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "eos_token": end,
        "added_tokens_decoder": {"270": end, "271": {"content": "<x>", "lstrip": True}},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _word_pieces(folder: Path) -> None:
    """A tokenizer with a normalizer, a template and words in pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = ["[UNK]", "[CLS]", "[SEP]", *ascii_lowercase, *(f"##{c}" for c in ascii_lowercase)]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Replace("x", "y")])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(True)])
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 1)])
    made.add_special_tokens(["[CLS]", "[SEP]"])
    made.save(str(folder / "tokenizer.json"))


def _unigram(folder: Path) -> None:
    """A tokenizer with probabilities, bytes and decoders in a row."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    scored = [("<unk>", 0.0), *((f"<0x{i:02X}>", -9.0) for i in range(256)), *((c, -3.0) for c in "\u2581etaoinshrdlu")]
    made = Tokenizer(models.Unigram(scored, 0, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.NFKC()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Strip(" ", 1, 0)])
    made.add_tokens(["<one>", "<two>"])
    made.save(str(folder / "tokenizer.json"))


def _sharded(folder: Path) -> None:
    model = mom.MoM(CONFIG, seed=1)
    model.save_pretrained(folder)
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").unlink()
    names = list(model.parameters)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        weights.write_safetensors(folder / shard, {name: model.parameters[name] for name in held})
    index = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _prepared(folder: Path) -> None:
    shutil.rmtree(folder)
    prepare(mom.data.TextDocuments(TEXTS * 8), folder, vocab_size=270, val_fraction=0.2, progress=False)
    (folder / "train.bin.json").unlink(missing_ok=True)


def _tokens(folder: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 60_000, 400)
    ids.astype("<u2").tofile(folder / "plain.bin")
    ids.astype("<u4").tofile(folder / "train.bin")
    described = {"format": 1, "dtype": "uint32", "vocab_size": 60_000, "tokens": len(ids), "eos_id": 3}
    (folder / "train.bin.json").write_text(json.dumps(described))
    np.save(folder / "ids.npy", ids.astype("u2"))
    head = np.zeros(256, "<i4")
    head[:3] = 20240520, 1, len(ids)
    (folder / "llmc.bin").write_bytes(head.tobytes() + ids.astype("<u2").tobytes())


def _run(folder: Path) -> None:
    """A run of three steps."""
    ids = np.random.default_rng(0).integers(0, 300, 400)
    ids.astype("<u2").tofile(folder / "train.bin")
    (folder / "train.bin.json").write_text('{"dtype": "uint16", "vocab_size": 300}')
    shutil.copy(folder / "train.bin", folder / "val.bin")
    shutil.copy(folder / "train.bin.json", folder / "val.bin.json")
    settings: dict[str, Any] = {"steps": 3, "batch_size": 2, "sequence_length": 8, "eval_every": 2, "save_every": 2}
    mom.train(mom.MoM(CONFIG), folder, run_dir=folder / "run", progress=False, **settings)
    (folder / "training.toml").write_text(mom.TrainingConfig(**settings).to_toml())
    (folder / "finetune.toml").write_text(mom.FinetuneConfig(epochs=1, batch_size=2).to_toml())


def _texts(folder: Path) -> None:
    rows = [{"text": text, "id": str(i), "document": text * 2, "summary": text[:9]} for i, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()
    text = "\n\n".join(TEXTS).encode()
    for name, content in (("lines.jsonl", lines), ("text.txt", text)):
        (folder / name).write_bytes(content)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    labelled = [{"sentence": text, "label": i % 2, "idx": i} for i, text in enumerate(TEXTS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(labelled), folder / "train.parquet")


def _glue(folder: Path) -> None:
    shutil.copytree(GOLDEN / "glue", folder, dirs_exist_ok=True)


def weights_of_every_type() -> bytes:
    """A safetensors file that holds a tensor of every type."""
    data, header = b"", {}
    for code, size in {
        "F64": 8,
        "I64": 8,
        "F32": 4,
        "I32": 4,
        "F16": 2,
        "BF16": 2,
        "I8": 1,
        "U8": 1,
        "BOOL": 1,
    }.items():
        header[code] = {"dtype": code, "shape": [2, 3], "data_offsets": [len(data), len(data) + 6 * size]}
        data += bytes(range(6 * size)) if code != "BOOL" else b"\0\1" * 3
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def _tensors(folder: Path) -> None:
    (folder / "tensors.safetensors").write_bytes(weights_of_every_type())


MAKERS = {
    "model": _model, "manifest": _manifest, "classifier": _classifier, "plain": _plain, "sharded": _sharded,
    "prepared": _prepared, "tokens": _tokens, "run": _run, "texts": _texts, "glue": _glue, "tensors": _tensors,
    "word pieces": _word_pieces, "unigram": _unigram,
}  # fmt: skip
