"""A short soak: it runs, finds nothing, and would find something."""

import json
import subprocess
import sys
from pathlib import Path

from soak.soak import Made, leftovers, memory, of_record

ROOT = Path(__file__).parent.parent.parent
CALM = {
    "gateway_open_streams": 0.0, "gateway_agent_running": 0.0, "gateway_agent_waiting": 0.0,
    "gateway_agent_draining": 0.0, "gateway_record_queue_depth": 0.0,
    "gateway_record_lost_total": 0.0, "gateway_record_rejected_total": 0.0,
    "gateway_inflight_requests": 1.0, "gateway_event_loop_tasks": 12.0, "process_open_fds": 30.0,
}  # fmt: skip


def test_seconds_of_mixed_traffic_with_faults_leave_nothing_over():
    """Takes longer than other tests: three servers start, and ended calls must finish."""
    command = [sys.executable, "tests/soak/soak.py", "--seconds", "4", "--clients", "15"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.splitlines()[-1] == "clean"


def test_whatever_is_left_over_is_named():
    assert leftovers(CALM, CALM) == []
    for name in CALM:
        (told,) = leftovers(CALM, {**CALM, name: CALM[name] + 100})
        assert name in told


def test_growing_memory_is_reported():
    flat = [{"process_resident_memory_bytes": 100e6} for _ in range(60)]
    assert memory(flat, flat[0]) == []
    assert "from 100 MB to 150 MB" in memory(flat, {"process_resident_memory_bytes": 150e6})[0]


def test_missing_and_repeated_records_are_reported():
    made = Made()
    ids = [made.new_id() for _ in range(4)]
    made.answered |= {ids[0], ids[3]}
    log = [json.dumps({"request_id": id_, "status": 200, "agent": "dify"}) for id_ in ids[:3]]
    told = of_record(made, [ids[0], ids[0], ids[1]], log)
    assert [line.split(",")[0] for line in told] == [
        "1 calls are recorded more than once", "1 of 3 calls are not recorded",
        "1 answers are not in the log",
    ]  # fmt: skip
