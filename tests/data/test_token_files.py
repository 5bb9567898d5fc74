"""`mom.data.token_files`: damaged token files, coverage and randomness of windows, exact resume."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from mom.data.token_files import TokenFile, WindowSampler, _permute
from mom.errors import DataError


@pytest.fixture
def token_file(tmp_path):
    """A token file in which every token says where it is."""

    def make(length, dtype="<u2"):
        path = tmp_path / f"tokens-{length}.bin"
        np.arange(length).astype(dtype).tofile(path)
        return TokenFile(path, dtype="uint32" if dtype == "<u4" else None)

    return make


def test_nanogpt_file_without_meta(tmp_path):
    path = tmp_path / "train.bin"
    np.array([1, 2, 65535], "<u2").tofile(path)
    for source in (path, tmp_path):
        tokens = TokenFile(source)
        assert len(tokens) == 3 and tokens.vocab_size is None
        found = tokens.read(1, 2)
        assert found.dtype == np.int32 and found.tolist() == [2, 65535]


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "train.bin"
    with pytest.raises(DataError, match=r"train\.bin: no such file"):
        TokenFile(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.bin: empty"):
        TokenFile(path)
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match="truncated: 3 bytes are not a multiple of 2"):
        TokenFile(path)
    path.write_bytes(b"abcdef")
    with pytest.raises(DataError, match="not a multiple of 4"):
        TokenFile(path, dtype="uint32")
    with pytest.raises(DataError, match="dtype: 'int8'"):
        TokenFile(path, dtype="int8")
    with pytest.raises(DataError, match="vocab_size: 0"):
        TokenFile(path, vocab_size=0)


def test_meta_is_obeyed_and_checked(tmp_path):
    path = tmp_path / "train.bin"
    np.arange(10, dtype="<u4").tofile(path)
    meta = {"dtype": "uint32", "vocab_size": 10, "files": {"train.bin": {"tokens": 10}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    tokens = TokenFile(path)
    assert tokens.dtype == np.uint32 and tokens.vocab_size == 10
    with pytest.raises(DataError, match="dtype: uint16, but .* says uint32"):
        TokenFile(path, dtype="uint16")
    with open(path, "r+b") as file:
        file.truncate(20)
    with pytest.raises(DataError, match="5 tokens, but meta.json says 10"):
        TokenFile(path)
    for broken in ("{", '{"dtype": "uint8", "vocab_size": 1, "files": {"train.bin": {"tokens": 5}}}'):
        (tmp_path / "meta.json").write_text(broken)
        with pytest.raises(DataError, match=r"meta\.json"):
            TokenFile(path)
    (tmp_path / "meta.json").write_text('{"files": {"other.bin": {}}}')  # says nothing of this file
    with pytest.raises(DataError, match="nothing tells the width of its ids"):
        TokenFile(path)
    assert len(TokenFile(path, dtype="uint16")) == 10


def test_id_outside_the_vocabulary_is_named_with_its_position(tmp_path):
    path = tmp_path / "train.bin"
    ids = np.zeros(1000, "<u2")
    ids[777] = 50
    ids.tofile(path)
    tokens = TokenFile(path, dtype="uint16", vocab_size=50)
    assert tokens.read(0, 700).sum() == 0
    with pytest.raises(DataError, match=r"train\.bin: id 50 at position 777 is not less than vocab_size = 50"):
        tokens.windows(np.array([0, 700, 750]), 100)
    np.array([2**31], "<u4").tofile(path)
    with pytest.raises(DataError, match=r"id 2147483648 at position 0"):
        TokenFile(path, dtype="uint32").read(0, 1)


def test_windows_outside_the_file_and_shrunken_files_are_refused(token_file):
    tokens = token_file(100)
    for start, length in ((-1, 10), (91, 10), (0, 101), (0, 0)):
        with pytest.raises(DataError, match="does not lie within the 100 present"):
            tokens.read(start, length)
    os.truncate(tokens.path, 100)
    with pytest.raises(DataError, match="became shorter while in use"):
        tokens.read(0, 10)


def test_consecutive_windows_follow_the_file_and_wrap(token_file):
    sampler = WindowSampler(token_file(35), 2, 10, mode="consecutive")
    assert sampler.windows_per_epoch == 3
    batches = [sampler.next_batch() for _ in range(3)]
    assert batches[0].dtype == np.int32 and batches[0].shape == (2, 10)
    assert np.concatenate(batches)[:, 0].tolist() == [0, 10, 20, 0, 10, 20]
    np.testing.assert_array_equal(np.diff(np.concatenate(batches), axis=1), 1)
    assert sampler.epoch == 2


@pytest.mark.parametrize("length", [10, 11, 25, 100, 1003])
def test_random_epoch_visits_disjoint_windows_once(token_file, length):
    sampler = WindowSampler(token_file(length), 1, 10, seed=3)
    count = sampler.windows_per_epoch
    assert count == max(1, (length - 9) // 10)
    for _ in range(5):
        windows = np.concatenate([sampler.next_batch() for _ in range(count)])
        assert np.unique(windows).size == count * 10
        np.testing.assert_array_equal(np.diff(windows, axis=1), 1)


def test_epochs_differ_in_offset_and_order_and_cover_the_file(token_file):
    sampler = WindowSampler(token_file(1003), 33, 10, seed=1)
    epochs = [np.concatenate([sampler.next_batch() for _ in range(3)]) for _ in range(200)]
    assert sampler.windows_per_epoch == 99 and sampler.epoch == 200
    assert len({epoch[:, 0].min() for epoch in epochs}) == 14
    assert len({tuple(epoch[:, 0]) for epoch in epochs}) == 200
    assert np.unique(np.concatenate(epochs)).size == 1003


def test_seed_determines_the_batches(token_file):
    tokens = token_file(5000)
    first, same, other = (WindowSampler(tokens, 8, 16, seed=seed) for seed in (7, 7, 8))
    batches = [[sampler.next_batch() for _ in range(60)] for sampler in (first, same, other)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert not np.array_equal(batches[0], batches[2])
    WindowSampler(tokens, 8, 16, seed=-1).next_batch()


def test_permutation_is_one_for_every_size():
    rng = np.random.default_rng(0)
    for count in [*range(1, 70), 1000, 4097]:
        key = np.full(count, rng.integers(0, 2**64, dtype=np.uint64))
        image = _permute(np.arange(count), count, key)
        np.testing.assert_array_equal(np.sort(image), np.arange(count))


def test_permutation_looks_random():
    count, keys = 12, np.random.default_rng(0).integers(0, 2**64, 24_000, dtype=np.uint64)
    images = np.stack([_permute(np.full(keys.size, i), count, keys) for i in range(count)])
    # Each index goes everywhere equally often: chi-square with 11 degrees of freedom, mean 11, deviation 4.7.
    for row in images:
        observed = np.bincount(row, minlength=count)
        assert ((observed - 2000) ** 2 / 2000).sum() < 45
    # And neighbours do not stay neighbours.
    together = (images[1] - images[0]) % count
    assert np.bincount(together, minlength=count)[1:].min() > 1900


def test_a_huge_file_needs_no_table():
    class Huge:
        path = "huge"

        def __len__(self):
            return 9_000_000_000_000

    sampler = WindowSampler(Huge(), 4, 1024)
    starts = sampler.starts(np.arange(10_000) + 10**9)
    assert np.unique(starts).size == 10_000
    assert starts.min() >= 0 and starts.max() <= 9_000_000_000_000 - 1024
    assert abs(starts.mean() / 4.5e12 - 1) < 0.05


@pytest.mark.parametrize("mode", ["random", "consecutive"])
def test_resume_is_exact_also_with_another_batch_size(token_file, mode):
    tokens = token_file(2000)
    sampler = WindowSampler(tokens, 6, 16, seed=5, mode=mode)
    for _ in range(33):
        sampler.next_batch()
    state = json.loads(json.dumps(sampler.state_dict()))
    following = np.concatenate([sampler.next_batch() for _ in range(40)])
    for batch_size in (6, 4, 5, 240):
        resumed = WindowSampler(tokens, batch_size, 16, seed=99, mode=mode)
        resumed.load_state_dict(state)
        again = np.concatenate([resumed.next_batch() for _ in range(240 // batch_size)])
        np.testing.assert_array_equal(again, following)


def test_ranks_share_the_windows(token_file):
    tokens = token_file(2000)
    whole = WindowSampler(tokens, 6, 16)
    parts = [WindowSampler(tokens, 2, 16, rank=rank, num_ranks=3) for rank in range(3)]
    for _ in range(50):
        np.testing.assert_array_equal(np.concatenate([part.next_batch() for part in parts]), whole.next_batch())
    assert all(part.state_dict() == whole.state_dict() for part in parts)


def test_foreign_state_is_refused(token_file):
    tokens = token_file(2000)
    sampler = WindowSampler(tokens, 6, 16)
    state = sampler.state_dict()
    changes = [
        ("mode", "consecutive"),
        ("seq_len", 8),
        ("tokens", 3),
        ("seed", "x"),
        ("position", -1),
        ("position", 1.5),
    ]
    for name, value in changes:
        with pytest.raises(DataError, match=f"state: {name}"):
            sampler.load_state_dict({**state, name: value})
    for malformed in ({}, {**state, "more": 1}, None):
        with pytest.raises(DataError, match="state: expected the keys"):
            sampler.load_state_dict(malformed)
    assert sampler.state_dict() == state


def test_arguments_are_named(token_file):
    tokens = token_file(100)
    for arguments, message in (
        ({"batch_size": 0, "seq_len": 1}, "batch_size: 0"),
        ({"batch_size": 1, "seq_len": 0}, "seq_len: 0"),
        ({"batch_size": 1, "seq_len": 101}, "100 tokens, fewer than one window of seq_len = 101"),
        ({"batch_size": 1, "seq_len": 1, "mode": "shuffled"}, "mode: 'shuffled'"),
        ({"batch_size": 1, "seq_len": 1, "rank": 1}, "rank: 1"),
    ):
        with pytest.raises(DataError, match=message):
            WindowSampler(tokens, **arguments)


def test_errors_of_the_disk_name_the_file(token_file, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    path = token_file(64).path
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        TokenFile(path)
    assert caught.value.filename == str(path)


def test_an_error_while_a_file_is_closed_is_not_raised(token_file, monkeypatch):
    def broken(file):
        close(file)
        raise OSError(5, "Input/output error")

    close = os.close
    opened = token_file(64)
    monkeypatch.setattr(os, "close", broken)
    errors = []
    monkeypatch.setattr("sys.unraisablehook", errors.append)
    monkeypatch.setattr("sys.excepthook", lambda *error: errors.append(error))
    del opened
    assert not errors
