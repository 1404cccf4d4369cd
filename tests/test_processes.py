"""How processes notice a lost one and agree where to stop, over a real coordinator, as threads of one process."""

import socket
import threading
import time

import jax
import pytest
from jax._src.lib import _jax
from jepa_jax.training import processes

COUNT = 3


class SharedStop(Exception):
    """Ends all processes alike."""


@pytest.fixture
def clients():
    """Clients of one coordinator, as many as processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    service = _jax.get_distributed_runtime_service(address, COUNT, heartbeat_timeout=60, shutdown_timeout=10)
    found = [_jax.get_distributed_runtime_client(address, index, init_timeout=30, heartbeat_timeout=60) for index in range(COUNT)]
    _together(client.connect for client in found)
    yield found
    _together(client.shutdown for client in found)
    service.shutdown()


def _together(calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def watches(clients, monkeypatch):
    """A `Watch` per process, in a hurry, and the statuses with which they ended their process."""
    for name, seconds in {"_PULSE_S": 0.05, "_LOST_AFTER_S": 1.5, "_MISSING_AFTER_S": 0.6, "_FAREWELL_S": 1.0}.items():
        monkeypatch.setattr(processes, name, seconds)
    ended, lines = {}, []
    monkeypatch.setattr(processes.logging, "error", lambda text, *values: lines.append(text % values))
    found = [processes.Watch(client, index, COUNT, (SharedStop,), lambda status, index=index: ended.setdefault(index, status))
             for index, client in enumerate(clients)]
    for watch in found:
        watch.__enter__()
    time.sleep(0.3)
    yield found, ended, lines
    for watch in found:
        watch._over.set()
        watch.__exit__(None, None, None)


def _die(watch):
    """Show no more pulse, as a process that was killed."""
    watch._over.set()
    watch._thread.join()


def test_lost_process_ends_the_others_and_is_named(watches):
    (first, second, third), ended, lines = watches
    _die(third)
    deadline = time.monotonic() + 20
    while len(ended) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended == {0: 1, 1: 1}
    assert all(f"process 2 of 3 ({third._who}) is lost" in line and "Run the same command again" in line for line in lines)


def test_failed_shared_work_is_explained_by_who_is_missing(watches):
    (first, second, third), ended, _ = watches
    _die(third)
    error = jax.errors.JaxRuntimeError("Gloo AllGather failed")
    with pytest.raises(processes.ProcessLost, match=r"process 1 ends.*\n  process 2 of 3 \(host .*is lost"):
        second.__exit__(type(error), error, None)
    with pytest.raises(processes.ProcessLost, match=r"process 0 ends.*\n  process 2 of 3"):
        first.__exit__(type(error), error, None)
    assert not ended


def test_reason_of_a_process_that_fails_alone_reaches_the_others(watches):
    (first, second, third), ended, lines = watches
    third.__exit__(ValueError, ValueError("the disk is full\nand more"), None)
    error = jax.errors.JaxRuntimeError("Gloo AllGather failed")
    with pytest.raises(processes.ProcessLost, match=r"process 2 of 3 .* ended: ValueError: the disk is full\n"):
        second.__exit__(type(error), error, None)
    deadline = time.monotonic() + 20
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
    # The one whose work hangs is ended.
    assert ended == {0: 1} and "process 2 of 3" in lines[0] and "the disk is full" in lines[0]


def test_coordinator_that_fails_alone_stays_until_the_others_know_why(watches, monkeypatch):
    (first, *_), _, lines = watches
    monkeypatch.setattr(processes, "_FAREWELL_S", 20.0)
    first.__exit__(ValueError, ValueError("the disk is full"), None)
    # Once it returns, nobody answers any more.
    assert len(lines) == 2 and all("process 0 of 3" in line and "the disk is full" in line for line in lines)


def test_nobody_is_blamed_for_an_end_that_all_share(watches):
    (first, second, third), ended, _ = watches
    third.__exit__(None, None, None)
    second.__exit__(SharedStop, SharedStop(), None)
    time.sleep(2.5)
    assert not ended and first._missing() == []


def test_processes_stop_at_one_step_that_none_has_passed(watches):
    found, ended, _ = watches
    # The first is ahead, as devices run behind; the last is still compiling, at the start of a run that was resumed.
    assert not any(found[0].stops_at(step) for step in (101, 102, 103))
    assert not any(found[1].stops_at(step) for step in (101, 102))
    found[2]._ask()
    deadline = time.monotonic() + 20
    while any(watch._last is None for watch in found) and time.monotonic() < deadline:
        time.sleep(0.02)
    stops = [next(step for step in range(watch._passed + 1, 200) if watch.stops_at(max(step, 101))) for watch in found]
    assert [max(stop, 101) for stop in stops] == [104, 104, 104] and not ended
