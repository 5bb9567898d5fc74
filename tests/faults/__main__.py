"""Inject faults into everything that writes or reads folders, and check that nothing is lost.

    python tests/faults --seconds 60

Saving, preparing data, training, fine-tuning and resuming are disturbed at each of their calls to the system: the call
fails (part ``errors``), or the process is killed (part ``kills``). Saves are killed at random moments (``saves``).
Allocations of the C core fail (``allocations``). The order of the cases is drawn from the seed, so a short time covers
some of each. When all cases have been run, random combinations follow: two faults, a disk that stays full, a system
that cannot exchange folders, another file system. Exit status 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import shim

PARTS = ("kills", "errors", "saves", "allocations", "random")
#: Share of the time that each part gets. What a part does not need goes to random combinations.
SHARES = {"saves": 0.2, "allocations": 0.15, "kills": 0.25, "errors": 0.4}
FAMILIES = ("save", "prepare", "train", "finetune", "resume")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python tests/faults", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    made.add_argument("--seed", type=int, help="of the order and of all that is random (default: a new one each time)")
    made.add_argument("--part", choices=PARTS, help="only this part")
    made.add_argument("--work", choices=FAMILIES, help="only works of this family; saves and allocations have none")
    made.add_argument("--cases", type=int, metavar="N", help="at most N cases of each part, and no random ones")
    made.add_argument("--case", metavar="TEXT", help="repeat one case, as a failure names it")
    made.add_argument("--jobs", type=int, default=2, help="cases that run at the same time (default: 2)")
    made.add_argument("--calls", action="store_true", help="list the calls of each work, and no more")
    return made


def main() -> int:
    arguments = parser().parse_args()
    try:
        if reason := shim.why_not():
            raise shim.Unusable(reason)
        if not shim.Shim.is_loaded():
            return shim.run_under_shim([str(Path(__file__).parent), *sys.argv[1:]])
    except shim.Unusable as problem:
        print(f"faults: skipped: {problem}")
        return 0
    from session import Session

    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    folder = Path(tempfile.mkdtemp(prefix="mom-faults-"))
    try:
        session = Session(folder, seed, arguments.jobs, arguments.work)
        if arguments.calls:
            session.list_calls()
            return 0
        if arguments.case:
            return session.repeat(arguments.case)
        return run(session, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(session: object, arguments: argparse.Namespace) -> int:
    """Run the parts, each in its share of the time, and random combinations in what is left."""
    from session import Session

    assert isinstance(session, Session)
    began = time.monotonic()
    parts = [part for part in SHARES if arguments.part in (None, part)]
    whole = sum(SHARES[part] for part in parts)
    if arguments.part not in ("saves", "allocations"):
        session.prepare()
    for part in parts:
        left = began + arguments.seconds - time.monotonic()
        session.run(part, left * SHARES[part] / whole, arguments.cases)
        whole -= SHARES[part]
    left = began + arguments.seconds - time.monotonic()
    if arguments.part == "random" or (left > 1 and arguments.cases is None and {"kills", "errors"} & {*parts}):
        session.run("random", left, arguments.cases)
    return session.summary()


if __name__ == "__main__":
    sys.exit(main())
