"""The commands that change a host, and how to judge what is left when one is cut off."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from nvmtool.errors import NvmtoolError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.check import check_host
from nvmtool.host.create import create_pool, create_vm
from nvmtool.host.host import Host
from nvmtool.host.lending import lend
from nvmtool.host.power import power_on, settle
from nvmtool.host.reclaim import reclaim
from nvmtool.host.sharing import share
from nvmtool.host.suspend import suspend
from nvmtool.region.check import check_device
from tests.host.ground import MIB, PAGE, make_host, memory_of, write

from .commands import Command, message_problems, run_plain

HOST, IMAGE = "host", "disk.nvm"
_ON = ("--host", HOST)

COMMANDS = [
    Command("host init", "nothing", ("host", "init", HOST, "--ram", "1M"), makes=(HOST,), again=(0, 9)),
    Command("host restart", "suspended", ("host", "restart", *_ON)),
    Command("host share", "host", ("host", "share", *_ON)),
    Command("host balance", "host", ("host", "balance", "--chunk", "64K", *_ON)),
    Command("host lend", "host", ("host", "lend", "128K", *_ON)),
    Command("host return", "lent", ("host", "return", "256K", *_ON)),
    Command("host run", "host", ("host", "run", "--rounds", "1", *_ON)),
    Command("host check --repair", "spoiled", ("host", "check", "--repair", *_ON)),
    Command("pool create", "host", ("pool", "create", "more", *_ON), again=(0, 9)),
    Command("pool delete", "host", ("pool", "delete", "spare", *_ON), again=(0, 9)),
    Command("vm create", "host", ("vm", "create", "new", "--memory", "1M", *_ON), again=(0, 9)),
    Command("vm delete", "host", ("vm", "delete", "off", *_ON), again=(0, 9)),
    Command("vm power-on", "host", ("vm", "power-on", "off", *_ON), again=(0, 9)),
    Command("vm power-on --thick", "host", ("vm", "power-on", "off", "--thick", *_ON), again=(0, 9)),
    Command("vm settle", "host", ("vm", "settle", "a", *_ON)),
    Command("vm power-off", "host", ("vm", "power-off", "b", *_ON)),
    Command("vm suspend", "host", ("vm", "suspend", "a", *_ON), again=(0, 8)),
    Command("vm resume", "host", ("vm", "resume", "c", *_ON), again=(0, 8)),
    Command("vm load", "host", ("vm", "load", "b", "raw", *_ON)),
    Command("vm run", "host", ("vm", "run", "b", "--ops", "300", *_ON)),
]
# What these make of a VM: none of the contents it had, or not all of them.
CHANGED = {"vm power-off": "b", "vm load": "b", "vm run": "b"}


def make_templates(folder: Path) -> None:
    """Make nothing: what the commands run on is made for each run."""


def _make(folder: Path, name: str) -> None:
    """Make a host: a and b are on and share, b has pages in its swap file, c is suspended, off is off; pool spare is empty."""
    path = make_host(folder, ram=128, nvm_bytes=4 * MIB)
    (folder / "raw").write_bytes(random.Random(1).randbytes(48 * PAGE))
    with Host.open(path, writable=True) as host:
        create_pool(host, "spare")
        for vm in ("a", "b", "c", "off"):
            create_vm(host, vm, memory_bytes=48 * PAGE, reservation_bytes=8 * PAGE)
        for vm in ("a", "b", "c"):
            power_on(host, vm)
            pages: dict[int, object] = {ppn: f"all{ppn % 5}" if ppn < 12 else f"{vm}{ppn}" for ppn in range(30)}
            write(host, vm, pages)
        share(host)
        write(host, "a", {20: "all1", 21: "all2"})
        settle(host, "b")
        reclaim(host, 10)
        if name == "lent":
            lend(host, 64)
            write(host, "a", {ppn: f"more{ppn}" for ppn in range(30, 48)})
            write(host, "b", {ppn: f"more{ppn}" for ppn in range(30, 48)})
        suspend(host, "c")
        if name == "suspended":
            suspend(host, "a")
            suspend(host, "b")
    if name == "spoiled":
        with (path / "volatile/frames").open("r+b") as file:
            file.seek((lay.first_frame_word(128) + 100) * 8)
            file.write((lay.SHARED << lay.KIND_SHIFT | 3).to_bytes(8, "little"))


@dataclass
class HostBench:
    """Folders to run one command in: what it starts from, and what VMs hold before and after it."""

    command: Command
    template: Path
    work: Path
    before: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        """Run the command once without any fault."""
        self.fresh()
        self.before = self._memories()
        self.fresh()
        done = run_plain(self.command, self.work)
        assert done.returncode == 0, done.stderr
        assert not self._state_problems(), self._state_problems()

    def fresh(self) -> Path:
        """Make the start anew, for copying would lose storage that was never written, and return the folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        if self.command.template != "nothing":
            _make(self.work, self.command.template)
        return self.work

    def problems(self, done: subprocess.CompletedProcess[bytes], killed: bool, *, mute: bool = False) -> list[str]:
        """Return what is wrong with what a command left that was failed or killed, running it once more included."""
        found = [] if killed else message_problems(done, mute=mute)
        hidden = [path.name for path in self.work.rglob(".*")]
        if hidden:
            found.append(f"left behind: {hidden}")
        if self.command.name == "host init" and not killed and not (self.work / HOST / "host.nvh").exists() and (self.work / HOST).exists():
            found.append("a host that could not be made left its folder")
        found += self._state_problems(leaks=True)
        again = run_plain(self.command, self.work)
        if again.returncode not in self.command.again:
            found.append(f"run again: exit code {again.returncode}: {again.stderr.decode()[-200:]}")
        if (self.work / HOST).exists():
            with Host.open(self.work / HOST, writable=True) as host:
                result = check_host(host, repair=True)
                found += [f"after repair: {each}" for each in result.findings[:2]]
        found += [f"run again: {problem}" for problem in self._state_problems()]
        return found

    def _memories(self) -> dict[str, bytes]:
        if not (self.work / HOST / "host.nvh").exists():
            return {}
        with Host.open(self.work / HOST, writable=True) as host:
            vms = [vm.name for vm in host.all_vms() if vm.state in (lay.ON, lay.SUSPENDED) and vm.name != "off"]
            return {name: memory_of(host, name) for name in vms if name != CHANGED.get(self.command.name)}

    def _state_problems(self, *, leaks: bool = False) -> list[str]:
        """Check everything that is there; with `leaks` those, and what the command was to mend, are no problem."""
        if not (self.work / HOST / "host.nvh").exists():
            return []
        found = []
        try:
            with Host.open(self.work / HOST) as host:
                if not (leaks and self.command.template == "spoiled"):
                    counted = account(host)
                    if (counted.difference_pages, counted.refs_difference) != (0, 0):
                        found.append(f"account: {counted.difference_pages} pages, {counted.refs_difference} references")
                    findings = [each for each in check_host(host).findings if not (leaks and each.severity == "leak")]
                    found += [f"check: {each}" for each in findings[:2]]
            if (self.work / IMAGE).exists() and not check_device(self.work / IMAGE).clean:
                found.append(f"check of the image: {check_device(self.work / IMAGE).findings[:2]}")
            for name, memory in self._memories().items():
                if self.before.get(name, memory) != memory:
                    found.append(f"VM {name} does not hold what it held")
        except NvmtoolError as error:
            found.append(f"{type(error).__name__}: {error}")
        return found
