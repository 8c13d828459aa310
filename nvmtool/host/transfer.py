"""Load a guest's raw memory into a running VM, and dump a VM's memory into a raw file, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DamagedError, NoSpaceError, RefusedError, UsageError
from ..media import sysio
from ..media.imagefile import open_file
from ..media.journal import run_arrays
from ..media.newfile import NewFile
from ..media.pagefile import page_buffer
from ..media.store import translated
from ..media.stream import STREAM, OutStream
from ..swap.swapfile import SwapFile
from . import layout as lay
from .balance import find_frames
from .maps import BATCH
from .rebuild import has_running_part
from .space import Space

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .host import Host
    from .records import Vm

    Ints = NDArray[np.int64]
    Progress = Callable[[int, int, str], None] | None

_PAGES = 1024


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading did, in pages: those with data, and those that are zeros and take no memory."""

    data_pages: int
    zero_pages: int


def load(host: Host, name: str, source: str | Path, *, progress: Progress = None) -> Loaded:
    """Let a running VM's memory be what a raw file holds; what it held before is gone. Pages of zeros take no memory.

    Where memory runs short, pages go to the VM's swap file. Raises RefusedError for a VM that does not run, UsageError for a file of
    another size, NoSpaceError; cut off in between, the memory is part old and part new: load again.
    """
    source = Path(source)
    fd = open_file(source, writable=False)
    try:
        with host.vm_turns([host.vm(name).number]):
            vm = host.vm(name)
            if vm.state != lay.ON:
                raise RefusedError(f"VM {name}: is {vm.state_name}; power it on first")
            size = sysio.file_size(fd)
            if size != vm.memory_pages * lay.PAGE:
                raise UsageError(f"{source}: has {size} bytes, the memory of VM {name} has {vm.memory_pages * lay.PAGE}")
            return _Load(Space(host, vm), source, fd).run(progress)
    finally:
        os.close(fd)


class _Load:
    """One loading; the space may become another when others must make room."""

    def __init__(self, space: Space, source: Path, fd: int) -> None:
        self.space, self.source, self.fd = space, source, fd

    def run(self, progress: Progress) -> Loaded:
        buffer = page_buffer(_PAGES)
        npages, data = self.space.vm.memory_pages, 0
        with ExitStack() as opened:
            opened.push(lambda *error: self.space.close(in_order=error[0] is None))
            for start in range(0, npages, _PAGES):
                rows = buffer[: min(_PAGES, npages - start)]
                with translated(self.source):
                    if os.preadv(self.fd, [rows.reshape(-1).data], start * lay.PAGE) != rows.size:
                        raise UsageError(f"{self.source}: became shorter while it was read")
                filled = rows.view("<u8").any(axis=1)
                ppns = np.arange(start, start + len(rows))
                self._replace(ppns[filled], rows[filled])
                self._clear(ppns[~filled])
                data += int(filled.sum())
                if progress is not None:
                    progress((start + len(rows)) * lay.PAGE, npages * lay.PAGE, "bytes")
        return Loaded(data, npages - data)

    def _replace(self, ppns: Ints, rows: NDArray[np.uint8]) -> None:
        if not len(ppns):
            return
        self.space.drop(ppns)
        done = 0
        while done < len(ppns):
            # No more at once than are free: what does not fit makes room in smaller parts.
            batch = ppns[done : done + max(self.space.host.frames.free_pages, 1)]
            try:
                mpns = self.space.own_many(batch)
            except NoSpaceError:
                self.space = find_frames(self.space, len(ppns) - done)
                continue
            self.space.memory.write(mpns, rows[done : done + len(batch)])
            self.space.name(batch, mpns)
            done += len(batch)

    def _clear(self, ppns: Ints) -> None:
        """Let page frames read as zeros: neither in memory nor in a slot."""
        self.space.drop(ppns)
        swap = self.space.swap
        if swap is not None:
            swapped = ppns[swap.states(ppns) >= 0]
            if len(swapped):
                # In memory again by the file, and in no frame by the map: an untouched page, which reads as zeros.
                swap.forget(swapped)
                swap.commit()


def dump(host: Host, name: str, target: str | Path, *, progress: Progress = None) -> int:
    """Write the memory of a VM that is not off to a new raw file, sparse where it is zeros, or to stdout (`-`); return the bytes of data.

    A running VM pauses for it, and nothing moves. The file appears whole or not at all. Raises RefusedError for a VM that is off or between
    two states, NoSpaceError or StorageError.
    """
    with host.vm_turns([host.vm(name).number]):
        vm = host.vm(name)
        if vm.state not in (lay.ON, lay.SUSPENDED):
            raise RefusedError(f"VM {name}: is {vm.state_name}")
        size = vm.memory_pages * lay.PAGE
        pieces = iter_memory(host, vm, progress)
        if str(target) == STREAM:
            return _dump_stream(1, size, pieces)
        new = NewFile(Path(target))
        try:
            if new.is_stream:
                with translated(new.path):
                    return _dump_stream(new.fd, size, pieces)
            new.allocate(size, sparse=True)
            new.clear(size)
            written = sum(_write_rows(new, ppns, rows) for ppns, rows in pieces)
            new.publish()
        finally:
            new.close()
        return written


def iter_memory(host: Host, vm: Vm, progress: Progress) -> Iterator[tuple[Ints, NDArray[np.uint8]]]:
    """Yield (PPNs, their contents) of the page frames that are in memory or swapped out, ascending; what is left out reads as zeros.

    The contents are good until the next ones are asked for. Raises DamagedError for a damaged map, at the end for one that lacks words.
    """
    count = 0
    buffer, mpns = page_buffer(_PAGES), np.empty(BATCH, np.int64)
    with ExitStack() as opened:
        found = host.map_of(vm) if has_running_part(vm) else host.saved_map_of(vm)
        opened.callback(found.close)
        swap = opened.enter_context(SwapFile.open(host.swap_path(vm))) if host.swap_path(vm).exists() else None
        for start in range(0, vm.memory_pages, BATCH):
            behind = min(start + BATCH, vm.memory_pages)
            mpns[:] = -1
            for ppns, present, _ in found.iter_present(start, behind):
                mpns[ppns - start] = present
                count += len(present)
            swapped = swap.states(np.arange(start, behind)) >= 0 if swap is not None else np.zeros(behind - start, bool)
            filled = np.flatnonzero((mpns[: behind - start] >= 0) | swapped)
            for first in range(0, len(filled), _PAGES):
                batch = filled[first : first + _PAGES]
                _read_pages(host, swap, batch + start, mpns[batch], buffer[: len(batch)])
                yield batch + start, buffer[: len(batch)]
            if progress is not None:
                progress(behind, vm.memory_pages, "pages")
    if vm.state == lay.SUSPENDED and count != vm.saved_pages and not vm.recount:
        raise DamagedError(f"{host.saved_map_path(vm)}: names {count} frames, the VM's record counts {vm.saved_pages}")


def _read_pages(host: Host, swap: SwapFile | None, ppns: Ints, mpns: Ints, rows: NDArray[np.uint8]) -> None:
    """Fill rows with the contents of page frames: where the map names a frame (MPN >= 0) from it, else from the swap file."""
    inside = mpns >= 0
    if inside.all():
        host.memory.read(mpns, rows)
        return
    assert swap is not None
    outside = page_buffer(int((~inside).sum()))
    swap.read_pages(ppns[~inside], outside)
    rows[~inside] = outside
    if inside.any():
        held = page_buffer(int(inside.sum()))
        host.memory.read(mpns[inside], held)
        rows[inside] = held


def _write_rows(new: NewFile, ppns: Ints, rows: NDArray[np.uint8]) -> int:
    filled = rows.view("<u8").any(axis=1)
    ppns, rows = ppns[filled], rows[filled]
    done = 0
    with translated(new.path):
        for first, count in zip(*(each.tolist() for each in run_arrays(ppns)), strict=True) if len(ppns) else ():
            os.pwrite(new.fd, rows[done : done + count].reshape(-1).data, first * lay.PAGE)
            done += count
    return done * lay.PAGE


def _dump_stream(fd: int, size_bytes: int, pieces: Iterator[tuple[Ints, NDArray[np.uint8]]]) -> int:
    """Write everything in order to what takes only that; a reader that is slow keeps the VM waiting."""
    stream, at, data = OutStream(fd), 0, 0
    for ppns, rows in pieces:
        done = 0
        for first, count in zip(*(each.tolist() for each in run_arrays(ppns)), strict=True):
            stream.write_zeros(first * lay.PAGE - at)
            stream.write(rows[done : done + count].reshape(-1).data)
            done += count
            at = (first + count) * lay.PAGE
        data += rows.size
    stream.write_zeros(size_bytes - at)
    return data
