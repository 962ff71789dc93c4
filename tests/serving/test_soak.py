"""A server under load for minutes: AUTOEMBED_SOAK_MINUTES=10 pytest -m slow tests/serving/test_soak.py"""

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import psutil
import pytest

from autoembed.bundle import copy_bundle
from autoembed.writing import exchange
from tests.serving.conftest import Client, make, table

MINUTES = float(os.environ.get("AUTOEMBED_SOAK_MINUTES", "1"))
ARROW = "application/vnd.apache.arrow.stream"


def bodies(rng):
    """Requests of each kind, with the status that each must get: (body, headers, status)."""
    frame = table(1200, seed=int(rng.integers(1 << 30))).drop("label")
    frame = frame.with_columns(city=pl.Series([f"new {one}" for one in rng.integers(0, 1 << 40, 1200)]))
    plain = frame.with_columns(pl.col("seen").cast(pl.String), price=pl.col("price").fill_nan(None))
    rows, stream = plain.to_dicts(), io.BytesIO()
    frame.write_ipc_stream(stream)
    yield from ((json.dumps({"row": row}).encode(), {}, 200) for row in rows[:60])
    yield json.dumps({"rows": rows[:50]}).encode(), {}, 200
    yield json.dumps({"columns": plain.to_dict(as_series=False)}).encode(), {}, 200
    yield stream.getvalue(), {"content_type": ARROW, "accept": ARROW}, 200
    yield json.dumps({"row": {**rows[0], "age": "x"}}).encode(), {}, 422
    yield b"{", {}, 400


def load(port, ended, seed):
    """Asks until the end; (requests, failures, seconds of single rows)."""
    rng, client, done, wrong, times = np.random.default_rng(seed), Client(port), 0, [], []
    while not ended.is_set():
        for body, headers, status in bodies(rng):
            start = time.perf_counter()
            found = client.predict(body, **headers)[0]
            if len(body) < 1000 and status == 200:
                times.append(time.perf_counter() - start)
            done += 1
            if found != status:
                wrong.append((found, status))
    return done, wrong, times


@pytest.mark.slow
@pytest.mark.timeout(int(MINUTES * 60) + 120)
def test_no_request_fails_and_memory_stays_flat(tmp_path):
    served, other = make(tmp_path / "served"), make(tmp_path / "other", seed=1)
    copy_bundle(served, tmp_path / "first")
    command = [sys.executable, "-m", "autoembed.cli", "serve", str(served), "--port", "0", "--reload-every", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
            ended, resident, own = threading.Event(), [], psutil.Process(process.pid)
            threading.Thread(target=process.stdout.read, daemon=True).start()  # nobody else reads what it says
            with ThreadPoolExecutor(2) as pool:
                asked = [pool.submit(load, port, ended, seed) for seed in range(2)]
                for second in range(int(MINUTES * 60)):
                    time.sleep(1)
                    resident.append(own.memory_info().rss / 2**20)
                    if second % 10 == 9:
                        assert exchange(other, served)
                ended.set()
                found = [one.result() for one in asked]
            health = Client(port).ask("GET", "/health")[1]
            text = Client(port).ask("GET", "/metrics")[1].decode()
        finally:
            process.terminate()
    requests, wrong = sum(one[0] for one in found), [each for one in found for each in one[1]]
    times = np.concatenate([one[2] for one in found]) * 1e3
    # Each reload makes the process a little larger at first: from the first third on it must stay.
    third = len(resident) // 3
    before, after = np.median(resident[third : 2 * third]), np.median(resident[-third:])
    reloads = int(re.search(r'reloads_total\{outcome="done"\} (\d+)', text)[1])
    print(
        f"{requests:,} requests, {len(wrong)} failed, {reloads} reloads; resident MiB: {resident[0]:.0f} at first, "
        f"{before:.1f} then, {after:.1f} at the end; single rows {np.median(times):.2f} ms, "
        f"p99 {np.percentile(times, 99):.2f}"
    )
    assert not wrong
    assert health["reload_failure"] is None
    assert reloads >= int(MINUTES * 6) - 2
    assert after < before * 1.03 + 2
