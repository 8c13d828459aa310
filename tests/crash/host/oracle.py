"""The full judgement of one crash state of a host's file, by the product's own ways in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from nvmtool.errors import NvmtoolError
from nvmtool.host import layout as lay
from nvmtool.host.accounting import account
from nvmtool.host.check import check_host
from nvmtool.host.create import create_vm
from nvmtool.host.host import HOST_FILE, Host
from nvmtool.host.power import power_on
from nvmtool.host.suspend import restart

from ..borrowed.workloads import folder
from ..subject import Verdict
from .workloads import MEDIUM, PAGE, copy_of_base, digest_of, small_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..trace import Media

_OTHER_BOOT = "8f0c5e0e-6a5b-4ab3-9d0d-1d8f1e0c7a11\n"


class HostOracle:
    """Judges states as they are after a loss of power: the memory is another machine life's, everything else is as in the base."""

    def __init__(self) -> None:
        """Make a folder."""
        self._folder = folder()
        self._where = Path(self._folder.name)
        (self._where / "boot").write_text(_OTHER_BOOT)

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def judge(self, media: Media) -> Verdict:
        """Return what a state shows and whether all promises hold in it; any exception is a broken promise."""
        return self._safely(media, self._judge)

    def glance(self, media: Media) -> Verdict:
        """Return what an orderly end has left."""
        return self._safely(media, lambda path: Verdict(digest_of(path)))

    def _safely(self, media: Media, look: Callable[[Path], Verdict]) -> Verdict:
        shutil.rmtree(self._where / "host", ignore_errors=True)
        path = copy_of_base(self._where)
        (path / HOST_FILE).write_bytes(media[MEDIUM])
        try:
            with small_tables(), mock.patch.object(lay, "_BOOT_ID", self._where / "boot"):
                return look(path)
        except NvmtoolError as error:
            return Verdict("", f"does not open: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - a traceback is what is looked for
            return Verdict("", f"traceback: {type(error).__name__}: {error}")

    def _judge(self, path: Path) -> Verdict:
        before = (path / HOST_FILE).read_bytes()
        digest = digest_of(path)
        if (path / HOST_FILE).read_bytes() != before:
            return Verdict(digest, "a reading command wrote")
        with Host.open(path, writable=True, lost=True):
            pass
        if digest_of(path) != digest:
            return Verdict(digest, "recovery shows another state")
        recovered = (path / HOST_FILE).read_bytes()
        with Host.open(path, writable=True, lost=True):
            pass
        if (path / HOST_FILE).read_bytes() != recovered:
            return Verdict(digest, "opening again changed something")
        return Verdict(digest, self._go_on(path))

    def _go_on(self, path: Path) -> str:
        """Give up what was in memory, and make and start another VM."""
        with Host.open(path, writable=True, lost=True) as host:
            names = {vm.name for vm in host.all_vms()}, {pool.name for pool in host.all_pools()}
            restart(host, force=True)
            if not all(vm.is_off for vm in host.all_vms()):
                return "a VM is not off although memory is gone"
            create_vm(host, "probe", memory_bytes=4 * PAGE)
            power_on(host, "probe")
        with Host.open(path) as host:
            if ({vm.name for vm in host.all_vms()} - {"probe"}, {pool.name for pool in host.all_pools()}) != names:
                return "VMs or pools are gone after the restart"
            found = account(host)
            if (found.difference_pages, found.refs_difference) != (0, 0):
                return f"account: {found.difference_pages} pages, {found.refs_difference} references"
            # Swap storage is as in the base, whatever the state says of its VMs, and has suites of its own.
            errors = [each for each in check_host(host).findings if not each.structure.startswith(("reservation", "swap file"))]
            return f"check: {errors[0]}" if errors else ""
