"""The frame of the benchmarks: goals, ratios, turns, the file of results and the page."""

import pytest

from benchmarks.suite import page, plots, table
from benchmarks.suite.__main__ import DOCS, ROWS, main
from benchmarks.suite.figures import Curve, Figure, Found, Goal, in_turns
from benchmarks.suite.results import Results, read

CURVE = Curve("Time by size", "MiB", "s", {"ours": ((1, 2.0), (10, 3.0)), "cp": ((1, 1.0),)}, True)


@pytest.mark.parametrize(
    ("goal", "ours", "others", "met"),
    [
        (Goal(0.8), (4, 8), (10, 10), True),  # ratios 0.4 and 0.8
        (Goal(0.8), (4, 8), (10, 5), False),  # 0.4 and 1.6
        (Goal(5, "value"), (4, 6), (), True),
        (Goal(5, "value"), (4, 7), (1, 1), False),
        (Goal(97, "value", at_least=True), (97,), (), True),
        (Goal(97, "value", at_least=True), (96.9,), (), False),
        (None, (1,), (2,), None),
    ],
)
def test_a_goal_is_met_by_the_ratio_or_by_the_value(goal, ours, others, met):
    assert Figure("name", "ms", ours, others, goal=goal).is_met is met


def test_no_ratio_is_shown_where_the_rivals_value_is_0():
    figure = Figure("lost", "%", (0.0, 0.0), (0.0, 20.0), "the plain SDK", Goal(0, "value"))

    assert (figure.ratios, figure.is_met) == ((), True)
    assert "| lost | 0 % | 10 % | the plain SDK |  | ≤ 0 % | met |" in table.table([figure])


def test_two_sides_take_turns_and_the_first_one_changes():
    calls = iter(range(100))

    ours, others = in_turns(3, lambda: next(calls), lambda: -next(calls))

    assert (ours, others) == ((0, 3, 4), (-1, -2, -5))


@pytest.fixture
def results():
    figures = [
        Figure("fast", "ms", (1.0,), (2.0,), "the plain SDK", Goal(0.8)),
        Figure("slow", "ms", (3.0, 5.0), (2.0, 2.0), "cp", Goal(1), why_missed="The disk."),
    ]
    found = Found("job", "A job", "Rivals.", figures, [CURVE], busy_cores=0.02, seconds=3)
    return Results({"processor": "a CPU"}, [found])


def test_a_file_of_results_is_read_as_it_was_written(results, tmp_path):
    results.write(tmp_path / "results.json")

    again = read(tmp_path / "results.json")

    assert again == results


def test_the_page_has_each_figure_and_the_reason_of_a_missed_one(results):
    text = page.page(results)

    assert "| fast | 1 ms | 2 ms | the plain SDK | 0.5 | ≤ 0.8x | met |" in text
    assert "| slow | 4 ms | 2 ms | cp | 2 (1.5 to 2.5) | ≤ 1x | **missed** |" in text
    assert "**Missed: slow.** The disk." in text
    assert "Goals met: 1; missed: 1." in text
    alt = "Time by size. s by MiB; ours: 2 at 1 to 3 at 10; cp: 1 at 1"
    assert f"![{alt}](images/bench-time-by-size.svg)" in text


def test_a_curve_is_a_table_of_its_values_where_no_plot_can_be_shown():
    assert table.points(CURVE).splitlines()[2:] == ["| 1 | 2 | 1 |", "| 10 | 3 |  |"]


def test_the_same_curve_makes_the_same_file():
    assert plots.draw(CURVE) == plots.draw(CURVE)


def test_the_page_of_benchmarks_is_made_from_its_results():
    results = read(DOCS / "benchmarks.json")

    assert (DOCS / "benchmarks.md").read_text() == page.page(results)
    curves = [curve for row in results.rows for curve in row.curves]
    assert sorted(path.name for path in (DOCS / "images").glob("bench-*.svg")) == sorted(
        page.plot_file(curve) for curve in curves
    )


def test_the_rows_can_be_listed(capsys):
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(ROWS)
