"""Ranking measured: against OutRank, against a read pass, on planted truth, by size, and its synergy under the null.

    python tests/benchmarks/ranking.py [SECTION ...] --outrank BIN --planted FILE --out docs/results/ranking.md

Sections: cold (whole processes, in turn), truth, calibration, scale, kernel, counting. Each rewrites its own part of
the page. FILE writes the planted click tables (60 columns of known truth) and BIN is OutRank's own program; both are
needed for `cold`, and FILE for `truth`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import psutil

from autoembed.native import View
from autoembed.ranking import column_kernels
from autoembed.ranking.counts import count_columns, count_pair
from autoembed.ranking.pairs import Kernel, Side, synergy
from autoembed.ranking.ranking import rank_table
from autoembed.ranking.table import read_table

OURS = [str(Path(sys.executable).parent / "autoembed"), "rank"]
PUBLISHED_PAIRS = 1627.0  # s: OutRank's --interaction_order 2 on this table, measured once on 2 cores


def run(command, folder):
    """Wall seconds, CPU seconds, peak bytes of the process tree, and what share of the CPUs others took meanwhile.

    Fails if the command does. Python keeps its bytecode, as it does unless it is told not to.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, busy = os.times(), busy_seconds()
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=kept)
        peak, watched = 0, psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, sum(p.memory_info().rss for p in [watched, *watched.children(recursive=True)]))
            time.sleep(0.02)
        wall, after, busy = time.perf_counter() - start, os.times(), busy_seconds() - busy
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{command} failed:\n{text}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu, peak, max(0.0, busy - cpu) / wall / os.cpu_count()


def busy_seconds():
    """CPU seconds of the machine since it started, idle ones left out."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def planted(args, folder, seed, form="csv"):
    subprocess.run([sys.executable, args.planted, str(folder), "--seed", str(seed), "--format", form], check=True)
    truth = json.loads((folder / "truth.json").read_text())
    return folder / f"data.{form}", set(truth["marginal"]), [tuple(sorted(pair)) for pair in truth["pairs"]]


def cold(args, folder):
    """Whole cold processes on 200,000 rows x 60 columns, in turn."""
    data = planted(args, folder / "case", 7)[0]
    peer = [args.outrank, "--task", "ranking", "--data_path", "case", "--data_source", "csv-raw", "--subsampling", "1"]
    peer += ["--num_threads", "2", "--disable_tqdm", "True", "--heuristic", "MI-numba-randomized"]
    sides = {
        "autoembed rank": [*OURS, str(data)],
        "autoembed rank --pairs all": [*OURS, str(data), "--pairs", "all"],
        "OutRank, default flags": [*peer, "--output_folder", "out"],
        "OutRank, --minibatch_size 200000": [*peer, "--output_folder", "out2", "--minibatch_size", "200000"],
    }
    for code in Path(column_kernels.__file__).parent.glob("__pycache__/*.o"):
        code.unlink()
    first = run(sides["autoembed rank --pairs all"], folder)[0]  # compiles
    run(sides["autoembed rank"], folder)
    found = {name: [] for name in sides}
    for turn in range(args.repeats):
        for name, command in sides.items():
            if name.startswith("OutRank") and turn >= args.peer_repeats:
                continue
            shutil.rmtree(folder / "out", ignore_errors=True)
            shutil.rmtree(folder / "out2", ignore_errors=True)
            found[name].append(run(command, folder))
            print(name, [round(x, 2) for x in found[name][-1][:2]], f"{found[name][-1][2] / 2**20:.0f} MiB", flush=True)
    lines = ["| command | runs | wall, s (median) | fastest | CPU, s | peak MiB | CPUs taken by others |"]
    lines.append("|---|---|---|---|---|---|---|")
    middle = {}
    for name, runs in found.items():
        wall, cpu, peak, others = (statistics.median(r[i] for r in runs) for i in range(4))
        middle[name] = wall
        lines.append(
            f"| {name} | {len(runs)} | {wall:.2f} | {min(r[0] for r in runs):.2f} | {cpu:.2f} | {peak / 2**20:.0f} | "
            f"{others:.0%} |"
        )
    ours, pairs, default, best = middle.values()
    version = importlib.metadata.version
    return [
        f"`autoembed rank` against OutRank 0.97.5 (MI-numba-randomized), 200,000 rows x 60 columns of CSV, processes "
        f"in turn, on {os.cpu_count()} cores; polars {version('polars')}, numba {version('numba')}.",
        "",
        *lines,
        "",
        f"Ratios of medians: singles {default / ours:.0f}x OutRank's default and {best / ours:.0f}x its best flags; "
        f"all 1,770 pairs {PUBLISHED_PAIRS / pairs:.0f}x the {PUBLISHED_PAIRS:,.0f} s of its `--interaction_order 2` "
        "(measured once, on an idle machine, with 17.2 GB). The first call of all pairs on a machine, which "
        f"compiles, took {first:.1f} s; it is not counted.",
    ]


def truth(args, folder):
    """Planted truth found on ten seeds."""
    lines = [
        "| seed | precision@12 | XOR pairs are the top 3 | union precision@18 | 4th synergy_z | pairs with z > 3 |"
    ]
    lines.append("|---|---|---|---|---|---|")
    null = []
    for seed in range(args.seeds):
        data, marginal, pairs = planted(args, folder / "case", seed, "parquet")
        ranking = rank_table(data, pairs="all")
        singles, best = set(ranking.top(12)), [tuple(sorted(pair)) for pair in ranking.top_pairs(3)]
        union = singles | {name for pair in best for name in pair}
        relevant = marginal | {name for pair in pairs for name in pair}
        z = ranking.pairs["synergy_z"]
        null.append(int((z[3:] > 3).sum()))
        lines.append(
            f"| {seed} | {len(singles & marginal) / 12:.2f} | {'yes' if set(best) == set(pairs) else 'no'} | "
            f"{len(union & relevant) / 18:.2f} | {z[3]:.1f} | {null[-1]} of 1,767 |"
        )
        print(lines[-1], flush=True)
    share = sum(null) / (1767 * args.seeds)
    return [*lines, "", f"Pairs without an interaction that pass z > 3: {share:.2%}."]


def best_of(times, call, clock=time.perf_counter):
    found = []
    for _ in range(times):
        start = clock()
        call()
        found.append(clock() - start)
    return min(found)


def kernel(args, folder):
    """The counting kernel beside a read pass over the same codes."""
    import numba

    @numba.njit(nogil=True)
    def read_pass(codes, labels):
        total = 0
        for i in range(len(codes)):
            total += codes[i] + labels[i]
        return total

    @numba.njit(nogil=True)
    def gather(codes, labels, table):
        total = 0
        for i in range(len(codes)):
            total += table[codes[i], labels[i]]
        return total

    rng = np.random.default_rng(0)
    rows = 20_000_000
    labels = (rng.random(rows) < 0.25).astype(np.uint8)
    lines = ["| values | sum of codes and labels, ns a row | read of the cell | count | count / sum | count / read |"]
    lines.append("|---|---|---|---|---|---|")
    for values in (2, 50, 1000, 50_000, 1_000_000):
        codes = rng.integers(0, values, rows).astype(np.int32)
        table = np.zeros((values, 2), np.int64)
        calls = [
            lambda codes=codes: read_pass(codes, labels),
            lambda codes=codes, table=table: gather(codes, labels, table),
            lambda codes=codes, table=table: column_kernels.count_column(codes, labels, table),
        ]
        for call in calls:
            call()
        reading, cell, counting = (best_of(5, call, time.process_time) / rows * 1e9 for call in calls)
        ratios = f"{counting / reading:.1f} | {counting / cell:.1f}"
        lines.append(f"| {values:,} | {reading:.2f} | {cell:.2f} | {counting:.2f} | {ratios} |")
        print(lines[-1], flush=True)
    together = ["| columns | cores | sum, ns a row | count, ns a row | count / sum |", "|---|---|---|---|---|"]
    table = read_table(planted(args, folder / "case", 7, "parquet")[0], "label", keep=True)
    several = {
        f"4 of {values:,} values": [(rng.integers(0, values, rows).astype(np.int32), values) for _ in range(4)]
        for values in (50, 1000)
    }
    several["the 60 of the planted table, 100 times over"] = [
        (np.tile(table.codes(at), 100), values) for at, values in enumerate(table.cardinalities)
    ]
    for name, columns in several.items():
        for cores in sorted({1, os.cpu_count()}):
            reading, counting = on_cores(cores, columns, labels, read_pass)
            together.append(f"| {name} | {cores} | {reading:.3f} | {counting:.3f} | {counting / reading:.2f} |")
            print(together[-1], flush=True)
    return [
        "One column of 20 million int32 codes and uint8 labels, one thread, CPU time, fastest of 5. The sum is "
        "vectorised and only streams memory; the read of the cell fetches `table[code, label]` of each row, as "
        "counting must, without writing.",
        "",
        *lines,
        "",
        "Tables as `rank` counts them, wall time: cores share what memory delivers, and columns of few values are "
        "counted two at a time.",
        "",
        *together,
        "",
        "A row adds one to a counter, and a core does that once a cycle; only where values are few are two rows, or "
        "two columns, counted by one addition. Where the table is larger than the first cache, its counters are waited "
        "for.",
    ]


def on_cores(cores, columns, labels, read_pass):
    """Wall nanoseconds a row and column of (codes, values), read and counted."""
    codes, values = zip(*columns, strict=True)
    rows = len(codes[0])
    with ThreadPoolExecutor(cores) as pool:
        reading = best_of(7, lambda: list(pool.map(lambda column: read_pass(column, labels[:rows]), codes)))
    counting = best_of(7, lambda: count_columns(codes, labels[:rows], values, threads=cores))
    return [seconds / rows / len(columns) * 1e9 for seconds in (reading, counting)]


def counting(args, folder):
    """Ways to count the same columns."""
    import torch

    rng = np.random.default_rng(0)
    rows, values = 4_000_000, [2, 30, 500, 5000, 50_000]
    columns = [rng.integers(0, size, rows).astype(np.int32) for size in values]
    labels = rng.integers(0, 2, rows).astype(np.uint8)
    frame = pl.DataFrame({f"c{i}": column for i, column in enumerate(columns)}).with_columns(label=pl.Series(labels))
    tensors, target = [torch.from_numpy(column) for column in columns], torch.from_numpy(labels)

    def by_kernel():
        for column, size in zip(columns, values, strict=True):
            column_kernels.count_column(column, labels, np.zeros((size, 2), np.int64))

    sides = {
        "numba, one thread": by_kernel,
        "numpy.bincount": lambda: [
            np.bincount(column * np.int64(2) + labels, minlength=2 * size)
            for column, size in zip(columns, values, strict=True)
        ],
        "torch.bincount": lambda: [
            torch.bincount(tensor.long() * 2 + target, minlength=2 * size)
            for tensor, size in zip(tensors, values, strict=True)
        ],
        "Polars group_by, all threads": lambda: [frame.group_by(f"c{i}", "label").len() for i in range(len(values))],
    }
    pair = {
        "numba (table or walk)": lambda: pairs_by_kernel(columns, labels, values),
        "numpy.unique": lambda: [count_pair(a, b, labels) for a, b in pairwise(columns)],
        "Polars group_by, all threads": lambda: [
            frame.group_by(f"c{i}", f"c{i + 1}", "label").len() for i in range(len(values) - 1)
        ],
    }
    lines = ["| columns | ns a row and column |", "|---|---|"]
    for name, call in sides.items():
        call()
        lines.append(f"| {name} | {best_of(5, call) / rows / len(values) * 1e9:.2f} |")
    lines += ["", "| pairs | ns a row and pair |", "|---|---|"]
    for name, call in pair.items():
        call()
        lines.append(f"| {name} | {best_of(2, call) / rows / (len(values) - 1) * 1e9:.1f} |")
    print(*lines, sep="\n", flush=True)
    return [
        f"{rows:,} rows, columns of {values} values and the pairs of neighbours; fastest of 5 (pairs: of 2).",
        "",
        *lines,
    ]


def pairs_by_kernel(columns, labels, values):
    kernel, rows = Kernel(len(labels), int(labels.sum()), max(values)), View(labels)
    sides = [
        Side(codes, count_columns([codes], labels, [size]).tables[0])
        for codes, size in zip(columns, values, strict=True)
    ]
    for b, a in pairwise(sides):
        walk = None
        if len(a.rows) * len(b.rows) > 1 << 21:
            walk = a.walk(rows)
        kernel.cells(a, b, rows, walk, 2)


def drawn(rng, rows, values, zipf):
    if not zipf:
        return rng.integers(0, values, rows).astype(np.int32)
    mass = 1 / np.arange(1, values + 1) ** 1.05
    return rng.choice(values, rows, p=mass / mass.sum()).astype(np.int32)


def one_pair(seed, rows, a, b, xor, dependent):
    """Codes of two columns (values, zipf, sd of the effects) and labels; `dependent` is the share of b set by a."""
    rng = np.random.default_rng(seed)
    first, second = (drawn(rng, rows, values, zipf) for values, zipf, _ in (a, b))
    second = np.where(rng.random(rows) < dependent, first * 7919 % b[0], second).astype(np.int32)
    logit = np.full(rows, -1.2)
    for column, (values, _, sd) in ((first, a), (second, b)):
        logit += rng.normal(0, sd, values)[column]
    odd = [rng.permutation(values)[column] % 2 for column, (values, _, _) in ((first, a), (second, b))]
    logit += np.where(odd[0] ^ odd[1], xor, -xor)
    return first, second, (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.uint8)


CASES = [
    ("2 x 2, no effects", (2, False, 0.0), (2, False, 0.0), 0.0, 0.0),
    ("2 x 2", (2, False, 0.5), (2, False, 0.5), 0.0, 0.0),
    ("10 x 10", (10, False, 0.7), (10, False, 0.7), 0.0, 0.0),
    ("50 x 50, no effects", (50, False, 0.0), (50, False, 0.0), 0.0, 0.0),
    ("50 x 50, one side", (50, False, 0.7), (50, False, 0.0), 0.0, 0.0),
    ("50 x 50", (50, False, 0.7), (50, False, 0.7), 0.0, 0.0),
    ("50 zipf x 50 zipf", (50, True, 0.7), (50, True, 0.7), 0.0, 0.0),
    ("2,000 x 50, one side", (2000, False, 0.7), (50, False, 0.0), 0.0, 0.0),
    ("2,000 zipf x 50", (2000, True, 0.7), (50, False, 0.7), 0.0, 0.0),
    ("5,000 zipf x 200, no effects", (5000, True, 0.0), (200, False, 0.0), 0.0, 0.0),
    ("5,000 zipf x 200, one side", (5000, True, 0.7), (200, False, 0.0), 0.0, 0.0),
    ("5,000 zipf x 200", (5000, True, 0.7), (200, False, 0.7), 0.0, 0.0),
    ("5,000 zipf x 200 zipf, effects of 1.5", (5000, True, 1.5), (200, True, 1.5), 0.0, 0.0),
    ("2,000 x 2,000", (2000, False, 0.7), (2000, False, 0.7), 0.0, 0.0),
    ("2,000 zipf x 2,000 zipf", (2000, True, 0.7), (2000, True, 0.7), 0.0, 0.0),
    ("20,000 x 50", (20_000, False, 0.7), (50, False, 0.7), 0.0, 0.0),
    ("50,000 x 2", (50_000, False, 0.7), (2, False, 0.7), 0.0, 0.0),
    ("50,000 zipf x 50", (50_000, True, 0.7), (50, False, 0.7), 0.0, 0.0),
    ("50,000 zipf x 50,000 zipf", (50_000, True, 0.7), (50_000, True, 0.7), 0.0, 0.0),
    ("50 x 50, half of b set by a", (50, False, 0.7), (50, False, 0.7), 0.0, 0.5),
    ("5,000 zipf x 200 zipf, half of b set by a", (5000, True, 0.7), (200, True, 0.7), 0.0, 0.5),
    ("2,000 zipf x 50, nine tenths of b set by a", (2000, True, 0.7), (50, False, 0.7), 0.0, 0.9),
    ("XOR 0.15, 50 x 50, no effects", (50, False, 0.0), (50, False, 0.0), 0.15, 0.0),
    ("XOR 0.15, 50 x 50", (50, False, 0.7), (50, False, 0.7), 0.15, 0.0),
    ("XOR 0.15, 2,000 zipf x 50", (2000, True, 0.7), (50, False, 0.7), 0.15, 0.0),
    ("XOR 0.45, 50,000 x 2", (50_000, False, 0.0), (2, False, 0.0), 0.45, 0.0),
    ("XOR 0.45, 2,000 x 2,000", (2000, False, 0.0), (2000, False, 0.0), 0.45, 0.0),
]


def z_of(first, second, labels, Ka, Kb):
    """synergy_z of a pair, the larger column walked, as `rank` does it."""
    kernel, rows = Kernel(len(labels), int(labels.sum()), max(Ka, Kb)), View(labels)
    a, b = (
        Side(codes, count_columns([codes], labels, [size]).tables[0]) for codes, size in ((first, Ka), (second, Kb))
    )
    cells, _ = kernel.cells(a, b, rows, a.walk(rows), 1)
    return synergy(kernel.fit(cells, a.rows, b.rows)[None], len(labels))[1][0]


def calibration(args, folder):
    """synergy_z on fresh draws of pairs, most of them without an interaction."""
    lines = ["| pair | z mean | sd | lowest | highest | share with z > 3 |", "|---|---|---|---|---|---|"]
    plain = []
    for name, a, b, xor, dependent in CASES:
        z = np.array(
            [z_of(*one_pair(1000 + seed, 200_000, a, b, xor, dependent), a[0], b[0]) for seed in range(args.draws)]
        )
        if xor == 0.0 and dependent == 0.0:
            plain.append(z)
        lines.append(
            f"| {name} | {z.mean():.2f} | {z.std():.2f} | {z.min():.1f} | {z.max():.1f} | {(z > 3).mean():.1%} |"
        )
        print(lines[-1], flush=True)
    every = np.concatenate(plain)
    return [
        f"200,000 rows, {args.draws} draws of each, label rate about a quarter; effects on the logit of sd 0.7 on both "
        "sides where nothing else is said. The design was settled on seeds 0 to 11 of a part of these cases; these are "
        "seeds from 1,000 on.",
        "",
        *lines,
        "",
        f"Of all {len(every):,} independent pairs without an interaction, {(every > 3).mean():.2%} pass z > 3 (a "
        "normal deviate does so in 0.13 %).",
    ]


def scale(args, folder):
    """Rows of Parquet, singles and 100 pairs, in a process of its own."""
    rng = np.random.default_rng(0)
    values = [int(v) for v in np.geomspace(2, 100_000, 40)]
    effects = [rng.normal(0, 0.2, v) for v in values]
    lines = ["| rows | GB of Parquet | singles, s | peak MiB | and 100 pairs, s | CPU, s | peak MiB | µs a row |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    parts = folder / "rows"
    parts.mkdir()
    made = 0
    for rows in args.rows:
        while made < rows:
            size = min(1_000_000, rows - made)
            columns = [(v * rng.random(size) ** (1 + at % 2)).astype(np.int32) for at, v in enumerate(values)]
            logit = np.where((columns[8] + columns[11]) % 2, 0.2, -0.2) - 1.2
            for at in (3, 17, 25, 33):
                logit += effects[at][columns[at]]
            frame = pl.DataFrame(
                {f"c{at}_{v}": column for at, (v, column) in enumerate(zip(values, columns, strict=True))}
            )
            label = pl.Series("label", (rng.random(size) < 1 / (1 + np.exp(-logit))).astype(np.int8))
            frame.with_columns(label).write_parquet(parts / f"{made:09}.parquet")
            made += size
        gigabytes = sum(p.stat().st_size for p in parts.iterdir()) / 1e9
        if rows == args.rows[0]:
            run([*OURS, str(parts), "--pairs", "100"], folder)  # compiles
        alone = run([*OURS, str(parts)], folder)
        both = run([*OURS, str(parts), "--pairs", "100", "--top", "1"], folder)
        lines.append(
            f"| {rows:,} | {gigabytes:.2f} | {alone[0]:.1f} | {alone[2] / 2**20:.0f} | {both[0]:.1f} | {both[1]:.1f} | "
            f"{both[2] / 2**20:.0f} | {both[0] / rows * 1e6:.1f} |"
        )
        print(lines[-1], flush=True)
    return [
        "40 columns of 2 to 100,000 values, fragments of a million rows, whole processes, kernels compiled before.",
        "",
        *lines,
    ]


SECTIONS = {
    "cold": ("Against OutRank", cold),
    "truth": ("Planted truth", truth),
    "calibration": ("Synergy without an interaction", calibration),
    "scale": ("Rows", scale),
    "kernel": ("The counting kernel beside a read pass", kernel),
    "counting": ("Ways to count", counting),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all by default")
    parser.add_argument("--outrank", help="OutRank's program, in an environment of its own")
    parser.add_argument("--planted", help="the script that writes planted click tables")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peer-repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 5_000_000, 20_000_000])
    args = parser.parse_args()
    parts = {}
    if args.out and args.out.exists():
        found = re.split(r"^## (.+)$", args.out.read_text(), flags=re.MULTILINE)
        parts = dict(zip(found[1::2], (text.strip() for text in found[2::2]), strict=True))
    for name in args.sections or SECTIONS:
        title, section = SECTIONS[name]
        print(f"## {title}", flush=True)
        with tempfile.TemporaryDirectory(prefix="ranking-") as folder:
            parts[title] = "\n".join(section(args, Path(folder)))
    page = ["# Ranking, measured", "", "`python tests/benchmarks/ranking.py --outrank BIN --planted FILE --out PAGE`"]
    for title, _ in SECTIONS.values():
        if title in parts:
            page += ["", f"## {title}", "", parts[title]]
    if args.out:
        args.out.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
