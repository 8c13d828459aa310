"""What `make demo-serve` prints: a region served to fio, mounted, and sent to another image; the README's sessions are this."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin", "COLUMNS": "120"}


def main() -> int:
    """Run the sessions in a folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        print("# Serving")
        show("nvmtool format disk.nvm --size 512M --mass disk.mass")
        show("nvmtool region create disk.nvm vm1 --size 128M")
        with beside("nvmtool serve disk.nvm --socket disk.sock", ready=True):
            fio = "fio --name=vm --ioengine=nbd --uri=nbd+unix:///vm1?socket=disk.sock --bs=4k --iodepth=16 --verify=crc32c"
            show(f"{fio} --rw=write --size=128M | grep -o 'err= [0-9]*'")
            show("nvmtool snapshot create disk.nvm monday")
            with beside(f"{fio} --rw=randwrite --size=128M --loops=100 --time_based --runtime=8 | grep -o 'err= [0-9]*'"):
                time.sleep(2)
                show("nvmtool info disk.nvm | grep -E '^free|^vm1|^region'")
                show("nvmtool purge disk.nvm --mode virtblock")
                show("nvmtool info disk.nvm | grep -E '^free|^vm1|^region'")
            show("nbdcopy 'nbd+unix:///vm1@monday?socket=disk.sock' monday.raw")
        show("nvmtool check disk.nvm --scrub")

        print("# Mount")
        show("mkdir mnt && nvmtool mount disk.nvm mnt")
        show("ls -l mnt/vm1 mnt/vm1/snapshots")
        show("cmp mnt/vm1/snapshots/monday monday.raw && echo the same")
        show("mkfs.ext4 -q mnt/vm1/current && mkdir fs && mount -o loop mnt/vm1/current fs && cp -a /etc/. fs/ && sync")
        show("nvmtool snapshot create disk.nvm tuesday && ls mnt/vm1/snapshots")
        show("umount fs mnt")

        print("# Streams")
        show("nvmtool format backup.nvm --size 512M --mass backup.mass")
        show("nvmtool send disk.nvm --snapshot monday - | nvmtool receive backup.nvm -")
        show("nvmtool send disk.nvm --snapshot tuesday --from monday tuesday.nvms")
        show("nvmtool receive backup.nvm tuesday.nvms --dry-run")
        show("nvmtool receive backup.nvm tuesday.nvms")
        show("nvmtool export backup.nvm - --snapshot tuesday | sha256sum; nvmtool export disk.nvm - --snapshot tuesday | sha256sum")
    return 0


def show(command: str) -> None:
    """Print a command as a person types it, and what it says."""
    print(f"$ {command}", flush=True)
    subprocess.run(command, shell=True, check=True, env=ENVIRONMENT, executable="/bin/bash")  # noqa: S602
    print(flush=True)


@contextmanager
def beside(command: str, *, ready: bool = False) -> Iterator[None]:
    """Run a command while others run; one that says when it is ready is ended then, others end by themselves."""
    print(f"$ {command} &", flush=True)
    process = subprocess.Popen(["bash", "-c", f"exec {command}" if ready else command], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    if ready:
        print(process.stdout.readline(), flush=True)
    try:
        yield
    finally:
        if ready:
            print("$ kill %1", flush=True)
            process.terminate()
        print(process.stdout.read(), flush=True)
        if process.wait(60):
            raise SystemExit(f"{command}: exit status {process.returncode}")


if __name__ == "__main__":
    sys.exit(main())
