import pytest

from worker.patience import BackOff, asked_for


def test_pauses_double_up_to_the_longest_and_start_anew():
    back_off = BackOff(first=1.0, most=5.0)
    for most in (1, 2, 4, 5, 5):
        assert 0.75 * most <= back_off.pause() <= most
    back_off.reset()

    assert back_off.pause() <= 1


def test_what_the_server_asks_for_is_the_least():
    assert BackOff(first=1.0).pause(at_least=7.0) == 7.0


def test_workers_do_not_come_back_in_step():
    assert len({BackOff().pause() for _ in range(20)}) > 15


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("3", 3),
        ("1e9", 30),
        ("-1", 0),
        ("nan", 0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0),
    ],
)
def test_retry_after(header, seconds):
    assert asked_for(header) == seconds
