"""Similar names are suggested, also among many."""

import difflib

import pytest

from worker.spelling import near_matches


@pytest.mark.parametrize("others", [0, 20_000])
def test_a_similar_name_is_found_among_many_with_few_comparisons(monkeypatch, others):
    real, compared = difflib.get_close_matches, []

    def counted(word, names, *args, **kwargs):
        compared.append((max(map(len, [word, *names])), len(names)))
        return real(word, names, *args, **kwargs)

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    known = ["Detail_Tweaker", *(f"style {number} {'x' * 200}" for number in range(others))]
    assert near_matches("detial_tweaker", known) == ["Detail_Tweaker"]
    assert near_matches("y" * 100_000, known) == []
    assert max(compared) <= (100, 200)
