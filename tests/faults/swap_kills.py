"""What `make kills-swap` runs: a VM swaps, `nvmtool defrag` beside it is killed with kill -9 over and over, and so is the VM now and then.

The VM (`swap run --stamps`) verifies each page that it swaps in. After each kill of the VM, or after its orderly end, the file must check
clean but for leaks, `swap run --ops 0 --verify --stamps` must find no error, and the check after that must be clean. One round in three
has no VM: then the defragmentations work alone on the file. A seed gives the same waiting times; where a kill strikes is up to the
machine.
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

from nvmtool.swap.check import check_swap

from .commands import ROOT

FILE, STAMPS = "vm.swap", "vm.stamps"
_MEMORY, _RESIDENT, _BLOCK = "32M", "4M", "64K"
_KILLS_PER_ROUND = 20
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


class Lost(AssertionError):
    """A page is not what it must be, or a file is not clean."""


@dataclass
class Figures:
    """What was done."""

    defrag_kills: int = 0
    defrag_kills_beside_a_vm: int = 0
    defrags_that_ended: int = 0
    vm_kills: int = 0
    vm_ends: int = 0
    verified_pages: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """All kills together."""
        return self.defrag_kills + self.vm_kills


class Rounds:
    """A swap file with its stamps, and the processes on it."""

    def __init__(self, folder: Path, seed: int) -> None:
        """Make the file."""
        self.folder = folder
        self.random = random.Random(seed)
        self.figures = Figures()
        self._finish("swap", "create", FILE, "--memory", _MEMORY, "--block-size", _BLOCK)

    def round(self, number: int, kills: int) -> None:
        """Kill so many defragmentations, beside a VM or alone; kill or end the VM, and compare everything."""
        # The first round fills the file.
        vm = self._start_vm() if number % 3 != 2 else None
        try:
            if vm is None:
                self._thin_out()
            for _ in range(kills):
                self._kill_defrag(beside=vm is not None)
                if vm is not None and vm.poll() is not None:
                    raise Lost(f"the VM ended by itself: exit code {vm.returncode}: {self._output(vm)}")
        finally:
            if vm is not None:
                self._end_vm(vm, kill=self.random.random() < 0.7)
        self.verify()

    def verify(self) -> None:
        """Raise Lost unless all pages are right and the file is clean, leaks apart until somebody has opened it for writing."""
        wrong = [each for each in check_swap(self.folder / FILE).findings if each.severity != "leak"]
        if wrong:
            raise Lost(f"check: {wrong[:3]}")
        report = json.loads(self._finish(*self._run_words("--ops", "0", "--verify")))
        if report["errors"] or not report["verified_all"]:
            raise Lost(f"verify: {report}")
        self.figures.verified_pages += report["verified_pages"]
        result = check_swap(self.folder / FILE)
        if not result.clean:
            raise Lost(f"check after everything: {result.findings[:3]}")

    def _kill_defrag(self, *, beside: bool) -> None:
        process = self._start("defrag", FILE)
        time.sleep(self.random.uniform(0.1, 0.45))
        process.kill()
        _, err = process.communicate()
        killed = process.returncode == -signal.SIGKILL
        if not killed and process.returncode != 0:
            raise Lost(f"defrag: exit code {process.returncode}: {err.decode()[-300:]}")
        self.figures.defrag_kills += killed
        self.figures.defrag_kills_beside_a_vm += killed and beside
        self.figures.defrags_that_ended += not killed

    def _thin_out(self) -> None:
        """Let the VM end with less in the file: a short run that keeps a larger part of it in memory, and is killed."""
        vm = self._start("swap", "run", FILE, "--resident", "16M", "--workload", "uniform", "--stamps", STAMPS, "--seed", self._seed())
        time.sleep(1.0)
        vm.kill()
        vm.communicate()
        self.figures.vm_kills += 1

    def _start_vm(self) -> subprocess.Popen[bytes]:
        workload = self.random.choice(("churn", "uniform", "zipf"))
        vm = self._start(*self._run_words("--workload", workload, "--seed", self._seed(), "--verify"))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and vm.poll() is None and not self._is_served():
            time.sleep(0.05)
        return vm

    def _is_served(self) -> bool:
        """Tell whether somebody has the file open for writing, and has swapped something out."""
        path = self.folder / FILE
        return bool(check_swap(path).not_compared) and path.stat().st_blocks * 512 > 2 << 20

    def _end_vm(self, vm: subprocess.Popen[bytes], *, kill: bool) -> None:
        vm.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        out, err = vm.communicate(timeout=60)
        if kill:
            self.figures.vm_kills += vm.returncode == -signal.SIGKILL
            return
        report = json.loads(out) if out else {}
        if vm.returncode or report.get("errors"):
            raise Lost(f"the VM's end: exit code {vm.returncode}, {report}, {err.decode()[-300:]}")
        self.figures.vm_ends += 1
        self.figures.verified_pages += report["verified_pages"]

    def _run_words(self, *more: str) -> list[str]:
        return ["swap", "run", FILE, "--resident", _RESIDENT, "--stamps", STAMPS, "--json", *more]

    def _seed(self) -> str:
        return str(self.random.randrange(1 << 30))

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "nvmtool", *words]
        return subprocess.Popen(command, cwd=self.folder, stdout=pipe, stderr=pipe, env=os.environ | _ENVIRONMENT)

    def _finish(self, *words: str) -> bytes:
        process = self._start(*words)
        out, err = process.communicate(timeout=120)
        if process.returncode:
            raise Lost(f"{words}: exit code {process.returncode}: {out.decode()[-300:]} {err.decode()[-300:]}")
        return out

    @staticmethod
    def _output(process: subprocess.Popen[bytes]) -> str:
        return "".join((stream.read() or b"").decode()[-300:] for stream in (process.stdout, process.stderr) if stream)


def run_rounds(seed: int, kills: int, *, per_round: int = _KILLS_PER_ROUND) -> Figures:
    """Go through rounds until so many defragmentations were killed, or something was lost."""
    with tempfile.TemporaryDirectory(prefix="nvmtool-kills-") as folder:
        rounds, number = Rounds(Path(folder), seed), 0
        figures = rounds.figures
        try:
            while figures.defrag_kills < kills:
                rounds.round(number, min(per_round, kills - figures.defrag_kills))
                number += 1
        except Lost as lost:
            figures.failures.append(f"seed {seed} round {number}: {lost}")
    return figures


def main() -> int:
    """Run, print and write the figures; 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run")
    parser.add_argument("--kills", type=int, default=1000, help="kills of a defragmentation; those of the VM come on top")
    parser.add_argument("--json", type=Path, default=Path("build/kills-swap.json"))
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    started = time.monotonic()
    report = {"seed": seed, **vars(run_rounds(seed, options.kills)), "seconds": round(time.monotonic() - started, 1)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    for key, value in report.items():
        print(f"{key:24} {value}")
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
