"""One run at a time in a workdir: who holds it, and whether the holder still lives."""

import json
import os
import pathlib
import secrets
import socket
import threading
import time

from absl import logging
from etils import epath

FILE = "owner.json"
# The owner counts up a number in the file this often; one that stands still for longer is taken for dead. Seconds.
_BEAT_S = 10.0
_DEAD_AFTER_S = 45.0
# How long a claim has to stand that others may be making in the same moment, seconds: on this machine and in a bucket.
_SETTLE_S, _SETTLE_REMOTE_S = 0.3, 3.0


class WorkdirInUse(Exception):
    """Another run holds the workdir."""


class Claim:
    """Hold a workdir against other runs; use as context manager.

    The workdir gets a file that names the owner and a number that grows. Whether an owner lives is
    seen from that number and the observer's own stopwatch, so that clocks need not agree and any file
    system will do; on one machine the process table tells at once. An owner that was killed leaves a
    file whose number stands still, and the next run takes over.

    Args:
      workdir: folder of the run, a path or URL; must exist.
      beat_s, dead_after_s: see above, seconds.
    """

    def __init__(self, workdir, beat_s=_BEAT_S, dead_after_s=_DEAD_AFTER_S):
        self._path = epath.Path(workdir) / FILE
        self._remote = "://" in str(self._path)
        self._beat_s, self._dead_after_s = beat_s, dead_after_s
        self._entry = {"id": secrets.token_hex(8), "host": socket.gethostname(), "pid": os.getpid(),
                       "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "machine": _machine(),
                       "process": _process(os.getpid()), "beat": 0}
        self._lost, self._over = None, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)

    def __enter__(self):
        """Take the workdir.

        Raises:
          WorkdirInUse: another run holds it.
        """
        found = self._read()
        if found is not None:
            self._refuse_if_alive(found)
            logging.warning("the run that held %s is dead (%s); taking over", self._path.parent, _name(found))
        if found is not None or not self._create():
            self._write()
            time.sleep(_SETTLE_REMOTE_S if self._remote else _SETTLE_S)
        # Another run may have claimed it in the same moment; the last one to write has it.
        self._check_mine()
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
        if (self._read() or {}).get("id") == self._entry["id"]:
            self._path.unlink(missing_ok=True)

    def check(self):
        """Raise WorkdirInUse if another run has taken the workdir, as it does from one that stood still for long."""
        if self._lost is not None:
            raise WorkdirInUse(self._lost)

    def _refuse_if_alive(self, found):
        alive = _alive_here(found)
        if alive is None:
            alive = self._beats(found)
        if alive:
            raise WorkdirInUse(
                f"another run is writing to {self._path.parent}: {_name(found)}. Wait for it, stop it, or give another "
                f"--workdir. (Its sign of life is {self._path}; once a run is dead, the next one takes over by itself.)"
            )

    def _beats(self, found):
        """Watch an owner on another machine until its number grows or it has had time enough."""
        logging.info("%s is held by %s; watching for %.0f s whether it lives", self._path.parent, _name(found),
                     self._dead_after_s)
        deadline = time.monotonic() + self._dead_after_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._beat_s / 2))
            now = self._read()
            if now is None:
                return False
            if now != found:
                return True
        return False

    def _check_mine(self):
        found = self._read()
        if found is not None and found["id"] != self._entry["id"]:
            raise WorkdirInUse(f"another run took {self._path.parent}: {_name(found)}. This run saves nothing more there; "
                               "stop one of them, or give another --workdir")

    def _beat(self):
        while not self._over.wait(self._beat_s):
            try:
                self._check_mine()
                self._entry["beat"] += 1
                self._write()
            except WorkdirInUse as error:
                self._lost = str(error)
                return
            except OSError as error:
                # The next beat may work; until then the run goes on, and may lose the workdir.
                logging.warning("could not renew the claim to %s: %s", self._path.parent, error)

    def _read(self):
        try:
            entry = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            entry = None
        # A file of another kind, or half written where files cannot be replaced in one go.
        return entry if isinstance(entry, dict) and "id" in entry else {"id": None}

    def _create(self):
        """Make the file unless there is one; False where that cannot be done in one go."""
        if self._remote:
            return False
        try:
            with open(self._path, "x", encoding="utf-8") as file:
                file.write(json.dumps(self._entry))
        except FileExistsError:
            self._refuse_if_alive(self._read() or {"id": None})
            return False
        return True

    def _write(self):
        text = json.dumps(self._entry)
        if self._remote:
            self._path.write_text(text)
            return
        beside = self._path.with_name(f"{FILE}.{self._entry['id']}.tmp")
        beside.write_text(text)
        beside.replace(self._path)


def _name(entry):
    if entry["id"] is None:
        return "its file does not say who"
    return f"host {entry.get('host')}, pid {entry.get('pid')}, since {entry.get('started')}"


def _machine():
    """Name what process numbers count in: this boot of this machine, and the container; None where that is not known."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process(pid):
    """Tell a process from a later one of the same number: its start in ticks since boot; None if there is none."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # One that has ended but is not yet collected does nothing any more.
    return None if fields[0] == "Z" else int(fields[19])


def _alive_here(entry):
    """Tell from the process table whether an owner lives; None if it ran elsewhere."""
    machine = _machine()
    if machine is None or entry.get("machine") != machine:
        return None
    return _process(entry["pid"]) == entry["process"]
