"""`mom.files`: weight files that are right, files that are wrong, and names under every naming."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest

from mom.config import MoMConfig
from mom.errors import CheckpointError
from mom.files.folders import verify_folder, write_folder
from mom.files.names import canonical_names, detect_and_canonicalise, rename, vanilla_mapping
from mom.files.weights import read_safetensors, read_weights, write_safetensors
from shared_data import shared_path

SIZES = {"vocab_size": 11, "n_positions": 7, "n_embd": 4, "n_head": 2, "router_dim": 3}
VANILLA = MoMConfig.vanilla(2, **SIZES)
MOM = MoMConfig(**SIZES, chunks=2, num_attn=2, num_ffn=3, num_bottom_layers=1, num_top_layers=1, depth_per_chunk=2)


def random_weights(config, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in canonical_names(config).items()}


def raw_file(path, header, data=b""):
    """A safetensors file of any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


# ---------------------------------------------------------------------- files
def test_round_trip_of_all_types(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "f32": rng.normal(size=(3, 4)).astype(np.float32),
        "f16": rng.normal(size=5).astype(np.float16),
        "f64": rng.normal(size=(2, 2)),
        "scalar": np.float32(3.5),
        "empty": np.zeros((0, 3), np.float32),
        "int": np.arange(3),
        "big-endian": np.arange(3, dtype=">i4"),
        "bool": np.array([True, False]),
        "transposed": rng.normal(size=(3, 4)).astype(np.float32).T,
        "naïve 🦊": np.zeros(1, np.uint8),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, {"format": "mom"})
    found = read_safetensors(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        value = np.asarray(value)
        assert found[name].shape == value.shape
        assert found[name].dtype == (np.float32 if value.dtype.kind == "f" else value.dtype.newbyteorder("="))
        np.testing.assert_array_equal(found[name], value.astype(found[name].dtype))
        assert found[name].flags.owndata or found[name].base.flags.owndata
        assert found[name].flags.writeable
    np.testing.assert_array_equal(read_safetensors(path, keep_float64=True)["f64"], tensors["f64"])


def test_agrees_with_the_safetensors_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    tensors = {**random_weights(MOM), "steps": np.arange(5), "half": np.ones((2, 3), np.float16)}
    write_safetensors(tmp_path / "ours", tensors, {"a": "b"})
    library.save_file(tensors, tmp_path / "theirs", {"a": "b"})
    for found in (library.load_file(tmp_path / "ours"), read_safetensors(tmp_path / "theirs")):
        assert found.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(found[name], value)


def test_bfloat16_is_read_exactly(tmp_path):
    bits = np.arange(65536, dtype="<u2")
    path = raw_file(tmp_path / "x", {"a": entry("BF16", (256, 256), 0, 131072)}, bits.tobytes())
    found = read_safetensors(path)["a"]
    assert found.shape == (256, 256) and found.dtype == np.float32
    np.testing.assert_array_equal(found.reshape(-1).view(np.uint32), bits.astype(np.uint32) << 16)


def test_bfloat16_is_written_to_nearest_even(tmp_path):
    values = np.array(
        [1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, np.inf, -np.inf, np.nan, 3.4e38, 0.0, -0.0], np.float32
    )
    nan_with_low_bits = np.array([0x7F800001], np.uint32).view(np.float32)
    path = tmp_path / "x"
    write_safetensors(path, {"a": values, "b": nan_with_low_bits, "n": np.arange(2)}, dtype="bfloat16")
    found = read_safetensors(path)
    expected = np.array([1.0, 1.0, 1 + 2**-6, -1.0, np.inf, -np.inf, np.nan, np.inf, 0.0, -0.0], np.float32)
    np.testing.assert_array_equal(found["a"], expected)
    np.testing.assert_array_equal(np.signbit(found["a"]), np.signbit(expected))
    assert np.isnan(found["b"]).all() and found["n"].tolist() == [0, 1]
    write_safetensors(tmp_path / "y", found, dtype="bfloat16")
    np.testing.assert_array_equal(read_safetensors(tmp_path / "y")["a"], found["a"])


def test_float64_beyond_float32_is_an_error(tmp_path):
    write_safetensors(tmp_path / "x", {"a": np.array([1.0, 1e300])})
    with pytest.raises(CheckpointError, match="'a': holds a number beyond the range of float32"):
        read_safetensors(tmp_path / "x")
    write_safetensors(tmp_path / "x", {"a": np.array([np.inf, np.nan])})
    np.testing.assert_array_equal(read_safetensors(tmp_path / "x")["a"], np.array([np.inf, np.nan], np.float32))


MALFORMED = [
    (b"not json", b"", "does not begin with '{'"),
    (b"{" + b"x" * 20, b"", "not valid JSON"),
    (b'{"a": "\xff"}', b"", "not UTF-8"),
    (b'{"a":' + b"[" * 100_000, b"", "not valid JSON"),
    (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "key 'dtype' occurs twice"),
    ({"a": 3}, b"", "'a': header entry is a int"),
    ({"a": entry("F8_E4M3", (8,))}, bytes(8), "'a': dtype 'F8_E4M3' is not supported"),
    ({"a": {**entry(), "dtype": ["F32"]}}, bytes(8), r"dtype \['F32'\] is not supported"),
    ({"a": entry(shape=(-2,))}, bytes(8), r"shape \[-2\] is not a list of sizes"),
    ({"a": {**entry(), "shape": [True, 2]}}, bytes(8), "is not a list of sizes"),
    ({"a": {**entry(), "shape": None}}, bytes(8), "shape None"),
    ({"a": {**entry(), "data_offsets": [0]}}, bytes(8), "are not two byte positions"),
    ({"a": entry(begin=8, end=0)}, bytes(8), "-8 bytes, expected 8"),
    ({"a": entry(shape=(3,))}, bytes(8), r"8 bytes, expected 12 for shape \(3,\) of F32"),
    ({"a": entry(shape=(2**40, 2**40))}, bytes(8), "8 bytes, expected"),
    ({"a": entry(shape=(0, 2**62, 2**62), end=0)}, b"", "is not possible"),
    ({"a": entry(shape=[1] * 100, end=4)}, bytes(4), "is not possible"),
    ({"a": entry(shape=(4,), end=16)}, bytes(8), "'a': truncated: ends at byte 16 of 8 present"),
    ({"a": entry(), "b": entry(begin=4, end=12)}, bytes(12), "'b': overlaps the tensor before it"),
    ({"a": entry(), "b": entry()}, bytes(8), "'b': overlaps the tensor before it"),
    ({"a": entry(), "b": entry(begin=12, end=20)}, bytes(20), "'b': leaves a gap before it"),
    ({"a": entry(begin=8, end=16)}, bytes(16), "'a': leaves a gap before it"),
    ({"a": entry()}, bytes(9), "1 bytes after the last tensor"),
    ({}, bytes(1), "1 bytes after the last tensor"),
]


@pytest.mark.parametrize(("header", "data", "message"), MALFORMED)
def test_malformed_file_is_named(tmp_path, header, data, message):
    path = raw_file(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, random_weights(VANILLA))
    whole = path.read_bytes()
    for size in [*range(0, 20), *np.linspace(20, len(whole) - 1, 40).astype(int)]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated|no weights"):
            read_safetensors(path)


def test_huge_header_is_refused_unread(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header of 1152921504606846976 bytes"):
        read_safetensors(path)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="absent: no such file"):
        read_weights(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_safetensors(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "state.pkl"])
def test_pickle_is_refused_with_the_conversion(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04 whatever")
    for source in (path, tmp_path):
        with pytest.raises(CheckpointError, match="weights_only=True") as caught:
            read_weights(source)
        assert str(path) in str(caught.value) and "save_file" in str(caught.value)


def test_shards_of_a_pickle_are_converted_together(tmp_path):
    shards = [tmp_path / f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
    for shard in shards:
        shard.write_bytes(b"PK\x03\x04 whatever")
    index = tmp_path / "pytorch_model.bin.index.json"

    def said(source):
        with pytest.raises(CheckpointError) as caught:
            read_weights(source)
        return str(caught.value)

    for source in (shards[1], tmp_path):
        text = said(source)
        assert "pickled PyTorch files (3 shards)" in text and all(str(shard) in text for shard in shards)
    index.write_text(json.dumps({"weight_map": {"a": shards[0].name, "b": shards[2].name, "c": shards[0].name}}))
    for source in (shards[1], tmp_path, index):
        text = said(source)
        assert "(2 shards)" in text and str(shards[0]) in text and str(shards[1]) not in text.split("\n")[1]
    index.write_text("[1]")
    assert "(3 shards)" in said(shards[2])
    shards[2].unlink()
    assert said(tmp_path) == f"{shards[2]}: missing; it is one of 3 shards of pickled weights"
    index.unlink()
    assert said(index) == f"{index}: no such file"


def test_other_pickles_are_not_taken_for_weights(tmp_path):
    for name in ("optimizer.pt", "training_args.bin", "rng_state_0.pth", "random_states_0.pkl", "scheduler.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 whatever")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        read_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 whatever")
    with pytest.raises(CheckpointError, match="pytorch_model.bin: a pickled PyTorch file"):
        read_weights(tmp_path)


def test_pickle_under_another_name_is_recognised(tmp_path):
    path = tmp_path / "model.safetensors"
    for start in (b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x80\x04\x95"):
        path.write_bytes(start + bytes(100))
        with pytest.raises(CheckpointError, match="pickled PyTorch file"):
            read_weights(tmp_path)


def write_shards(folder, tensors, **changes):
    names = list(tensors)
    parts = {"model-00001.safetensors": names[::2], "model-00002.safetensors": names[1::2]}
    for shard, part in parts.items():
        write_safetensors(folder / shard, {name: tensors[name] for name in part})
    weight_map = {name: shard for shard, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": {**weight_map, **changes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_joined(tmp_path):
    tensors = random_weights(VANILLA)
    write_shards(tmp_path, tensors)
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = read_weights(source)
        assert found.keys() == tensors.keys()
        assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_disagreeing_shards_are_named(tmp_path):
    tensors = random_weights(VANILLA)
    wte = "transformer.wte.weight"
    for changes, message in (
        ({wte: "../evil.safetensors"}, "is not the name of a file in the same folder"),
        ({wte: ".."}, "is not the name of a file"),
        ({wte: 3}, "is not the name of a file"),
        ({wte: "model-00002.safetensors"}, "model-00001.safetensors: holds tensor 'transformer.wte.weight'"),
        ({"extra": "model-00001.safetensors"}, "lacks tensor 'extra'"),
        ({"extra": "model-00003.safetensors"}, "model-00003.safetensors: no such file"),
    ):
        write_shards(tmp_path, tensors, **changes)
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path)
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "no 'weight_map'"),
        ('{"weight_map": {}}', "no 'weight_map'"),
    ):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_weights(tmp_path)


def test_what_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "x"
    for tensors, metadata, dtype, message in (
        ({"a": np.zeros(1, np.complex64)}, None, None, "'a' has type complex64"),
        ({"a": np.array(["x"])}, None, None, "'a' has type <U1"),
        ({"__metadata__": np.zeros(1)}, None, None, "'__metadata__' cannot be the name"),
        ({1: np.zeros(1)}, None, None, "1 cannot be the name"),
        ({}, {"a": 1}, None, "metadata: key 'a'"),
        ({}, None, "int8", "dtype: 'int8'"),
        ({"a": np.full(1, 7e4)}, None, "float16", "'a' holds a number beyond the range of float16"),
    ):
        with pytest.raises(CheckpointError, match=message):
            write_safetensors(path, tensors, metadata, dtype=dtype)
    assert not path.exists()


def test_is_content_for_a_checkpoint_folder(tmp_path):
    tensors = random_weights(MOM)
    write_folder(tmp_path / "step-1", {"model.safetensors": lambda file: write_safetensors(file, tensors)})
    verify_folder(tmp_path / "step-1")
    assert read_weights(tmp_path / "step-1").keys() == tensors.keys()


def test_reading_costs_the_file_once_and_writing_nothing(tmp_path):
    tensors = {f"t{i}": np.ones((512, 512), np.float32) for i in range(16)}
    path = tmp_path / "x"
    tracemalloc.start()
    write_safetensors(path, tensors)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.reset_peak()
    found = read_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(tensor.nbytes for tensor in found.values()) == 1 << 24
    assert peak < (1 << 24) + 2_000_000


# ---------------------------------------------------------------------- names
def test_canonical_names_of_every_recorded_model():
    count = 0
    for folder in sorted(shared_path("parity").iterdir()):
        if not (folder / "model.safetensors").is_file():
            continue
        config = MoMConfig.from_json(folder)
        tensors = read_weights(folder)
        assert {name: tensor.shape for name, tensor in tensors.items()} == canonical_names(config), folder.name
        canonical = detect_and_canonicalise(tensors, config, folder.name)
        assert list(canonical) == list(canonical_names(config))
        assert all(canonical[name] is tensors[name] for name in tensors)
        count += 1
    assert count > 30


def test_order_is_embeddings_places_norm_head():
    names = list(canonical_names(MOM.replace(num_labels=3)))
    assert names[:2] == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert names[-3:] == ["transformer.ln_f.weight", "transformer.ln_f.bias", "score.weight"]
    places = [int(name.split(".")[2]) for name in names[2:-3]]
    assert places == sorted(places) and set(places) == set(range(6))
    block = [name.removeprefix("transformer.h.1.") for name in names if name.startswith("transformer.h.1.")]
    kinds = [".".join(name.split(".")[:2]) for name in block]
    assert list(dict.fromkeys(kinds)) == [
        "mot_attn.attention_layernorm", "mot_attn.c_attn", "mot_attn.c_proj", "mot_attn.router",
        "mot_ffn.ffn_layernorm", "mot_ffn.c_fc", "mot_ffn.c_proj", "mot_ffn.router",
    ]  # fmt: skip


@pytest.mark.parametrize("router_type", ["naive", "gru", "gru-dev", "gru-softmax-random", "linear", "norm-softmax"])
@pytest.mark.parametrize("router_choices", ["own", "max", "reference"])
def test_router_shapes(router_type, router_choices):
    config = MOM.replace(router_type=router_type, router_choices=router_choices)
    names = canonical_names(config)
    for half in ("attn", "ffn"):
        base, choices = f"transformer.h.1.mot_{half}.router.", config.num_choices(half)
        router = {name.removeprefix(base): shape for name, shape in names.items() if name.startswith(base)}
        if router_type == "naive":
            expected = {
                "router.0.weight": (3, 4), "router.0.bias": (3,),
                "router.2.weight": (choices, 3), "router.2.bias": (choices,),
            }  # fmt: skip
        elif router_type == "linear":
            expected = {"router.weight": (choices, 4), "router.bias": (choices,)}
        elif router_type == "norm-softmax":
            expected = {"router.0.weight": (3, 4), "router.bias": (choices,)}
        else:
            rows = 12 if "random" in router_type else 9
            expected = {
                "router.weight": (choices, 3), "router.bias": (choices,), "h2h.weight": (rows, 3), "h2h.bias": (rows,),
                "x2h.weight": (rows, 4), "x2h.bias": (rows,),
            }  # fmt: skip
        assert router == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"router_layernorm": True}, {"layernorm.weight": (4,), "layernorm.bias": (4,)}),
        ({"router_rounds": "embedding"}, {"round_embedding.weight": (2, 4)}),
        ({"router_rounds": "projection"}, {"router.weight": (8, 4), "router.bias": (8,)}),  # 2 rounds of 4 choices
        ({"router_bias_rate": 0.1}, {"balance_bias": (4,)}),
    ],
    ids=str,
)
def test_shapes_of_what_a_router_may_have(changes, expected):
    names = canonical_names(MOM.replace(router_type="linear", **changes))
    base = "transformer.h.1.mot_ffn.router."
    router = {name.removeprefix(base): shape for name, shape in names.items() if name.startswith(base)}
    assert router == {"router.weight": (4, 4), "router.bias": (4,), **expected}


def test_shared_modules_have_names_in_the_first_block_only():
    names = canonical_names(MOM.replace(shared_pools="ffn", require_anchor_layer=False))
    assert "transformer.h.1.mot_ffn.c_fc.2.weight" in names and "transformer.h.2.mot_attn.c_attn.1.weight" in names
    second = [name for name in names if name.startswith("transformer.h.2.mot_ffn.")]
    assert second and all(".router." in name for name in second)


def test_routers_of_single_modules():
    names = canonical_names(MOM.replace(num_attn=1, route_single=True, router_choices="own", router_type="linear"))
    base = "transformer.h.1.mot_attn."
    assert names[f"{base}router.router.weight"] == (2, 4) and names[f"{base}c_attn.weight"] == (4, 12)


def test_single_modules_have_no_index_and_no_router():
    config = MOM.replace(num_attn=1)
    names = [name for name in canonical_names(config) if name.startswith("transformer.h.1.mot_attn.")]
    assert len(names) == 6 and not any("router" in name or ".0." in name for name in names)
    both = canonical_names(config.replace(num_ffn=1))
    assert not any("router" in name for name in both)


@pytest.mark.parametrize("naming", ["canonical", "reference", "huggingface", "bare"])
@pytest.mark.parametrize("config", [VANILLA, MOM, VANILLA.replace(num_labels=2)])
def test_every_naming_is_understood(config, naming):
    tensors = random_weights(config)
    if naming == "huggingface" and not config.is_vanilla:
        with pytest.raises(CheckpointError, match="only for a plain GPT-2"):
            rename(tensors, config, to=naming)
        return
    renamed = rename(tensors, config, to=naming)
    assert len(renamed) == len(tensors)
    for variant in (renamed, {name.removeprefix("transformer."): value for name, value in renamed.items()}):
        found = detect_and_canonicalise(dict(reversed(variant.items())), config)
        assert list(found) == list(tensors)
        assert all(found[name] is tensors[name] for name in tensors)


def test_names_of_a_plain_gpt2():
    renamed = rename(canonical_names(VANILLA), VANILLA, to="reference")
    assert renamed["transformer.h.1.mot_attn.attention_layernorm.weight"] == (4,)
    assert renamed["transformer.h.1.mot_ffn.c_fc.weight"] == (4, 16)
    assert rename({"transformer.h.0.ln_2.bias": 1}, VANILLA, to="bare") == {"h.0.ln_2.bias": 1}
    with pytest.raises(CheckpointError, match="'x' is not a canonical name"):
        rename({"x": 1}, VANILLA)
    with pytest.raises(CheckpointError, match="to: 'onnx' is not one of"):
        rename({}, VANILLA, to="onnx")


def test_buffers_and_tied_head_are_dropped():
    tensors = rename(random_weights(VANILLA), VANILLA, to="bare")
    extras = {
        "h.0.attn.bias": np.tril(np.ones((1, 1, 7, 7), np.uint8)),
        "h.1.attn.masked_bias": np.float32(-1e4),
        "lm_head.weight": tensors["wte.weight"].copy(),
    }
    assert list(detect_and_canonicalise({**extras, **tensors}, VANILLA)) == list(canonical_names(VANILLA))
    head = extras["lm_head.weight"]
    head[0, 0] += 1
    with pytest.raises(CheckpointError, match=r"gpt2: lm_head\.weight differs from wte\.weight"):
        detect_and_canonicalise({**tensors, **extras}, VANILLA, "gpt2")


def test_everything_that_does_not_fit_is_listed_at_once():
    tensors = random_weights(MOM)
    del tensors["transformer.wpe.weight"], tensors["transformer.h.1.mot_ffn.router.router.2.bias"]
    tensors["transformer.h.9.mot_ffn.c_fc.bias"] = np.zeros(16, np.float32)
    tensors["transformer.wte.weight"] = np.zeros((12, 4), np.float32)
    tensors["transformer.h.0.mot_ffn.c_fc.weight"] = tensors["transformer.h.0.mot_ffn.c_fc.weight"].T
    tensors["transformer.ln_f.bias"] = np.zeros(4, np.int64)
    with pytest.raises(CheckpointError) as caught:
        detect_and_canonicalise(tensors, MOM, "folder")
    message = str(caught.value)
    for part in (
        "folder: does not fit the configuration",
        "2 missing: transformer.wpe.weight, transformer.h.1.mot_ffn.router.router.2.bias",
        "1 unexpected: transformer.h.9.mot_ffn.c_fc.bias",
        "transformer.wte.weight has shape (12, 4), expected (11, 4)",
        "transformer.h.0.mot_ffn.c_fc.weight has shape (16, 4), expected (4, 16) (transposed?)",
        "transformer.ln_f.bias has type int64, expected a floating type",
        "3 wrong",
    ):
        assert part in message
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        detect_and_canonicalise({}, MOM)


def test_same_tensor_twice_is_named():
    tensors = random_weights(VANILLA)
    with pytest.raises(CheckpointError, match=r"'transformer\.wte\.weight' and 'wte\.weight' are the same tensor"):
        detect_and_canonicalise({**tensors, "wte.weight": tensors["transformer.wte.weight"]}, VANILLA)


def test_a_plain_gpt2_for_a_model_with_blocks_is_recognised():
    with pytest.raises(CheckpointError, match=r"names of a plain GPT-2, which MoM\.from_vanilla takes"):
        detect_and_canonicalise(random_weights(VANILLA), MOM)


def test_a_new_head_may_be_missing():
    config = MOM.replace(num_labels=3)
    with pytest.raises(CheckpointError, match=r"1 missing: score\.weight"):
        detect_and_canonicalise(random_weights(MOM), config)
    found = detect_and_canonicalise(random_weights(MOM), config, allow_missing=["score.weight"])
    assert list(found) == list(canonical_names(MOM))


def test_result_is_contiguous_float32():
    tensors = {name: np.asfortranarray(value.astype(np.float64)) for name, value in random_weights(VANILLA).items()}
    for value in detect_and_canonicalise(tensors, VANILLA).values():
        assert value.dtype == np.float32 and value.flags.c_contiguous


# ---------------------------------------------------------------------- phase two
@pytest.mark.parametrize("case", ["init_from_vanilla_chunks2_anchor", "init_from_vanilla_moe"])
def test_mapping_is_the_references(case):
    folder = shared_path("parity", case)
    record = json.loads((folder / "case.json").read_text())
    config = MoMConfig.from_json(folder)
    pairs = vanilla_mapping(config, copy_final_norm=False, copy_single_modules=False)
    assert pairs == vanilla_mapping(config)  # a configuration of the reference asks for its behaviour
    assert dict(pairs) == record["copied"] and len(pairs) == len(record["copied"])
    assert canonical_names(config).keys() - dict(pairs).keys() == set(record["not_copied_mom"])
    vanilla = read_safetensors(folder / "vanilla.safetensors")
    assert vanilla.keys() - set(dict(pairs).values()) == set(record["unused_vanilla"])
    fresh = read_safetensors(folder / "fresh.safetensors")
    detect_and_canonicalise({**fresh, **{ours: vanilla[theirs] for ours, theirs in pairs}}, config)


def test_mapping_fits_shapes_order_and_layers():
    for changes in (
        {},
        {"num_attn": 1},
        {"num_ffn": 1},
        {"num_attn": 5},
        {"require_anchor_layer": False},
        {"chunks": 0},
    ):
        config = MOM.replace(**changes)
        names, vanilla = canonical_names(config), canonical_names(config.vanilla_config())
        pairs = vanilla_mapping(config, copy_final_norm=True, copy_single_modules=True)
        assert all(names[ours] == vanilla[theirs] for ours, theirs in pairs)
        assert [ours for ours, _ in pairs] == [name for name in names if name in dict(pairs)] or not config.is_vanilla
        assert {name for name in names if "router" not in name} == set(dict(pairs))
        assert max(int(theirs.split(".")[2]) for _, theirs in pairs if ".h." in theirs) == config.vanilla_layers() - 1


def test_mapping_options():
    config = MOM.replace(num_attn=1)
    full, plain = dict(vanilla_mapping(config, True, True)), dict(vanilla_mapping(config, False, False))
    extra = full.keys() - plain.keys()
    assert {"transformer.ln_f.weight", "transformer.ln_f.bias"} < extra
    assert len(extra) == 2 + 2 * 6
    assert full["transformer.h.3.mot_attn.c_attn.weight"] == "transformer.h.5.attn.c_attn.weight"
    assert math.prod(canonical_names(config)["transformer.h.3.mot_attn.c_attn.weight"]) == 48
    assert dict(vanilla_mapping(config)) == full
