"""A first search space from a table alone: what is guessed, what is told, and that a study of it would run."""

import numpy as np
import polars as pl
import pytest

from autoembed.cli import main
from autoembed.data.layout import layout_of
from autoembed.drafting import draft, told_seconds
from autoembed.errors import DataError
from autoembed.estimating import _makespan, epochs_of, estimate
from autoembed.space import SearchSpace, load_mapping
from autoembed.trial import check


def table(rows=3000):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, rows)
    return pl.DataFrame(
        {
            "clicked": label,
            "moment": [f"2024-01-{1 + at * 28 // rows:02d} 10:00" for at in range(rows)],
            "site": rng.integers(0, 30, rows),
            "copy": np.zeros(rows, dtype=int),
            "same": rng.integers(0, 5, rows),
            "tells": label * 2 + 1,
            "session": [f"s{at}" for at in range(rows)],
            "price": rng.normal(10, 3, rows).round(2),
            "view_count": rng.integers(0, 500, rows),
            "tags": ["|".join(rng.choice(list("abcdef"), rng.integers(1, 4), replace=False)) for _ in range(rows)],
        }
    ).with_columns(copy=pl.col("site").cast(pl.String) + "x", constant=pl.lit("a"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft")
    table().write_csv(folder / "log.csv")
    return draft(str(folder / "log.csv"), folder / "cache"), folder


def test_what_is_guessed_is_told_and_written(made):
    draft, _ = made
    space = SearchSpace.parse(load_mapping(draft.text))
    data = space.data
    assert (data.label, data.time) == ("clicked", "moment")
    assert data.split.by == "time"
    assert "label: clicked, by its name" in draft.notes
    assert "split by time: moment" in draft.notes
    assert any(note.startswith("tags: each combination") for note in draft.notes)
    # Leaks, constants, copies and ids are left out, with the reason.
    assert set(data.drop) == {"tells", "copy", "constant", "session"}
    for line in (
        "- tells  # leak:",
        "- copy  # a copy of site",
        "- constant  # constant:",
        "- session  # like an id: 100%",
    ):
        assert line in draft.text, line
    assert "# numeric: [view_count]" in draft.text
    assert "# numeric: price\n" in draft.text
    assert space.budget.embedding_bytes
    assert "small: " in draft.text
    assert sum(draft.estimate.trials.values()) == 12
    assert draft.estimate.seconds > 0


def test_a_study_of_it_would_run(made):
    draft, _ = made
    space = SearchSpace.parse(load_mapping(draft.text))
    assert space.arms() == ("sensitivity", "uniform", "frequency")
    for arm in space.arms():
        for config in space.corners(arm):
            check(config)


def run(tmp_path, text, name="t.csv", **named):
    (tmp_path / name).write_text(text)
    made = draft(str(tmp_path / name), tmp_path / "cache", **named)
    return SearchSpace.parse(load_mapping(made.text)).data, made.notes


def test_a_file_without_a_header_with_blanks_and_question_marks(tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        f"{rng.integers(20, 60)}, {rng.choice(['a', 'b'])}, {'?' if rng.random() < 0.1 else rng.integers(0, 9)}, "
        f"{rng.choice(['>50K', '<=50K'], p=[0.2, 0.8])}"
        for _ in range(800)
    ]
    data, notes = run(tmp_path, "\n".join(lines), "people.data", label="c3")
    assert (data.header, data.strip, data.positive, data.null_values) == (False, True, (">50K",), ("?",))
    assert "label 1: c3 = >50K, the rarer value (positive)" in notes
    assert data.split.by == "random"


def delays():
    rng = np.random.default_rng(0)
    lines = [f"{rng.integers(0, 9)};{'NA' if rng.random() < 0.1 else rng.integers(-20, 90)}" for _ in range(800)]
    return "a;delay\n" + "\n".join(lines)


def test_a_number_as_label_is_predicted_as_such_and_gaps_are_left_out(tmp_path):
    data, notes = run(tmp_path, delays(), label="delay")
    assert (data.separator, data.null_values, data.missing_label) == (";", ("NA",), "drop")
    assert (data.task, data.above, data.split.stratify) == ("ratings", None, False)
    assert any(
        note.startswith("label: delay is a number, which is predicted as such (task: ratings)") for note in notes
    )
    text = draft(str(tmp_path / "t.csv"), tmp_path / "cache", label="delay").text
    assert "  task: ratings  # the label is a number; for clicks put above: NUMBER in its place\n" in text
    assert "labels of train with mean 3" in text
    space = SearchSpace.parse(load_mapping(text))
    assert (space.objective.metric, space.objective.mode) == ("valid_rmse", "min")
    for arm in space.arms():
        check(next(iter(space.corners(arm))))


@pytest.mark.parametrize("settings", [{"task": "clicks"}, {"group": "a"}, {"above": 30}])
def test_a_number_is_cut_in_two_where_the_settings_say_clicks(tmp_path, settings):
    data, notes = run(tmp_path, delays(), label="delay", settings={"separator": ";", **settings})
    assert data.task == "clicks"
    assert 25 < data.above < 45
    assert ("above" in settings) != any("divides the rows most evenly (above)" in note for note in notes)


def drawn(name, values, weights=None, rows=600):
    """A table of a user, a label and a sex, none of which says anything of the others."""
    rng = np.random.default_rng(0)
    draws = zip(
        rng.integers(0, 9, rows), rng.choice(values, rows, p=weights), rng.choice(["m", "f"], rows), strict=True
    )
    return f"user,{name},sex\n" + "".join(f"{user},{value},{sex}\n" for user, value, sex in draws)


def test_a_column_of_ratings_is_found_by_its_name(tmp_path):
    for values in ([4.5, 3, 1], [4, 3, 1]):
        data, notes = run(tmp_path, drawn("rating", values))
        assert (data.label, data.task) == ("rating", "ratings")
        assert "label: rating, by its name" in notes
    data, _ = run(tmp_path, drawn("clicked", [0, 1]))
    assert (data.label, data.task) == ("clicked", "clicks")
    assert run(tmp_path, drawn("kind", [3, 4, 5]))[0].label == "sex"
    with pytest.raises(DataError, match="which column is the label"):
        run(tmp_path, drawn("kind", [3, 4, 5]), settings={"task": "ratings"})


def test_whole_numbers_that_may_be_classes_are_asked_for(tmp_path):
    text = drawn("kind", [1, 3, 4, 5])
    with pytest.raises(DataError, match=r"has 4 whole numbers, 1, 3, 4, 5, which may be amounts or names of classes: "):
        run(tmp_path, text, label="kind")
    settings = ({"task": "ratings"}, {"positive": [5]}, {"above": 3})
    found = [run(tmp_path, text, label="kind", settings=one)[0] for one in settings]
    assert [data.task for data in found] == ["ratings", "clicks", "clicks"]
    most_at_the_top = drawn("kind", [1, 3, 5], [0.2, 0.2, 0.6])
    assert run(tmp_path, most_at_the_top, label="kind", settings={"task": "clicks"})[0].above == 3


def test_a_rare_label_is_stratified(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{int(rng.random() < 0.02)},{rng.integers(0, 9)}" for _ in range(4000)]
    data, _ = run(tmp_path, "label,a\n" + "\n".join(lines))
    assert data.split.stratify


def criteo(rows=300):
    rng = np.random.default_rng(0)
    return [
        "\t".join(
            [str(rng.integers(0, 2)), *(str(rng.integers(0, 50)) for _ in range(13))]
            + [f"{rng.integers(0, 40):08x}" if rng.random() < 0.9 else "" for _ in range(26)]
        )
        for _ in range(rows)
    ]


def test_criteo_s_log_is_recognised(tmp_path):
    data, notes = run(tmp_path, "\n".join(criteo()), "day_0")
    assert (data.format, data.label) == ("criteo", "label")
    assert notes[0].startswith("the format is Criteo's")


def test_what_is_given_is_not_guessed(tmp_path):
    data, _ = run(
        tmp_path,
        "y|t|a\n" + "1|5|x\n0|6|x\n1|6|y\n0|5|y\n1|5|y\n" * 200,
        settings={"separator": "|", "split": {"by": "random"}},
    )
    assert (data.separator, data.split.by, data.label) == ("|", "random", "y")
    assert layout_of(tmp_path / "nothing.csv", {}, print) == {}


def test_a_label_that_is_not_clear_is_asked_for(tmp_path):
    text = "a,b,c\n" + "0,1,5\n1,0,6\n1,1,7\n" * 300
    with pytest.raises(DataError, match=r"which column is the label\? Name it by label: those of two values are a, b"):
        run(tmp_path, text)
    data, _ = run(tmp_path, text, ask=lambda names: names[1])
    assert data.label == "b"
    with pytest.raises(DataError, match="there is no label column 'z': the columns are a, b, c"):
        run(tmp_path, text, label="z")
    with pytest.raises(DataError, match="has 3 values, such as 'y': say which count as 1"):
        run(tmp_path, "a,k\n" + "1,x\n2,y\n3,z\n4,y\n" * 100, label="k")


def test_the_command_writes_a_file_once(made, monkeypatch, capsys, tmp_path):
    _, folder = made
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["autoembed", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    status, said = call("init", folder / "log.csv", "--runs", folder)
    assert status == 0, said.err
    assert "written to log.yaml: look at it, then run autoembed search log.yaml" in said.out
    status, said = call("init", folder / "log.csv", "--runs", folder)
    assert status == 2
    assert "log.yaml is there already" in said.err
    status, said = call("search", "log.yaml", "--dry-run", "--runs", folder)
    assert status == 0, said.err
    assert "sensitivity: 4 trials" in said.out
    assert "12 trials in about " in said.out
    assert not (folder / "log").exists()


def test_estimates_grow_with_what_is_asked_for(made):
    draft, folder = made
    space = SearchSpace.parse(load_mapping(draft.text))
    from autoembed.data.dataset import build_dataset

    data = build_dataset(space.data, None, folder / "cache")
    one, four = (space.model_copy(update={"budget": space.budget.model_copy(update={"trials": n})}) for n in (1, 4))
    assert estimate(four, data).seconds > 2 * estimate(one, data).seconds
    assert estimate(four, data, cpus=1).at_once == 1
    values = {place: leaf.first for place, leaf in space.ranges("uniform").items()}
    uniform, searched = (space.config(arm, values) for arm in ("uniform", "sensitivity"))
    assert epochs_of(searched) > 2 * epochs_of(uniform)


def test_a_study_takes_as_long_as_its_longest_trial():
    assert _makespan([10.0, 1.0, 1.0], 2) == 10
    assert _makespan([4.0, 3.0, 3.0, 2.0], 2) == 6
    assert _makespan([5.0], 1) == 5


def test_times_in_words():
    assert [told_seconds(value) for value in (1, 42, 100, 3000, 12_600)] == ["5 s", "40 s", "2 min", "50 min", "3.5 h"]
