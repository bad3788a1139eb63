"""`python -m tests.fuzz.run TARGET [libFuzzer's options...]`: fuzz one of `targets` with atheris.

Runs in an environment of its own (`scripts/fuzz`), because atheris is no part of the tests. Ends
when it has found something (a traceback, and the input in a file) or when its options say so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]

from tests.fuzz.targets import TARGETS


def main(arguments: list[str]) -> None:
    name, *options = arguments
    target = TARGETS[name]
    # A target imports what it fuzzes when it runs.
    with atheris.instrument_imports(include=["netns_runtime.wire"]):
        for seed in target.seeds:
            target.run(seed)
    corpus = Path(".venv/fuzz/corpus") / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = [sys.argv[0], f"-artifact_prefix=.venv/fuzz/{name}-", *options, str(corpus)]
    atheris.Setup(words, target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
