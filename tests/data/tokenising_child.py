"""A process that does long work of a tokenizer and says when a signal reached it.

    python tests/data/tokenising_child.py train|long|batch|prepare

It prints ``begun`` and then, for a signal that came meanwhile, its name and the system's monotonic clock.
"""

from __future__ import annotations

import random
import signal
import string
import sys
import tempfile
import time
from collections.abc import Callable

import mom
from mom.data import TextDocuments
from mom.data.prepare import prepare

random.seed(0)
WORDS = ["".join(random.choices(string.ascii_lowercase, k=random.randint(2, 12))) for _ in range(200_000)]
SHORT = [" ".join(random.choices(WORDS, k=200)) for _ in range(50)]


def work(kind: str) -> Callable[[], object]:
    """The work, prepared; it takes many seconds."""
    if kind == "train":  # all words once, so that most of the time is spent on merges
        text = [" ".join(WORDS[i : i + 100]) for i in range(0, len(WORDS), 100)]
        return lambda: mom.Tokenizer.train(text * 5, 100_000)
    tokenizer = mom.Tokenizer.train(SHORT, 2000)
    if kind == "long":  # one word, which cannot be cut
        letters = "".join(random.choices(string.ascii_lowercase, k=1 << 20)) * 30
        return lambda: tokenizer.encode(letters)
    texts = [" ".join(random.choices(WORDS, k=2000)) for _ in range(500)] * 20
    if kind == "batch":
        return lambda: tokenizer.encode_batch(texts)
    folder = tempfile.mkdtemp()
    return lambda: prepare(TextDocuments(texts), folder, tokenizer=tokenizer, progress=False)


def stop(number: int, frame: object) -> None:
    raise SystemExit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores this signal
    run = work(sys.argv[1])
    print("begun", flush=True)
    try:
        run()
    except (KeyboardInterrupt, SystemExit) as reason:
        print(type(reason).__name__, time.monotonic(), flush=True)
    else:
        print("finished", flush=True)


if __name__ == "__main__":
    main()
