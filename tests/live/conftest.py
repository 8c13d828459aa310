"""A served image in a process of its own, and the real clients that use it."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmtool.region.device import Device
from nvmtool.region.format import format_device

BLOCK, MIB = 4096, 1 << 20
READY_SECONDS = 30.0


def need(*commands: str) -> None:
    """Skip the test where a client is not installed."""
    for command in commands:
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")


class Served:
    """An image with region vm1, and the process that serves it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.image, self.mass = folder / "disk.nvm", folder / "disk.mass"
        # A socket's path is short, a test's folder may not be.
        self.sockets = Path(tempfile.mkdtemp(prefix="nvmserve-"))
        self.socket = self.sockets / "s"
        self.process: subprocess.Popen[str] | None = None
        self.ready = ""

    def create(self, mib: int = 256, region_mib: int = 64) -> None:
        format_device(self.image, size_bytes=mib * MIB, mass=self.mass)
        with Device.open(self.image, writable=True) as device:
            device.create_region("vm1", region_mib * MIB)

    def start(self, *options: object) -> None:
        where = () if "--port" in options else ("--socket", str(self.socket))
        self._start("serve", str(self.image), *where, *map(str, options))

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "nvmtool", *arguments]
        with (self.folder / "serve.err").open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], READY_SECONDS)[0], "the server says nothing"
        self.ready = self.process.stdout.readline()
        assert "ready" in self.ready, self.log

    @property
    def log(self) -> str:
        return (self.folder / "serve.err").read_text()

    def uri(self, export: str = "") -> str:
        return f"nbd+unix:///{export}?socket={self.socket}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.process = None
        return status

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.sockets)

    def tool(self, *args: object, code: int = 0) -> str:
        done = subprocess.run([sys.executable, "-m", "nvmtool", *map(str, args)], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr, self.log if self.process else "")
        return done.stdout if code == 0 else done.stderr

    def json(self, *args: object) -> dict[str, Any]:
        facts = json.loads(self.tool(*args, "--json"))
        assert isinstance(facts, dict)
        return facts

    def fio(self, *options: str, export: str = "vm1", verify: bool = True) -> subprocess.Popen[str]:
        """Start fio on an export; `finish` waits for it."""
        need("fio")
        command = ["fio", "--name=t", "--ioengine=nbd", f"--uri={self.uri(export)}", "--bs=4k", "--iodepth=16", "--randseed=1", *options]
        command += ["--verify=crc32c", "--verify_fatal=1"] if verify else []
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def check(self) -> None:
        assert self.json("check", self.image, "--scrub")["clean"]


def finish(process: subprocess.Popen[str], seconds: float = 120.0) -> str:
    """Wait for a client and insist that it found nothing wrong."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-3000:]
    assert re.search(r"err=\s*[1-9]", output) is None, output[-3000:]
    return output


def run(*command: object, **options: Any) -> str:
    """Run a client to its end and return what it says."""
    need(str(command[0]))
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120, **options)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    """An image that nobody serves yet."""
    served = Served(tmp_path)
    try:
        served.create()
        yield served
    finally:
        served.end()


@pytest.fixture
def served(server: Served) -> Served:
    """The same, served."""
    server.start()
    return server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server with a snapshot, for all tests of a file: it survives them all, and what one client does does not matter to the next."""
    served = Served(tmp_path_factory.mktemp("served"))
    try:
        served.create()
        served.tool("snapshot", "create", served.image, "monday")
        served.start()
        yield served
        assert served.stop() == 0, served.log
        served.check()
        assert "internal error" not in served.log and "Traceback" not in served.log
    finally:
        served.end()


@pytest.fixture
def clients() -> Callable[..., str]:
    return run


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}
