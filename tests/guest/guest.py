"""One guest: boot it, talk with its workload, take its memory, end it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .initramfs import BUSYBOX, build_initramfs
from .kernel import find_kernel

QEMU = "qemu-system-x86_64"
MIB = 1 << 20
BOOT_SECONDS = 200.0
ANSWER_SECONDS = 100.0
MEMINFO_PORT = "org.nvmtool.meminfo.0"

_POLL_SECONDS = 0.05
# A QEMU that ends closes its sockets before it has an exit status.
_DYING_SECONDS = 5.0
# A kernel's last words are about so long.
_TAIL = 4000
_VERIFIED = re.compile(r"verified (\d+) hot=(\w+) cold=(\w+) cache=(\w+) errors=(\d+)")


class GuestError(Exception):
    """A guest did not come up, or did not answer; carries the end of its console."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What the workload found: passes over the hot memory so far, a sum for each kind of memory, and how much was ever wrong."""

    passes: int
    hot: str
    cold: str
    cache: str
    errors: int


def why_no_guests() -> str | None:
    """Return what is missing here for guests to run, or None."""
    for command in (QEMU, "cpio", "gcc"):
        if shutil.which(command) is None:
            return f"{command} is not installed"
    if not BUSYBOX.exists():
        return "busybox-static is not installed"
    if find_kernel() is None:
        return "there is no kernel for guests: make guest-kernel"
    return None


class Guest:
    """A Linux guest under QEMU's own translator (TCG), with one CPU, a balloon, and a QMP socket that is left to others: `qmp`.

    As a context manager it boots on entry and ends on exit; `start` and `wait_ready` apart let several boot at once.
    """

    def __init__(
        self,
        *,
        work: str = "idle",
        memory_mib: int = 128,
        memory_file: Path | None = None,
        disk: Path | None = None,
        balloon: bool = True,
        meminfo: bool = True,
        without: str = "",
        extra: tuple[str, ...] = (),
    ) -> None:
        """Describe a guest; see work.c for `work`, or "shell" for one that does what `shell` says.

        Its memory is anonymous unless `memory_file` names a file, which is made. `disk` is mounted read-only on /data (`make_disk`).
        `without` names a driver that is not loaded, for example virtio_balloon.
        """
        self.work = work
        self.memory_bytes = memory_mib * MIB
        self.memory_file = memory_file
        self._disk, self._balloon, self._meminfo, self._without, self._extra = disk, balloon, meminfo, without, extra
        # Sockets have short names: a path in a test's own folder may be too long for one.
        self.folder = Path(tempfile.mkdtemp(prefix="nvmguest-"))
        self.qmp = self.folder / "qmp"
        self.meminfo = self.folder / "meminfo"
        self._log = self.folder / "console.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Guest:
        """Boot, and wait until the workload is there."""
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the guest."""
        self.end()

    @property
    def pid(self) -> int:
        """Return the process of the guest, which was started."""
        assert self._process is not None
        return self._process.pid

    @property
    def console(self) -> str:
        """Return what the guest has printed so far."""
        return self._log.read_text(errors="replace").replace("\r", "") if self._log.exists() else ""

    def start(self) -> None:
        """Start QEMU; the guest boots meanwhile."""
        kernel = find_kernel()
        assert kernel is not None, why_no_guests()
        command = [QEMU, *self._machine(), *self._devices(), *self._extra]
        # On a busy machine too few ticks come for the kernel's check of its timer, which would be a panic.
        append = f"console=ttyS0 quiet panic=-1 no_timer_check work={self.work}" + (f" without={self._without}" if self._without else "")
        command += ["-kernel", str(kernel.image), "-initrd", str(build_initramfs(kernel)), "-append", append]
        with (self.folder / "qemu.err").open("wb") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)

    def wait_ready(self) -> None:
        """Wait until the workload holds all it is to hold; raises GuestError."""
        assert self._process is not None
        deadline = time.monotonic() + BOOT_SECONDS
        while re.search(r"^ready ", self.console, re.MULTILINE) is None:
            failed = re.search(r"^failed: ", self.console, re.MULTILINE) is not None
            if failed or self._process.poll() is not None or time.monotonic() > deadline:
                raise self._trouble("the guest is not ready")
            time.sleep(_POLL_SECONDS)

    def verify(self) -> Verified:
        """Have the workload compare all of its memory and files; raises GuestError."""
        answer = self._ask("verify", _VERIFIED)
        return Verified(int(answer[1]), answer[2], answer[3], answer[4], int(answer[5]))

    def read_meminfo(self) -> dict[str, int]:
        """Return the guest's own /proc/meminfo in bytes, over its console; raises GuestError."""
        answer = self._ask("meminfo", re.compile(r"MemTotal:.*?end meminfo", re.DOTALL))
        return {name: int(value) << 10 for name, value in re.findall(r"^(\S+): +(\d+) kB$", answer[0], re.MULTILINE)}

    def shell(self, script: str, seconds: float = ANSWER_SECONDS) -> str:
        """Run a line of a script in a guest with `work="shell"` and return what it prints; raises GuestError when it fails."""
        answer = self._ask(f'{{ {script}; }} 2>&1; echo "status=$?="', re.compile(r"^(.*?)status=(\d+)=", re.DOTALL), seconds)
        if answer[2] != "0":
            raise GuestError(f"{script}: exit status {answer[2]}: {answer[1]}")
        return answer[1]

    def dump(self, path: Path) -> None:
        """Write the guest's memory to a raw file, as it was at one moment: the guest stands still meanwhile."""
        with self.control() as ask:
            ask("stop")
            try:
                if self.memory_file is None:
                    ask("pmemsave", val=0, size=self.memory_bytes, filename=str(path.absolute()))
                else:
                    subprocess.run(["cp", "--sparse=always", self.memory_file, path], check=True)
            finally:
                ask("cont")

    @contextmanager
    def control(self) -> Iterator[Any]:
        """Open the guest's second QMP socket, and yield a function that sends a command and returns its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            try:
                connection.connect(str(self.folder / "control"))
            except OSError as error:
                raise self._trouble(f"no control: {error}") from error
            stream = connection.makefile("rw")

            def ask(command: str, **arguments: Any) -> Any:
                try:
                    stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                    stream.flush()
                    while "return" not in (answer := json.loads(stream.readline() or "{}")):
                        if "error" in answer:
                            raise GuestError(f"{command}: {answer['error']['desc']}")
                        if not answer:
                            raise ConnectionError("the socket was closed")
                except OSError as error:
                    raise self._trouble(f"no answer to {command}: {error}") from error
                return answer["return"]

            stream.readline()  # the greeting
            ask("qmp_capabilities")
            yield ask

    def kill(self) -> None:
        """End QEMU at once, as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End QEMU if it runs, and remove its sockets and log; the memory file stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _machine(self) -> list[str]:
        size = f"{self.memory_bytes >> 20}M"
        backend = f"memory-backend-file,share=on,mem-path={self.memory_file}" if self.memory_file else "memory-backend-ram"
        parts = ["-accel", "tcg", "-machine", "pc,memory-backend=ram", "-m", size, "-object", f"{backend},id=ram,size={size}"]
        return [*parts, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]

    def _devices(self) -> list[str]:
        where = self.folder
        parts = ["-chardev", f"socket,id=console,path={where}/console,server=on,wait=off,logfile={self._log}", "-serial", "chardev:console"]
        parts += ["-qmp", f"unix:{self.qmp},server=on,wait=off", "-qmp", f"unix:{where}/control,server=on,wait=off"]
        if self._balloon:
            parts += ["-device", "virtio-balloon-pci,id=balloon"]
        if self._disk is not None:
            parts += ["-drive", f"file={self._disk},if=none,id=data,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=data"]
        if self._meminfo:
            parts += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=meminfo,path={self.meminfo},server=on,wait=off"]
            parts += ["-device", f"virtserialport,chardev=meminfo,name={MEMINFO_PORT}"]
        return parts

    def _ask(self, line: str, wanted: re.Pattern[str], seconds: float = ANSWER_SECONDS) -> re.Match[str]:
        answer = ""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            try:
                connection.connect(str(self.folder / "console"))
                connection.sendall(line.encode() + b"\n")
                while (found := wanted.search(answer)) is None:
                    more = connection.recv(1 << 16)
                    if not more:
                        raise ConnectionError("the console was closed")
                    answer += more.decode(errors="replace").replace("\r", "")
            except OSError as error:  # QEMU has gone, or takes too long
                raise self._trouble(f"no answer to {line}: {error}") from error
        return found

    def _trouble(self, what: str) -> GuestError:
        """Return an error that says what became of QEMU, and the last of what it and the guest had to say."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING_SECONDS)
        errors = (self.folder / "qemu.err").read_text(errors="replace")
        return GuestError(f"{what}; QEMU's exit status is {self._process.returncode}: {errors}{self.console[-_TAIL:]}")


def make_disk(path: Path, mib: int) -> Path:
    """Make an ext4 image with files of a MiB each that a guest can read into its page cache; needs mke2fs."""
    with tempfile.TemporaryDirectory() as name:
        for index in range(mib):
            (Path(name) / f"file-{index:04}").write_bytes(hashlib.shake_128(index.to_bytes(4, "little")).digest(MIB))
        mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin:/bin")
        assert mke2fs is not None, "mke2fs is not installed"
        subprocess.run(
            [mke2fs, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", name, str(path), f"{mib + mib // 8 + 4}M"],
            check=True,
            capture_output=True,
        )
    return path
