"""The commands that change swap files and reservations, and how to judge what is left when one is cut off."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from nvmtool.errors import NvmtoolError
from nvmtool.swap.check import check_swap
from nvmtool.swap.create import create_swap
from nvmtool.swap.reservation import create_reservation
from nvmtool.swap.reservation_check import check_reservation
from nvmtool.swap.swapfile import SwapFile
from tests.crash.swap.model import Model, read_model
from tests.crash.swap.operations import into_memory, out
from tests.crash.swap.workloads import make_base

from .commands import Command, launch, message_problems, run_plain

SWAP, STAMPS, POOL = "vm.swap", "vm.stamps", "pool.rsv"
_RUN = ("swap", "run", SWAP, "--resident", "64K", "--stamps", STAMPS)

COMMANDS = [
    Command("swap create", "nothing", ("swap", "create", SWAP, "--memory", "1M", "--block-size", "64K"), again=(0, 9)),
    Command("defrag", "plain", ("defrag", SWAP)),
    Command("swap check --repair", "miscounted", ("swap", "check", SWAP, "--repair")),
    Command("swap run", "stamped", (*_RUN, "--ops", "300", "--seed", "2")),
    Command(
        "reservation create", "nothing", ("reservation", "create", POOL, "--size", "1M", "--block-size", "64K"), makes=(POOL,), again=(0, 9)
    ),
    Command("reservation resize", "borrowed", ("reservation", "resize", POOL, "--size", "2M")),
    Command(
        "swap create --reservation",
        "pool",
        ("swap", "create", SWAP, "--memory", "256K", "--reservation", POOL),
        makes=(SWAP,),
        again=(0, 9),
    ),
    Command("defrag of borrowed blocks", "borrowed", ("defrag", SWAP)),
]


def make_templates(folder: Path) -> None:
    """Make what the commands run on, each in a folder of its own."""
    for name in ("nothing", "plain", "miscounted", "stamped", "pool", "borrowed"):
        (folder / name).mkdir(parents=True)
    for name in ("plain", "miscounted"):
        make_base(folder / name / SWAP)
    with SwapFile.open(folder / "miscounted" / SWAP) as swap:
        at = swap.fields["storage_start"] * 4096
    with (folder / "miscounted" / SWAP).open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 8)
    stamped = folder / "stamped"
    create_swap(stamped / SWAP, memory_bytes=1 << 20, block_bytes=1 << 16)
    words = [sys.executable, "-m", "nvmtool", *_RUN, "--ops", "600", "--workload", "sweep"]
    done = launch(words, COMMANDS[0], stamped)
    assert done.returncode == 0, done.stderr
    for name in ("pool", "borrowed"):
        make_reserved(name, folder / name)


def make_reserved(name: str, folder: Path) -> None:
    """Make a reservation, and for `borrowed` a swap file with pages in its blocks."""
    create_reservation(folder / POOL, 1 << 20, 1 << 16)
    if name == "pool":
        return
    create_swap(folder / SWAP, memory_bytes=64 * 4096, reservation=folder / POOL)
    with SwapFile.open(folder / SWAP, writable=True) as swap:
        for first, behind in ((0, 16), (16, 32), (32, 40)):
            out(swap, range(first, behind))
        into_memory(swap, [2, 3, 5, *range(16, 26)])


@dataclass
class SwapBench:
    """Folders to run one command in: what it starts from, and the pages that must be there after it."""

    command: Command
    template: Path
    work: Path
    before: Model = field(init=False)

    def __post_init__(self) -> None:
        """Run the command once without any fault."""
        self.before = self._pages(self.template.with_name("plain") if self.command.template == "miscounted" else self.fresh())
        self.fresh()
        done = run_plain(self.command, self.work)
        assert done.returncode in (0, 1), done.stderr
        assert not self._state_problems(), self._state_problems()

    def fresh(self) -> Path:
        """Put the start back, holes included, and return the folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        if self.command.template in ("pool", "borrowed"):  # copying would lose storage that was never written
            self.work.mkdir()
            make_reserved(self.command.template, self.work)
            return self.work
        subprocess.run(["cp", "-a", str(self.template), str(self.work)], check=True)
        return self.work

    def problems(self, done: subprocess.CompletedProcess[bytes], killed: bool, *, mute: bool = False) -> list[str]:
        """Return what is wrong with what a command left that was failed or killed, running it once more included."""
        found = [] if killed else message_problems(done, mute=mute)
        extra = {path.name for path in self.work.iterdir()} - {SWAP, STAMPS, POOL, "trace"}
        if extra:
            found.append(f"left behind: {sorted(extra)}")
        found += self._state_problems(leaks=True)
        again = run_plain(self.command, self.work)
        if again.returncode not in self.command.again:
            found.append(f"run again: exit code {again.returncode}: {again.stderr.decode()[-200:]}")
        found += [f"run again: {problem}" for problem in self._state_problems()]
        return found

    def _pages(self, folder: Path) -> Model:
        if self.command.template not in ("plain", "miscounted", "borrowed"):
            return {}
        with SwapFile.open(folder / SWAP) as swap:
            return read_model(swap)

    def _state_problems(self, *, leaks: bool = False) -> list[str]:
        """Check everything that is there; with `leaks` those, and what the command was to mend, are no problem."""
        found = []
        try:
            for name, check in ((SWAP, check_swap), (POOL, check_reservation)):
                if (self.work / name).exists() and not (leaks and self.command.template == "miscounted"):
                    findings = [each for each in check(self.work / name).findings if not (leaks and each.severity == "leak")]
                    # A creation that was killed behind its entry in the reservation leaves a promise, until `reservation forget`.
                    if self.command.template == "pool":
                        findings = [each for each in findings if each.structure != "swap file"]
                    found += [f"check: {each}" for each in findings[:2]]
            if self.before and not (leaks and self.command.template == "miscounted") and self._pages(self.work) != self.before:
                found.append("the pages are not what they were")
        except NvmtoolError as error:
            found.append(f"{type(error).__name__}: {error}")
        if self.command.template == "stamped":
            done = launch([sys.executable, "-m", "nvmtool", *_RUN, "--ops", "0", "--verify"], self.command, self.work)
            if done.returncode:
                found.append(f"verify: exit code {done.returncode}: {(done.stdout + done.stderr).decode()[-200:]}")
        return found
