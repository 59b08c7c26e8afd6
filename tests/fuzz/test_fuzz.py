"""Every reader of something from outside: with inputs that have found a fault, and new ones.

The long form is `make fuzz`; docs/internals/fuzzing.md has its figures.
"""

import random

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.fuzz.long_run import GROWTH, REPEATED, REPEATS, growth
from tests.fuzz.target import TARGETS, Target, judged, kept_inputs, load, shrunk

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and torch's, about damaged files
EXAMPLES = 60
FEW = tuple(load(embedded=False))

blobs = st.builds(
    lambda seed, size: random.Random(seed).randbytes(size),
    st.integers(0, 2**32),
    st.sampled_from((8, 40, 120, 400)),
)


def check(one, data):
    found = judged(one, data)
    assert not found, f"{one.name} {shrunk(one, found).hex()}: {found.place}: {found.text}"


def check_new(one):
    """Draw new inputs, the same ones each time."""

    @hypothesis.settings(
        max_examples=max(5, round(EXAMPLES * one.share)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(st.one_of(st.binary(max_size=64), blobs))
    def any_input(data):
        check(one, data)

    any_input()


@pytest.mark.parametrize("name", FEW)
def test_no_input_breaks(name):
    for data in kept_inputs(name):
        check(TARGETS[name], data)
    check_new(TARGETS[name])


# The judge ----------------------------------------------------------------------------------------


def of(use, *raises, seconds=0.2):
    return Target("x", use, raises, seconds, 1.0, 1.0)


KEPT = []


def keeps(draw):
    KEPT.append(bytes(2_000) + draw.rest())


@pytest.mark.parametrize(
    ("target", "place"),
    [
        (of(lambda draw: {}[draw.randrange(9)]), "KeyError in "),
        (of(lambda _draw: sum(range(10**5)), seconds=0.0), "too slow"),
        (of(lambda draw: {}[draw.randrange(9)], KeyError), None),
        (of(lambda _draw: sum(range(10**5)), seconds=60.0), None),
    ],
)
def test_what_a_target_must_not_do_is_a_finding(target, place):
    found = judged(target, b"abcd")
    assert found.place.startswith(place) if place else found is None, found


def test_memory_that_grows_with_the_same_inputs_is_a_finding():
    assert growth(of(keeps)).place == "memory grows"
    KEPT.clear()
    assert growth(of(lambda draw: draw.rest())) is None
    assert GROWTH < REPEATED * (REPEATS // 2) * 2_000


def test_a_finding_becomes_shorter_and_stays_the_same_fault():
    target = of(lambda draw: 1 // (b"x" not in draw.rest()))
    found = judged(target, bytes(range(256)))
    assert shrunk(target, found) == b"x"
