"""What `make demo-guests` prints: two real QEMU guests, looked at and governed by `nvmtool sched`; the README's session is this."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.guest.guest import MIB, Guest, make_disk  # noqa: E402

SETTLE_SECONDS = 5.0


def main() -> int:
    """Boot two guests, print the session, and end them."""
    with tempfile.TemporaryDirectory() as folder:
        hot = Guest(work="hot:64M", memory_mib=192)
        cached = Guest(work="cache:100M", memory_mib=192, disk=make_disk(Path(folder) / "disk", 110))
        try:
            hot.start()
            cached.start()
            hot.wait_ready()
            cached.wait_ready()
            time.sleep(SETTLE_SECONDS)
            sockets = f"--qmp hot={hot.qmp} --qmp cached={cached.qmp}"
            target = 100 * (_available() + 80 * MIB) / _total()
            policy = f"--free-target {target:.2f}% --deadband 0.01% --no-swap"
            _show(f"nvmtool sched plan {sockets} {policy}")
            _show(f"nvmtool sched apply {sockets} {policy}")
            time.sleep(SETTLE_SECONDS)
            _show(f"nvmtool sched plan {sockets}")
            for name, guest in (("hot", hot), ("cached", cached)):
                meminfo, verified = guest.read_meminfo(), guest.verify()
                sizes = ", ".join(f"{key} {meminfo[key] // MIB} MiB" for key in ("MemTotal", "AnonPages", "Cached"))
                print(f"# inside {name}: {sizes}; all of its memory compared, {verified.errors} errors")
        finally:
            hot.end()
            cached.end()
    return 0


def _show(command: str) -> None:
    """Print a command, with short names for the sockets, and what it says."""
    print("$ " + re.sub(r"/tmp/nvmguest-\w+/qmp", "SOCKET", command), flush=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "140"}
    subprocess.run(command, shell=True, check=True, env=environment)  # noqa: S602 - as a person types it
    print(flush=True)


def _meminfo(name: str) -> int:
    match = re.search(rf"^{name}: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) << 10


def _available() -> int:
    return _meminfo("MemAvailable")


def _total() -> int:
    return _meminfo("MemTotal")


if __name__ == "__main__":
    sys.exit(main())
