"""Make a click table of MovieLens-100k: did a user give a film 4 or 5 stars?

    pip download --no-deps recbole==1.2.1
    unzip -q recbole-1.2.1-py3-none-any.whl 'recbole/dataset_example/*'
    python tests/benchmarks/ml100k.py recbole/dataset_example/ml-100k OUT
    autoembed frontier search_spaces/frontier_ml100k.yaml --data OUT --bytes 15500,31000,62000,123000,245000

With --stars, the label is the number of stars (search_spaces/ml100k_ratings.yaml). With --lists, `genres` holds each
film's genres, and `liked` the last 20 films that the user gave 4 or 5 stars before; both are lists
(search_spaces/ml100k.yaml). Without, `genre` is the film's combination of genres.

With --topk, a click is a film that the user rated, whatever the stars, and the question is which of 100 films that is
(search_spaces/ml100k_topk.yaml): the user's last film is test's and the one before it valid's, each among 99 drawn
films that the user never rated; train has all others, each beside 4 drawn ones (He et al., Neural Collaborative
Filtering, WWW 2017).

The package recbole carries the 100,000 ratings as an example. Each user's ratings are split by time: the first eight
tenths are train, then a tenth each is valid and test. A split of all ratings by time would not do: only 14 % of its
test rows are of users that train has seen, since most users rated everything in one sitting.

MovieLens-100k (Harper and Konstan, ACM TiiS 2015) is for research and may not be passed on without permission, says its
README at https://files.grouplens.org/datasets/movielens/ml-100k-README.txt: keep OUT outside of this repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

STARS, LIKED = 4, 20
BESIDE, AMONG = 4, 100  # films drawn for one of train, and films of which one of valid and test is to be found
SHARES = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}


def read(folder: Path, name: str) -> pl.DataFrame:
    """A table of RecBole's: tabs, and the kind of each column in its header."""
    table = pl.read_csv(folder / f"ml-100k.{name}", separator="\t", infer_schema=False, quote_char=None)
    return table.rename({column: column.partition(":")[0] for column in table.columns})


def liked(ratings: pl.DataFrame) -> pl.Series:
    """The films that the user of each row gave 4 or 5 stars before it, the last LIKED of them, the newest last."""
    before: dict[str, list[str]] = {}
    found = {}
    order = ratings.with_row_index("row").sort(pl.col("timestamp").cast(pl.Float64), maintain_order=True)
    for row, user, film, stars in order.select("row", "user_id", "item_id", "rating").iter_rows():
        own = before.setdefault(user, [])
        found[row] = own[-LIKED:]
        if float(stars) >= STARS:
            own.append(film)
    return pl.Series([found[row] for row in range(len(ratings))], dtype=pl.List(pl.String))


def clicks(folder: Path, lists: bool = False, stars: bool = False) -> pl.DataFrame:
    """A row for each rating, with `label`, a click or the stars, and `rank`.

    That is the share of the user's own ratings that came before it.
    """
    ratings = read(folder, "inter")
    given = pl.col("rating").cast(pl.Float64)
    label = given if stars else given.ge(STARS).cast(pl.Int8)
    genres = {"genres": pl.col("class").str.split(" "), "liked": liked(ratings)} if lists else {"genre": "class"}
    ranked = ratings.with_columns(label=label, rank=(order_of_own() - 1) / pl.len().over("user_id"))
    return described(ranked, folder, **genres).with_columns(ranked["rank"])


def order_of_own() -> pl.Expr:
    """The place of a rating among the user's, from 1 on; ratings of one second keep the order of the file, which is
    random."""
    return pl.col("timestamp").cast(pl.Float64).rank("ordinal").over("user_id")


def described(rows: pl.DataFrame, folder: Path, **genres: str | pl.Expr | pl.Series) -> pl.DataFrame:
    """What is known of the users and films of rows with a user_id, an item_id and a label."""
    joined = rows
    for name, key in (("user", "user_id"), ("item", "item_id")):
        joined = joined.join(read(folder, name), on=key, how="left", maintain_order="left")
    return joined.select(
        "label",
        user="user_id",
        item="item_id",
        age="age",
        gender="gender",
        occupation="occupation",
        zip="zip_code",
        **genres,
        year="release_year",
    )


def topk(folder: Path) -> dict[str, pl.DataFrame]:
    """For each split, rows with `label`, whether the user rated the film or it was drawn."""
    rng, films = np.random.default_rng(0), read(folder, "item")["item_id"].to_numpy()
    ratings = read(folder, "inter").with_columns(back=pl.len().over("user_id") - order_of_own())
    parts: dict[str, list[pl.DataFrame]] = {split: [] for split in SHARES}
    for (user,), own in ratings.group_by("user_id", maintain_order=True):
        others = np.setdiff1d(films, own["item_id"].to_numpy())
        wanted = {
            "train": (own.filter(pl.col("back") > 1), BESIDE),
            "valid": (own.filter(pl.col("back") == 1), AMONG - 1),
        }
        wanted["test"] = (own.filter(pl.col("back") == 0), AMONG - 1)
        for split, (rated, beside) in wanted.items():
            drawn = rng.choice(others, beside * len(rated), replace=split == "train")
            items = [*rated["item_id"], *drawn]
            label = np.arange(len(items)) < len(rated)
            parts[split].append(pl.DataFrame({"user_id": user, "item_id": items, "label": label.astype(np.int8)}))
    return {split: described(pl.concat(own), folder, genre="class") for split, own in parts.items()}


def by_time(table: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The rows of each split of a table of `clicks`."""
    within = {split: pl.col("rank").ge(start) & pl.col("rank").lt(stop) for split, (start, stop) in SHARES.items()}
    return {split: table.filter(own).drop("rank") for split, own in within.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="RecBole's folder with ml-100k.inter, .user and .item.")
    parser.add_argument("out", type=Path, help="Folder of train.parquet, valid.parquet and test.parquet.")
    parser.add_argument("--lists", action="store_true", help="Genres and the films liked before as lists.")
    label = parser.add_mutually_exclusive_group()
    label.add_argument("--stars", action="store_true", help="The number of stars as label.")
    label.add_argument("--topk", action="store_true", help="Whether the user rated the film, or it was drawn.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    splits = topk(args.source) if args.topk else by_time(clicks(args.source, args.lists, args.stars))
    for split, part in splits.items():
        part.write_parquet(args.out / f"{split}.parquet")
        print(f"{split}: {len(part):,} rows, label {part['label'].mean():.3f} in the mean")


if __name__ == "__main__":
    main()
