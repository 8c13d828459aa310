"""Check a host: records, maps, the frame table against the maps, memory, promises of swap; and mend what is volatile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, FormatError, NotFoundError, NvmtoolError, RefusedError
from ..findings import CheckResult, Finding
from ..swap.check import check_swap
from ..swap.reservation_check import check_reservation
from ..swap.reservationfile import ReservationFile
from ..swap.swapfile import SwapFile
from . import layout as lay
from .accounting import Account, account_quietly
from .admission import guarantees
from .power import promised_pages
from .rebuild import has_running_part, iter_running, iter_saved

if TYPE_CHECKING:
    from .host import Host
    from .records import Vm


def check_host(host: Host, *, repair: bool = False) -> CheckResult:
    """Check every structure while nothing moves; running VMs pause.

    `repair` makes the frame table anew from the maps, and brings swap storage in order that a killed process was borrowing; it needs a host
    opened for writing. Nothing else of a host can be mended by what is known. Raises BusyError.
    """
    findings = _findings(host)
    repaired = 0
    if repair and findings:
        if any(each.structure == "frame table" for each in findings):
            # As if a process had been killed while it changed the table: the next turn makes it anew.
            host.frames.put("working", 1)
        with host.frames_turn():
            pass
        if any(each.structure.startswith(("reservation: ", "swap file: ")) for each in findings):
            _mend_swap(host)
        before = len(findings)
        findings = _findings(host)
        repaired = before - len(findings)
    leaked = sum(each.severity == "leak" for each in findings)
    return CheckResult(not findings, findings, leaked, repaired)


def _mend_swap(host: Host) -> None:
    """Open the swap files of VMs once, which brings in order what a killed process left, and mend what reservations say of others."""
    for vm in host.all_vms():
        with host.vm_turns([vm.number]):
            path = host.swap_path(vm)
            if path.exists():
                SwapFile.open(path, writable=True, reservation=host.reservation_path(host.pool_numbered(vm.pool))).close()
    for pool in host.all_pools():
        check_reservation(host.reservation_path(pool), repair=True)


def _findings(host: Host) -> list[Finding]:
    try:
        with host.quiet():
            return list(_iter_findings(host))
    except DamagedError as error:  # of a record, without which nothing else can be looked at
        return [Finding("error", "record", str(host.path), str(error))]


def _iter_findings(host: Host) -> Iterator[Finding]:
    host.all_pools()
    vms = host.all_vms()
    try:
        host.require_memory()
    except (RefusedError, FormatError, DamagedError) as error:
        yield Finding("error", "machine memory", str(host.path), str(error))
        return
    yield from _iter_map_findings(host, vms)
    yield from _iter_table_findings(host)
    found = guarantees(host)
    if found.total > found.capacity:
        yield Finding(
            "error",
            "guarantees",
            str(host.path),
            f"{found.total} pages are guaranteed, the host has {found.capacity}",
        )
    yield from _iter_swap_findings(host, vms)


def _iter_map_findings(host: Host, vms: list[Vm]) -> Iterator[Finding]:
    for vm in vms:
        try:
            if vm.cursor:
                saved = sum(len(mpns) for mpns, _ in iter_saved(host, vm))
                if saved != vm.saved_pages and not vm.recount:
                    what = f"names {saved} frames, the VM's record counts {vm.saved_pages}"
                    yield Finding("error", "saved map", str(host.saved_map_path(vm)), what)
            if has_running_part(vm):
                host.map_of(vm).close()
                for mpns, _ in iter_running(host, vm):
                    host.frames.require(mpns)
        except NvmtoolError as error:
            yield Finding("error", "map", f"VM {vm.name}", str(error))


def _iter_table_findings(host: Host) -> Iterator[Finding]:
    where = str(host.path / "volatile")
    try:
        found = account_quietly(host)
    except NotFoundError as error:
        yield Finding("leak", "frame table", where, str(error))
        return
    except (DamagedError, FormatError) as error:
        yield Finding("error", "frame table", where, str(error))
        return
    yield from _iter_account_findings(found, where)
    suspended, counted = sum(vm.cursor > 0 for vm in host.all_vms()), host.frames.get("suspended")
    if suspended != counted:
        yield Finding("error", "frame table", where, f"counts {counted} suspended VMs, there are {suspended}")
    yield from _iter_parked(host, where)


def _iter_account_findings(found: Account, where: str) -> Iterator[Finding]:
    if found.difference_pages:
        what = f"{abs(found.difference_pages)} frames are {'lost' if found.difference_pages > 0 else 'counted twice'}"
        yield Finding("leak" if found.difference_pages > 0 else "error", "frame table", where, what)
    if found.refs_difference:
        what = f"counts of shared frames are {abs(found.refs_difference)} too {'high' if found.refs_difference > 0 else 'low'}"
        yield Finding("leak" if found.refs_difference > 0 else "error", "frame table", where, what)


def _iter_parked(host: Host, where: str) -> Iterator[Finding]:
    parked = host.frames.of_kind(lay.PARKED)
    if len(parked) and not host.frames.get("suspended"):
        yield Finding("leak", "frame table", where, f"{len(parked)} frames are parked, and no VM is suspended")
    named = [mpns[shared] for vm in host.all_vms() if vm.cursor for mpns, shared in iter_saved(host, vm)]
    every = np.concatenate([np.empty(0, np.int64), *named])
    lost = np.flatnonzero(~np.isin(host.frames.kinds(every), (lay.PARKED, lay.SHARED)))
    if len(lost):
        yield Finding("error", "frame table", where, f"machine frame {int(every[lost[0]])} is named by a suspended VM, and not kept for it")


def _iter_swap_findings(host: Host, vms: list[Vm]) -> Iterator[Finding]:
    for pool in host.all_pools():
        path = host.reservation_path(pool)
        try:
            given_up = _given_up(host, path)
            for finding in check_reservation(path).findings:
                severity = "leak" if finding.where in given_up else finding.severity
                yield Finding(severity, f"reservation: {finding.structure}", finding.where, finding.what)
        except NvmtoolError as error:
            yield Finding("error", "reservation", str(path), str(error))
    for vm in vms:
        swap = host.swap_path(vm)
        if not swap.exists():
            promised = 0
        elif vm.is_off:
            yield Finding("leak", "swap file", str(swap), "its VM is off; vm power-off deletes it")
            continue
        else:
            for finding in check_swap(swap, reservation=host.reservation_path(host.pool_numbered(vm.pool))).findings:
                yield Finding(finding.severity, f"swap file: {finding.structure}", finding.where, finding.what)
            promised = promised_pages(host, vm)
        if not vm.is_off and vm.granted_pages + promised < vm.memory_pages:
            what = f"{vm.granted_pages} pages are granted and {promised} of swap promised, its memory has {vm.memory_pages}"
            yield Finding("error", "promise", f"VM {vm.name}", what)


def _given_up(host: Host, reservation: Path) -> set[str]:
    """Return, as findings name them, the lenders whose VM is off: what is in their swap files counts for nothing."""
    off = {host.swap_path(vm).resolve() for vm in host.all_vms() if vm.is_off}
    with ReservationFile.open(reservation, writable=False) as file:
        return {f"lender {lender.number}" for lender in file.lenders if file.lenders.location(lender).resolve() in off}
