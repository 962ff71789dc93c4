"""What trials on one machine hold in memory together: the encoded data once, and what each process has for itself.

    python tests/benchmarks/memory.py --out docs/results/memory.md

Processes open the same encoded data, as Ray's workers do, train an epoch (of a million rows at most), map all of the
data and read it; then the memory of each is read from /proc. Pss shares a page among the processes that map it, so the
sum over processes is what they hold together. The last table is of trials under Ray Tune, run by a study's own means:
the highest of samples while all of them train. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil
import torch
import yaml

from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.readers import DataSpec
from autoembed.data.writer import Writer
from autoembed.nn.model import CTRModel
from autoembed.shuffle import Shuffle
from autoembed.space import SearchSpace
from autoembed.training import TrainConfig, fit
from autoembed.trial import check, root_architecture

BASE = 200_000
READ = 1_000_000
BATCH = 4096
AT_ONCE = (1, 2, 8)
DATA = {"planted": {"rows": BASE}, "split": {"by": "random", "valid": 0.1, "test": 0.1}}
BACKBONE = {"name": "deepfm", "hidden": [16]}


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


def total(pids, folder):
    return tuple(sum(part) for part in zip(*(held(pid, folder) for pid in pids), strict=True))


def make(folder, rows, columns):
    """Encoded planted data of so many columns, its train rows repeated until there are so many."""
    planted = DATA["planted"] | {"noise": [10, 100, *[1000] * (columns - 9)]}
    base = build_dataset(DataSpec.model_validate(DATA | {"planted": planted}), None, folder / "base")
    assert len(base.schema.fields) == columns
    path = folder / f"{rows}x{columns}"
    path.mkdir()
    writer = Writer(path, base.schema, {split: base.rows(split) for split in base.splits} | {"train": rows})
    for split in ("valid", "test"):
        writer.add(split, base.ids(split), base.labels(split))
    ids, labels = np.array(base.ids("train")), np.array(base.labels("train"))
    for start in range(0, rows, len(ids)):
        writer.add("train", ids[: rows - start], labels[: rows - start])
    writer.finish(base.vocabulary, base.truth)
    return Dataset.open(path)


def trial(path, barrier, done):
    torch.set_num_threads(1)
    dataset = Dataset.open(path)
    config = check({"arm": "x", "stages": [{"method": "uniform"}], "embedding": {"dim": 4}, "backbone": BACKBONE})
    model = CTRModel(dataset.schema, root_architecture(config, dataset))
    train = TrainConfig(epochs=1, batch_size=BATCH)
    rows = Shuffle(min(dataset.rows("train"), READ), 0)
    fit(model, dataset, train, device=torch.device("cpu"), seed=0, report=lambda values: None, rows=rows)
    # What an epoch maps is unmapped with it: mapped and read whole once more, to be seen while all wait.
    mapped = [dataset.ids("train"), dataset.labels("train")]
    assert all(part.sum() >= 0 for part in mapped)
    barrier.wait(1200)
    done.wait(1200)


def together(path, number):
    """Bytes of data, and of all else, that so many trials hold together."""
    context = multiprocessing.get_context("spawn")
    barrier, done = context.Barrier(number + 1), context.Event()
    processes = [context.Process(target=trial, args=(path, barrier, done)) for _ in range(number)]
    for process in processes:
        process.start()
    barrier.wait(1200)
    found = total([process.pid for process in processes], path)
    done.set()
    for process in processes:
        process.join(60)
    return found


def under_ray(dataset, folder, number):
    """The same of so many trials that Ray Tune runs at once."""
    from autoembed.study.run_dir import RunDir
    from autoembed.study.tune import Resources, cluster, run_trials

    space = folder / f"{number}.yaml"
    node = {"data": DATA, "stages": [{"method": "uniform"}], "baselines": [], "embedding": {"dim": 4}}
    node |= {"backbone": BACKBONE, "train": {"epochs": 1, "lr": {"log": [1e-4, 1e-3]}, "batch_size": BATCH}}
    space.write_text(yaml.safe_dump(node | {"budget": {"trials": number, "cpus_per_trial": 1}}))
    run, most, ended = RunDir(folder / f"run{number}"), (0, 0), threading.Event()
    run.path.mkdir()

    def watch():
        nonlocal most
        while not ended.wait(0.5):
            workers = [one for one in psutil.Process().children(recursive=True) if "ImplicitFunc" in name_of(one)]
            try:
                most = max(most, total([one.pid for one in workers], dataset.path), key=sum)
            except (OSError, ValueError):
                continue

    with cluster(Resources(cpus=number)):
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            run_trials(run, SearchSpace.read(space), dataset, {"uniform": number}, [])
        finally:
            ended.set()
            watcher.join()
    assert len(run.trials()) == number
    return most


def name_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def table(title, measure):
    """Rows of one table; `measure` gives (data, all else) of so many trials at once."""
    lines = [f"## {title}", "", "| trials at once | encoded data, MiB | all else, MiB | together, MiB | of one |"]
    lines += ["|---|---|---|---|---|"]
    one = None
    for number in AT_ONCE:
        data, rest = measure(number)
        one = one or data + rest
        sizes = " | ".join(f"{size / 2**20:,.0f}" for size in (data, rest, data + rest))
        lines.append(f"| {number} | {sizes} | {(data + rest) / one:.2f} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["2000000x11", "20000000x39", "45000000x39"], help="ROWSxCOLUMNS")
    parser.add_argument("--ray", default="2000000x39", help="ROWSxCOLUMNS of the trials under Ray Tune")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = []
    for size, ray in [*((size, False) for size in args.sizes), (args.ray, True)]:
        rows, columns = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            dataset = make(Path(name), rows, columns)
            bytes_ = sum(file.stat().st_size for file in dataset.path.rglob("*") if file.is_file())
            title = f"{rows:,} rows, {columns} columns, {bytes_ / 2**20:,.0f} MiB on disk"
            print(title, flush=True)
            if ray:
                folder = Path(name)
                lines += table(f"{title}, under Ray", lambda n, d=dataset, f=folder: under_ray(d, f, n))
            else:
                lines += table(title, lambda n, d=dataset: together(d.path, n))
    text = "\n".join(
        [
            "# Memory of trials at once",
            "",
            f"`python tests/benchmarks/memory.py --sizes {' '.join(args.sizes)} --ray {args.ray}`",
            "",
            "Each trial reads all of the data. Pss summed over processes: a page that several map is counted once. All "
            f"else is Python, torch and the model, which each process has for itself; batches are of {BATCH} rows. Of "
            "one: together, over what one trial holds.",
            "",
            *lines,
        ]
    )
    if args.out:
        args.out.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    main()
