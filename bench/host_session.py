"""The README's session with a host: three VMs of 1 GiB on 1 GiB, one of them a real guest's memory; run it with `make demo-host`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import REPOSITORY, random_file

sys.path.insert(0, str(REPOSITORY))
from tests.guest.guest import MIB, Guest, why_no_guests

SESSION = """
nvmtool format disk.nvm --size 1G --mass disk.mass
nvmtool region create disk.nvm data --size 128M && nvmtool import disk.nvm live.raw
export NVMTOOL_HOST=host
nvmtool host init host --ram 1G --nvm disk.nvm --tmpfs /dev/shm --swap 3G
for vm in vm1 vm2 vm3; do nvmtool vm create $vm --memory 1G; done
time (for vm in vm1 vm2 vm3; do nvmtool vm power-on $vm; done)
nvmtool vm load vm1 guest.raw
nvmtool vm run vm2 --workload sweep --ops 262144 --verify
nvmtool host share
nvmtool vm run vm3 --workload sweep --ops 262144 --verify
nvmtool host balance
nvmtool host status
nvmtool host account
for vm in vm1 vm2 vm3; do nvmtool vm suspend $vm; done
nvmtool host account | tail -n 2
nvmtool host restart
nvmtool host account | tail -n 2
for vm in vm3 vm1 vm2; do nvmtool vm resume $vm; done
nvmtool host account
nvmtool vm dump vm1 after.raw && cmp guest.raw after.raw && echo the same
nvmtool vm run vm3 --ops 0 --verify
nvmtool host return 1G
nvmtool host account | tail -n 2
nvmtool export disk.nvm after-live.raw && cmp live.raw after-live.raw && echo the same
nvmtool check disk.nvm && nvmtool host check
for vm in vm1 vm2 vm3; do nvmtool vm power-off $vm; done
"""


def main() -> int:
    """Boot a guest, take its memory, run the session as a shell would, and end with the first command that fails."""
    reason = why_no_guests()
    if reason is not None:
        print(f"no real guests here: {reason}", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="session-", dir=os.environ.get("TMPDIR")))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    try:
        with Guest(work="hot:64M,cold:64M", memory_mib=1024) as guest:
            guest.dump(folder / "guest.raw")
        random_file(folder / "live.raw", 128 * MIB)
        script = "set -e\n" + "".join(f"echo {_quoted(f'$ {line}')}\n{line}\necho\n" for line in SESSION.strip().splitlines())
        return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=False).returncode
    finally:
        for link in (folder / "host/memory", folder / "host/volatile"):
            if link.is_symlink():
                shutil.rmtree(Path(os.path.realpath(link)).parent, ignore_errors=True)
        shutil.rmtree(folder)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    sys.exit(main())
