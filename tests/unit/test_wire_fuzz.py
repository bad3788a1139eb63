"""Every parser under wire/ survives what hypothesis makes of its seeds; `scripts/fuzz` goes on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CASES = 40


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with a few of its parts cut out, doubled or replaced; or anything at all."""
    if not seeds or draw(st.integers(0, 3)) == 0:
        return draw(st.binary(min_size=1, max_size=300))
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(data)))
        end = draw(st.integers(begin, min(begin + 12, len(data))))
        part = draw(st.one_of(st.binary(max_size=6), st.just(data[begin:end] * 2)))
        data = data[:begin] + part + data[end:]
    return data or b"\0"


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_ends_as_it_says_for_any_bytes(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(target.seeds))
    def run(data: bytes) -> None:
        target.run(data)

    run()
