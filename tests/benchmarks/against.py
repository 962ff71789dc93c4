"""This commit beside an earlier one, in turn: the same digits, wall time, CPU time and memory.

    python tests/benchmarks/against.py COMMIT --kuairand ../shared/data/kuairand --out docs/results/against.md

The cases are a search of the shipped quickstart, `rank` with pairs on KuaiRand-Pure, and a search of KuaiRand-Pure. The
searches have one trial of each arm, one at a time, and the search space of the earlier commit. Metrics of valid and
test, architectures and weights are compared digit by digit. Times and memory are the least of the turns; memory is the
highest sum of Pss of a command's processes, sampled each half second. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import polars as pl
import psutil
import torch
import yaml
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parents[2]
LIMIT = 3600  # seconds of a command
COMMAND = "from autoembed.cli import main; main()"


@dataclass
class Took:
    """What one run of a command took."""

    seconds: float
    cpu: float
    mib: float


def run(code: Path, words: list[str]) -> Took:
    """Runs the command line of a checkout, and samples what its processes hold and use."""
    environment = os.environ | {"PYTHONPATH": str(code), "COLUMNS": "120"}
    began, started, cpu, most = time.perf_counter(), time.time() - 0.1, {}, 0
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words], cwd=code, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            held = 0
            for one in psutil.Process().children(recursive=True):
                try:
                    if one.create_time() < started:  # what an earlier command has left
                        continue
                    held += one.memory_full_info().pss
                    times = one.cpu_times()
                    cpu[one.pid, one.create_time()] = times.user + times.system
                except (psutil.Error, OSError):
                    continue
            most = max(most, held)
            if time.perf_counter() - began > LIMIT:
                process.terminate()
                raise SystemExit(f"{words} of {code} took more than {LIMIT} s")
            time.sleep(0.5)
        seconds = time.perf_counter() - began
        if process.returncode:
            out.seek(0)
            raise SystemExit(f"{words} of {code} ended with {process.returncode}: {out.read().decode()[-2000:]}")
    return Took(seconds, sum(cpu.values()), most / 2**20)


def digits(folder: Path) -> dict[str, object]:
    """Metrics and architecture of each trial of a study, or a ranking."""
    if (written := folder.with_suffix(".parquet")).is_file():
        return {"ranking": pl.read_parquet(written).to_dicts()}
    found: dict[str, object] = {}
    for board in folder.glob("*/leaderboard.json"):
        rows = json.loads(board.read_text())["rows"]
        found["leaderboard"] = [{key: row[key] for key in row if key in ("trial", "valid", "test")} for row in rows]
    for result in sorted(folder.glob("*/trials/*/result.json")):
        facts = json.loads(result.read_text())
        found[result.parent.name] = {key: facts[key] for key in ("valid", "architecture", "best_epoch")} | {
            name: sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
            for weights in result.parent.glob("*.safetensors")
            for name, tensor in load_file(weights).items()
        }
    return found


def differences(old: object, new: object, at: str = "") -> list[str]:
    """Where two results differ; keys that only one of them has are of another format, and left out."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in old if key in new for line in differences(old[key], new[key], f"{at}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for n in range(len(old)) for line in differences(old[n], new[n], f"{at}/{n}")]
    return [] if old == new else [f"{at}: {str(old)[:80]} is now {str(new)[:80]}"]


def main() -> None:
    """Runs the cases in turn and writes the page."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("commit")
    asked.add_argument("--kuairand", type=Path, required=True, help="folder with train.parquet and valid.parquet")
    asked.add_argument("--turns", type=int, default=2)
    asked.add_argument("--cases", default="quickstart,rank,kuairand")
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    data = given.kuairand.absolute()
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: processes of a fork server stay below this one
    lines = [
        f"{HERE.name} at {_git('rev-parse', '--short', 'HEAD')} over {given.commit}, {given.turns} turns each, "
        f"{os.cpu_count()} CPUs.",
        "",
        "| case | wall time, s | x | CPU time, s | x | memory, MiB | x | what differs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as work:
        old = Path(work) / "old"
        subprocess.run(["git", "clone", "-q", HERE, old], check=True)
        subprocess.run(["git", "-C", old, "checkout", "-q", given.commit], check=True)
        spaces = old / "search_spaces"
        for name in ("quickstart", "kuairand"):
            space = yaml.safe_load((spaces / f"{name}.yaml").read_text())
            space["budget"] |= {"trials": 1, "concurrent": 1}
            (spaces / f"{name}.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        cases = {
            "quickstart": ["search", str(spaces / "quickstart.yaml")],
            "rank": ["rank", str(data / "train.parquet"), "--label", "is_click", "--pairs", "200"],
            "kuairand": ["search", str(spaces / "kuairand.yaml"), "--data", str(data)],
        }
        for case in given.cases.split(","):
            took: dict[Path, list[Took]] = {old: [], HERE: []}
            for turn in range(given.turns):
                for code in (old, HERE) if turn % 2 == 0 else (HERE, old):
                    place = Path(work) / f"{case}-{turn}-{'old' if code == old else 'new'}"
                    out = ["--out", str(place.with_suffix(".parquet"))] if case == "rank" else []
                    took[code].append(run(code, [*cases[case], "--runs", str(place), *out]))
                    print(case, turn, code.name, took[code][-1], flush=True)
            wrong = [
                line
                for turn in range(given.turns)
                for line in differences(*(digits(Path(work) / f"{case}-{turn}-{side}") for side in ("old", "new")))
            ]
            cells = []
            for what in ("seconds", "cpu", "mib"):
                before, after = (min(getattr(each, what) for each in took[code]) for code in (old, HERE))
                cells += [f"{before:,.1f}, {after:,.1f}", f"{after / before:.3f}"]
            lines.append(f"| {case} | {' | '.join(cells)} | {'; '.join(wrong) or 'nothing'} |")
    page = "\n".join(lines) + "\n"
    print(page)
    if given.out:
        given.out.write_text(page)


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
