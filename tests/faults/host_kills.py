"""What `make kills-host` runs: guests, and beside them commands on the same host, killed with kill -9 over and over.

Three VMs that do not fit into memory, on a host that NVM lends to: one has a guest at work all the time, one is loaded with known contents,
shared, suspended, resumed, swapped and dumped, the third goes on and off. After each kill `host account` must show difference 0 and
`host check` no error but leaks, the known contents must be there to the byte, and the same command must finish. A seed gives the same
commands and waiting times; where a kill strikes is up to the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from nvmtool.errors import NvmtoolError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.check import check_host
from nvmtool.host.create import create_vm
from nvmtool.host.host import Host
from nvmtool.host.power import power_on, settle
from nvmtool.host.suspend import resume
from nvmtool.host.transfer import load
from nvmtool.region.check import check_device
from tests.host.ground import MIB, PAGE, make_host, memory_of

from .commands import ROOT

_PAGES = 1024
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
# What is done to the host, and to the VM whose contents are known.
_COMMANDS = (
    ("host", "share"),
    ("host", "balance", "--chunk", "1M"),
    ("host", "lend", "1M"),
    ("host", "return", "2M"),
    ("host", "run", "--rounds", "1"),
    ("host", "check", "--repair"),
    ("vm", "suspend", "known"),
    ("vm", "resume", "known"),
    ("vm", "dump", "known", "known.out"),
    ("vm", "load", "known", "known.raw"),
    ("vm", "settle", "known", "--step", "1M"),
    ("vm", "power-on", "third"),
    ("vm", "power-off", "third"),
)


@dataclass
class Figures:
    """What was done."""

    kills: int = 0
    too_late: int = 0
    guest_kills: int = 0
    guest_ends: int = 0
    pages_compared: int = 0
    by_command: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Rounds:
    """A host in a folder, and the processes on it."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Make the host, and let a guest begin."""
        self.folder, self.random, self.figures = folder, random.Random(seed), Figures()
        self.path = make_host(folder, ram=2 * _PAGES, nvm_bytes=16 * MIB)
        rng = random.Random(seed)
        self.known = b"".join(rng.choice([bytes(PAGE), rng.randbytes(PAGE), b"alike" * 819 + b"\0"]) for _ in range(_PAGES))
        (folder / "known.raw").write_bytes(self.known)
        with Host.open(self.path, writable=True) as host:
            for name in ("guest", "known", "third"):
                create_vm(host, name, memory_bytes=_PAGES * PAGE, reservation_bytes=MIB)
                if name != "third":
                    power_on(host, name)
                    settle(host, name)
            load(host, "known", folder / "known.raw")
        self.guest = self._start_guest()

    def run(self, kills: int) -> None:
        """Kill so many commands."""
        while self.figures.kills < kills and not self.figures.failures:
            command = self.random.choice(_COMMANDS)
            process = subprocess.Popen(self._words(*command), **self._where())
            time.sleep(self.random.uniform(0.15, 0.9))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                self.figures.kills += 1
                name = " ".join(command[:2])
                self.figures.by_command[name] = self.figures.by_command.get(name, 0) + 1
            else:
                self.figures.too_late += 1
            process.wait()
            self._judge(" ".join(command))
            if self.random.random() < 0.15:
                self._kill_guest()
        self._end_guest()

    def close(self) -> None:
        """End the guest, whatever happened."""
        self.guest.kill()
        self.guest.communicate()

    def _judge(self, what: str) -> None:
        try:
            self._look(what)
            self._finish(what)
        except NvmtoolError as error:
            self.figures.failures.append(f"{what}: {type(error).__name__}: {error}")

    def _look(self, what: str) -> None:
        with Host.open(self.path) as host:
            found = account(host)
            if (found.difference_pages, found.refs_difference) != (0, 0):
                self.figures.failures.append(f"{what}: account: {found.difference_pages} pages, {found.refs_difference} references")
            errors = [each for each in check_host(host).findings if each.severity != "leak"]
            if errors:
                self.figures.failures.append(f"{what}: check: {errors[:2]}")
        if not check_device(self.folder / "disk.nvm").clean:
            self.figures.failures.append(f"{what}: check of the image: {check_device(self.folder / 'disk.nvm').findings[:2]}")

    def _finish(self, what: str) -> None:
        """Let what was cut off be done, and compare all known contents."""
        with Host.open(self.path, writable=True) as host:
            if what.startswith("vm load") and host.vm("known").state == lay.ON:
                load(host, "known", self.folder / "known.raw")
            if host.vm("known").state in (lay.SUSPENDING, lay.RESUMING):
                resume(host, "known")
            if memory_of(host, "known") != self.known:
                self.figures.failures.append(f"{what}: the known VM does not hold what it held")
            self.figures.pages_compared += _PAGES
            if host.vm("known").state == lay.SUSPENDED and self.random.random() < 0.5:
                resume(host, "known")
        if self.random.random() < 0.2:
            with Host.open(self.path, writable=True) as host:
                result = check_host(host, repair=True)
                if not result.clean:
                    self.figures.failures.append(f"{what}: after repair: {result.findings[:2]}")

    def _start_guest(self) -> subprocess.Popen[str]:
        words = self._words("vm", "run", "guest", "--seconds", "3600", "--verify", "--seed", str(self.random.randrange(1000)), "--json")
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | _ENVIRONMENT)

    def _kill_guest(self) -> None:
        self.guest.kill()
        out, _ = self.guest.communicate()
        if self.guest.returncode == -signal.SIGKILL:
            self.figures.guest_kills += 1
        else:
            self.figures.failures.append(f"the guest ended by itself: {out}")
        self._judge("the guest killed")
        self.guest = self._start_guest()

    def _end_guest(self) -> None:
        self.guest.terminate()
        try:
            out, err = self.guest.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.figures.failures.append("the guest does not end")
            return
        self.figures.guest_ends += 1
        if self.guest.returncode or json.loads(out)["errors"]:
            self.figures.failures.append(f"the guest: exit code {self.guest.returncode}: {out} {err}")

    def _words(self, *command: str) -> list[str]:
        words = [str(self.folder / each) if each.startswith("known.") else each for each in command]
        return [sys.executable, "-m", "nvmtool", *words, "--host", str(self.path)]

    def _where(self) -> dict[str, object]:
        return {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | _ENVIRONMENT}


def run_rounds(seed: int, kills: int) -> Figures:
    """Kill so many commands on one host."""
    with tempfile.TemporaryDirectory(prefix="nvmtool-kills-") as folder:
        rounds = Rounds(Path(folder), seed)
        try:
            rounds.run(kills)
        finally:
            rounds.close()
        return rounds.figures


def main() -> int:
    """Run, print and write the figures; 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--json", type=Path, default=Path("build/kills-host.json"))
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    figures = run_rounds(seed, options.kills)
    report = {"seed": seed, **vars(figures), "seconds": round(time.monotonic() - started, 1)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    for key, value in report.items():
        print(f"{key:15} {value}")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
