"""The commands that change something, each with an image to run it on; how to judge what is left when one is cut off."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from nvmtool.errors import FormatError, NvmtoolError, exit_code_table
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.purge import purge
from nvmtool.region.send import send_snapshot
from nvmtool.region.snapshots import delete_snapshot
from tests.damage.images import BLOCK, Builder, Model
from tests.damage.probe import read_state

IMAGE, MASS = "disk.nvm", "disk.mass"
ROOT = Path(__file__).resolve().parents[2]
CODES = {code for code, _ in exit_code_table()} - {70}


@dataclass(frozen=True)
class Command:
    """One command: the template that it runs on, its arguments and input, and the files that it makes.

    `again` are the exit codes with which it may end when it is run again after it was cut off.
    """

    name: str
    template: str
    arguments: tuple[str, ...]
    stdin: bytes = b""
    # A file of the template that is its input.
    reads: str = ""
    makes: tuple[str, ...] = ()
    again: tuple[int, ...] = (0,)
    # Takes the place of two files, one after the other: cut off in between, the old image is there and its store is not, until it is run
    # again.
    replaces: bool = False
    # What it changes shows when it is complete: cut off, no state is between two.
    at_once: bool = False


COMMANDS = [
    Command("format", "empty", ("format", IMAGE, "--size", "1M", "--mass", MASS), makes=(IMAGE, MASS), again=(0, 9)),
    Command("format --force", "plain", ("format", IMAGE, "--size", "1M", "--mass", MASS, "--force"), replaces=True),
    Command("region create", "plain", ("region", "create", IMAGE, "other", "--size", "1M"), again=(0, 9)),
    Command("region delete", "purged", ("region", "delete", IMAGE, "vm"), again=(0, 9)),
    Command("region convert", "plain", ("region", "convert", IMAGE, "vm", "--mapping", "direct")),
    Command("import", "plain", ("import", IMAGE, "import.raw")),
    Command("write", "plain", ("write", IMAGE, "--offset", "0"), stdin=random.Random(5).randbytes(3 * BLOCK)),
    Command("write of one block", "purged", ("write", IMAGE, "--offset", str(BLOCK)), stdin=random.Random(6).randbytes(BLOCK)),
    Command("discard", "plain", ("discard", IMAGE, "--offset", "0", "--length", str(2 * BLOCK))),
    Command("snapshot create", "plain", ("snapshot", "create", IMAGE, "third"), again=(0, 9)),
    Command("snapshot delete", "purged", ("snapshot", "delete", IMAGE, "old"), again=(0, 9)),
    Command("snapshot revert", "purged", ("snapshot", "revert", IMAGE, "old")),
    Command("purge virtblock", "plain", ("purge", IMAGE, "--mode", "virtblock")),
    Command("purge pointer-elimination", "direct", ("purge", IMAGE, "--mode", "pointer-elimination")),
    Command("recall", "purged", ("recall", IMAGE, "--snapshot", "old")),
    Command("receive", "behind", ("receive", IMAGE, "full.nvms", "--region", "copy"), again=(0, 9), at_once=True),
    Command("receive of what changed", "behind", ("receive", IMAGE, "-", "--force"), reads="next.nvms", again=(0, 9), at_once=True),
    Command("check --repair", "leaky", ("check", IMAGE, "--repair"), again=(0,)),
    Command("export", "purged", ("export", IMAGE, "out.raw", "--snapshot", "old"), makes=("out.raw",)),
]


def make_templates(folder: Path) -> None:
    """Make the images that the commands run on, each in a folder of its own."""
    for name in ("empty", "plain", "purged", "direct", "leaky", "behind"):
        template = folder / name
        template.mkdir(parents=True)
        (template / "import.raw").write_bytes(random.Random(3).randbytes(5 * BLOCK))
        if name == "empty":
            continue
        builder = Builder(template, 1, size_blocks=160)
        region = builder.create("vm", "direct" if name == "direct" else "virtblock", 64)
        builder.write(region, *range(5))
        builder.snapshot(region, "old")
        builder.write(region, 0, 1, 2)
        builder.snapshot(region, "new")
        builder.write(region, 1, 7)
        if name == "purged":
            purge(builder.device, mode="virtblock")
        if name == "leaky":
            with builder.device.transaction():
                builder.device.blocks.name(builder.device.blocks.take(3), 2)
        if name == "behind":
            send_snapshot(region, "new", str(template / "full.nvms"))
            send_snapshot(region, "new", str(template / "next.nvms"), "old")
            delete_snapshot(region, "new")
        builder.finish()


def states(folder: Path) -> Model:
    """Return what every state of the image reads; empty where there is no image."""
    if not (folder / IMAGE).exists():
        return {}
    found: Model = {}
    with Device.open(folder / IMAGE) as device:
        for region in device.regions():
            living = [record.name for record in region.snapshots if not record.get("parent") >> 51]
            for name in (None, *living):
                found[region.name, name] = read_state(device, region.name, name)
    return found


def run_plain(command: Command, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the command as it is."""
    return launch([sys.executable, "-m", "nvmtool", *command.arguments], command, folder)


def launch(words: list[str], command: Command, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run words in a folder with the command's input."""
    path = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    given = (folder / command.reads).read_bytes() if command.reads else command.stdin
    return subprocess.run(words, cwd=folder, input=given, capture_output=True, timeout=60, check=False, env=os.environ | path)


def message_problems(done: subprocess.CompletedProcess[bytes], *, mute: bool) -> list[str]:
    """Return what is wrong with how a command ended: its exit code is one of the table, and an error is one line."""
    lines = done.stderr.decode().splitlines()
    found = []
    if done.returncode not in CODES:
        found.append(f"exit code {done.returncode} is not in the table")
    if any("Traceback" in line for line in lines) or len(lines) > 1 or (done.returncode not in (0, 1) and len(lines) != 1 and not mute):
        found.append(f"exit code {done.returncode}, stderr: {lines[-3:]}")
    return found


@dataclass
class Bench:
    """Folders to run one command in: what it starts from, and what it is to end with."""

    command: Command
    template: Path
    work: Path
    before: Model = field(init=False)
    after: Model = field(init=False)
    outputs: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        """Run the command once without any fault."""
        self.before = states(self.fresh())
        done = run_plain(self.command, self.work)
        assert done.returncode == 0, done.stderr
        self.after = states(self.work)
        self.outputs = {name: (self.work / name).read_bytes() for name in self.command.makes if name not in (IMAGE, MASS)}

    def fresh(self) -> Path:
        """Put the start back and return the folder."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.template, self.work)
        return self.work

    def problems(self, done: subprocess.CompletedProcess[bytes], killed: bool, *, mute: bool = False) -> list[str]:
        """Return what is wrong with what a command left that was failed or killed, running it once more included.

        A mute one could not write its message either.
        """
        found = [] if killed else message_problems(done, mute=mute)
        allowed = {path.name for path in self.template.iterdir()} | set(self.command.makes)
        extra = {path.name for path in self.work.iterdir()} - allowed - {"trace"}
        if killed and self.command.replaces:
            # A new file takes an old one's place through a second name.
            extra = {name for name in extra if not name.startswith((f".{IMAGE}.", f".{MASS}."))}
        if extra:
            found.append(f"left behind: {sorted(extra)}")
        found += self._state_problems(complete=not killed and done.returncode == 0)
        again = run_plain(self.command, self.work)
        if again.returncode not in self.command.again and not self._stuck_format(again):
            found.append(f"run again: exit code {again.returncode}: {again.stderr.decode()[-200:]}")
        found += [f"run again: {problem}" for problem in self._state_problems(complete=again.returncode == 0)]
        return found

    def _stuck_format(self, again: subprocess.CompletedProcess[bytes]) -> bool:
        return self.command.name == "format" and again.returncode == 9

    def _state_problems(self, *, complete: bool) -> list[str]:
        found = []
        for name, content in self.outputs.items():
            path = self.work / name
            if path.read_bytes() != content if path.exists() else complete:
                found.append(f"{name} is not what it must be")
        if not (self.work / IMAGE).exists():
            return found if not self.before and not complete else [*found, "the image is gone"]
        try:
            result = check_device(self.work / IMAGE, scrub=True)
            wrong = [f for f in result.findings if not (self.command.template == "leaky" and f.severity == "leak" and not complete)]
            found += [f"check: {finding}" for finding in wrong[:2]]
            read = states(self.work)
        except NvmtoolError as error:
            if self.command.replaces and not complete and isinstance(error, FormatError) and "belongs to device" in str(error):
                return found
            return [*found, f"{type(error).__name__}: {error}"]
        if read not in ([self.after] if complete else [self.before, self.after]) and (
            complete or self.command.at_once or not self._between(read)
        ):
            found.append(f"states are neither as before nor as after: {sorted(map(str, read))}")
        return found

    def _between(self, read: Model) -> bool:
        """Tell whether every block of every state is as before or as after: a command of several steps was cut off between two."""
        for key, state in read.items():
            old, new = self.before.get(key), self.after.get(key)
            choices = [state for state in (old, new) if state is not None]
            blocks = {number for each in (*choices, state) for number in each}
            if not choices or any(state.get(n) not in [each.get(n) for each in choices] for n in blocks):
                return False
        return all(key in read for key in self.before.keys() & self.after.keys())
