"""What trials on one machine hold in memory together: the encoded data once, or once for each.

    python tests/benchmarks/memory.py --rows 2000000 --out docs/results/memory.md

Processes open the same encoded data, as Ray's workers do, read the train split whole through one epoch of training, and
wait for each other; then the memory of each is read from /proc. Pss shares a page among the processes that map it, so
the sum over processes is what they hold together. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
from pathlib import Path

import torch

from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.readers import DataSpec
from autoembed.nn.model import CTRModel
from autoembed.training import TrainConfig, fit
from autoembed.trial import check, root_architecture


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


def trial(path, barrier, done):
    torch.set_num_threads(1)
    dataset = Dataset.open(path)
    options = {"name": "deepfm", "hidden": [16]}
    config = check({"arm": "x", "stages": [{"method": "uniform"}], "embedding": {"dim": 4}, "backbone": options})
    model = CTRModel(dataset.schema, root_architecture(config, dataset))
    train = TrainConfig(epochs=1, batch_size=16384)
    fit(model, dataset, train, device=torch.device("cpu"), seed=0, report=lambda values: None)
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
    found = [held(process.pid, path) for process in processes]
    done.set()
    for process in processes:
        process.join(60)
    return tuple(sum(part) for part in zip(*found, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = ["| trials at once | encoded data, MiB | all else, MiB | together, MiB |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        spec = DataSpec.model_validate(
            {"planted": {"rows": args.rows}, "split": {"by": "random", "valid": 0.02, "test": 0.02}}
        )
        dataset = build_dataset(spec, None, Path(folder))
        size = sum(file.stat().st_size for file in dataset.path.rglob("*") if file.is_file())
        for number in (1, 2, 4, 8):
            data, rest = together(dataset.path, number)
            lines.append(f"| {number} | {data / 2**20:.0f} | {rest / 2**20:.0f} | {(data + rest) / 2**20:.0f} |")
            print(lines[-1], flush=True)
    text = "\n".join(
        [
            "# Memory of trials at once",
            "",
            f"`python tests/benchmarks/memory.py --rows {args.rows}`",
            "",
            f"{args.rows:,} rows, {size / 2**20:.0f} MiB encoded on disk; each trial reads all of it. Pss summed over "
            "processes: a page that several map is counted once. All else is Python, torch and the model, which each "
            "process has for itself.",
            "",
            *lines,
        ]
    )
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
