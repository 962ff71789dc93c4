"""What trials on one machine hold in memory together: encoded data and imports once, and what each has for itself.

    python tests/benchmarks/memory.py --out docs/results/memory.md

Ray Tune runs the trials by a study's own means. Their memory is read from /proc: Pss shares a page among the processes
that map it, so the sum over processes is what they hold together. The figures are the highest of samples, for each of
which they stand still, until they have read nearly all of the data. Sizes are ROWSxCOLUMNS, or ROWSxCOLUMNSxVALUES for
about so many values in three large columns, of 1,000 values in the others; embeddings have 4 dimensions, or with VALUES
16. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import psutil
import yaml

from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.readers import DataSpec
from autoembed.data.writer import Writer
from autoembed.nn.model import CTRModel
from autoembed.space import SearchSpace
from autoembed.study.engine import forkserver
from autoembed.study.engine.tune import Resources, cluster, run_trials
from autoembed.study.run_dir import RunDir
from autoembed.trial import check, root_architecture

BASE = 200_000
BATCH = 4096
IMPORTS = ("sys", "ray", "pandas", "ray.tune", "torch", "polars", "autoembed.study.engine.worker")
SIZES = ["2000000x39", "20000000x39", "2000000x39x5500000", "45000000x39x5500000"]
AT_ONCE = (1, 8)
SPLIT = {"by": "random", "valid": 0.1, "test": 0.1}
LARGE = 3  # columns that share VALUES
READY = 0.95  # of the data read
BUSY = 45.0  # seconds of CPU that each trial has had: its model and moments stand
LONGEST = 900.0  # seconds
BACKBONE = {"name": "deepfm", "hidden": [16]}


def configured(dim):
    return check({"arm": "x", "stages": [{"method": "uniform"}], "embedding": {"dim": dim}, "backbone": BACKBONE})


def held(pid, folder):
    """(Pss of the files below a folder, Pss of all else) of a process, in bytes."""
    data, rest, mine = 0, 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            mine = str(folder) in line
        elif line.startswith("Pss:"):
            kilobytes = int(line.split()[1])
            data, rest = (data + kilobytes, rest) if mine else (data, rest + kilobytes)
    return data * 1024, rest * 1024


def total(processes, folder):
    """What they hold together at one moment: pages that one maps while another is read would count twice."""
    try:
        for one in processes:
            one.suspend()
        return tuple(sum(part) for part in zip(*(held(one.pid, folder) for one in processes), strict=True))
    finally:
        for one in processes:
            with contextlib.suppress(psutil.Error):
                one.resume()


def make(folder, size):
    """The folder of encoded random data, its train rows repeated until there are so many."""
    rows, columns, *values = map(int, size.split("x"))
    rng = np.random.default_rng(0)
    # Train has 0.8 of so many draws from as many values: some 0.55 of the values occur in it.
    count = max(BASE, int(2 * values[0] / LARGE)) if values else BASE
    sizes = [1000] * columns
    if values:
        sizes[:LARGE] = [count] * LARGE
    frame = pl.DataFrame({f"c{at}": rng.integers(0, many, count, dtype=np.int32) for at, many in enumerate(sizes)})
    frame.with_columns(label=pl.Series(rng.integers(0, 2, count, dtype=np.int8))).write_parquet(folder / "base.parquet")
    spec = DataSpec.model_validate(
        {"path": str(folder / "base.parquet"), "label": "label", "split": SPLIT, "min_count": 1}
    )
    base = build_dataset(spec, None, folder / "base")
    path = folder / size
    path.mkdir()
    writer = Writer(path, base.schema, {split: base.rows(split) for split in base.splits} | {"train": rows})
    for split in ("valid", "test"):
        writer.add(split, base.ids(split), base.sides(split))
    ids, labels = np.array(base.ids("train")), np.array(base.labels("train"))
    for start in range(0, rows, len(ids)):
        writer.add("train", ids[: rows - start], {"labels": labels[: rows - start]})
    writer.finish(base.vocabulary, base.truth)
    return path


def model_bytes(dataset, dim):
    """What only a trial's model needs: its weights, and the two moments that Adam keeps of each."""
    model = CTRModel(dataset.schema, root_architecture(configured(dim), dataset))
    return 3 * sum(weights.numel() * weights.element_size() for weights in model.parameters())


def together(dataset, dim, number, forked):
    """Bytes of data, and of all else, that so many trials hold together which Ray Tune runs at once."""
    folder = dataset.path.parent
    space = folder / f"{number}.yaml"
    node = {
        "data": {"path": "not read"},
        "scheduler": "none",
        "stages": [{"method": "uniform"}],
        "baselines": [],
        "embedding": {"dim": dim},
    }
    train = {"epochs": 100, "patience": 100, "lr": {"log": [1e-4, 1e-3]}, "batch_size": BATCH, "sparse": True}
    node |= {"backbone": BACKBONE, "train": train}
    space.write_text(yaml.safe_dump(node | {"budget": {"trials": number, "cpus_per_trial": 1}}))
    run, most, complete, ended = RunDir(folder / f"run{number}"), (0, 0), False, threading.Event()
    run.path.mkdir()

    size = sum(part.nbytes for part in (dataset.ids("train"), dataset.labels("train")))

    def watch():
        nonlocal most, complete
        start = time.monotonic()
        while not ended.wait(2):
            # Some end while they are looked at.
            with contextlib.suppress(OSError, ValueError, psutil.Error):
                family = processes(forked)
                most = max(most, total(family, dataset.path), key=sum)
                busy = sum(one.cpu_times().user >= BUSY for one in family if is_worker(one))
                complete = busy == number and most[0] >= READY * size
            if complete or time.monotonic() - start > LONGEST:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    started = contextlib.nullcontext() if forked else mock.patch.object(forkserver, "command", return_value=None)
    with started, cluster(Resources(cpus=number)):
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            run_trials(run, SearchSpace.read(space), dataset, {"uniform": number}, [])
        except SystemExit:
            pass
        finally:
            ended.set()
            watcher.join()
    assert complete, "the trials did not read the data in time"
    return most


def processes(forked):
    """The trials' workers; forked ones with their server and its idle forks."""
    mine = psutil.Process().children(recursive=True)
    if not forked:
        return [one for one in mine if is_worker(one)]
    pids = {str(one.pid) for one in mine}
    servers = [one for one in psutil.process_iter() if forkserver.__file__ in one.cmdline()]
    servers = [one for one in servers if one.environ().get("RAY_RAYLET_PID") in pids]
    return [member for one in servers for member in (one, *one.children(recursive=True))]


def is_worker(process):
    return any("ImplicitFunc" in word for word in process.cmdline())


def imports():
    """What a trial's process under Ray imports, one after another, and the MiB that are then its alone to write."""
    lines = ["## What a worker imports", "", "| import | private memory after it, MiB |", "|---|---|"]
    code = "import importlib, re, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += (
        "    text = open('/proc/self/smaps_rollup').read()\n    print(re.search(r'Private_Dirty: *([0-9]+)', text)[1])"
    )
    answer = subprocess.run([sys.executable, "-c", code, *IMPORTS], check=True, capture_output=True, text=True)
    for name, kilobytes in zip(IMPORTS, answer.stdout.split(), strict=True):
        lines.append(f"| {name} | {int(kilobytes) / 1024:,.0f} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def table(dataset, dim, forked):
    lines = [
        "| trials at once | encoded data, MiB | their models | all else | total | x one trial | x (one + models) |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    one, model = None, model_bytes(dataset, dim)
    for number in AT_ONCE:
        data, rest = together(dataset, dim, number, forked)
        whole = data + rest
        one = one or whole
        sizes = " | ".join(f"{size / 2**20:,.0f}" for size in (data, number * model, rest - number * model, whole))
        lines.append(f"| {number} | {sizes} | {whole / one:.2f} | {whole / (one + (number - 1) * model):.2f} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=SIZES)
    parser.add_argument("--spawned", nargs="*", default=SIZES[:1], help="sizes whose workers are started one by one")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = imports()
    for size, forked in [*((size, True) for size in args.sizes), *((size, False) for size in args.spawned)]:
        with tempfile.TemporaryDirectory() as name:
            # In a process of its own, whose memory ends with it.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                dataset = Dataset.open(pool.submit(make, Path(name), size).result())
            dim = 16 if size.count("x") > 1 else 4
            megabytes = sum(file.stat().st_size for file in dataset.path.rglob("*") if file.is_file()) / 2**20
            values = sum(dataset.schema.cardinalities)
            title = f"{dataset.rows('train'):,} rows, {len(dataset.schema.fields)} columns, {values:,} values"
            title += f", {megabytes:,.0f} MiB on disk" + ("" if forked else ", workers started one by one")
            print(title, flush=True)
            lines += [f"## {title}", "", *table(dataset, dim, forked)]
    text = "\n".join(
        [
            "# Memory of trials at once",
            "",
            f"`python tests/benchmarks/memory.py --sizes {' '.join(args.sizes)} --spawned {' '.join(args.spawned)}`",
            "",
            "Each trial reads all of the data. Pss summed over processes: a page that several map is counted once. "
            "Their models are weights and Adam's two moments of each. All else is Python, torch, Ray and what else a "
            f"worker imports, and batches of {BATCH} rows, which each trial has for itself. The server that workers "
            "are forks of and idle forks are counted, the driver and Ray's own processes are not. The last two "
            "columns divide the total by what one trial holds, and by that plus the models of the others.",
            "",
            *lines,
        ]
    )
    if args.out:
        args.out.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
