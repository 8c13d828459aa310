"""The rows about swap files and reservations; e4defrag (e2fsprogs) and loop-mounted XFS (root, xfsprogs) are optional."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import BLOCK, ENVIRONMENT, GIB, MIB, REPEATS, Row, nvmtool, process, seconds, speed_row

from nvmtool.media.journal import run_arrays
from nvmtool.media.pagefile import PageFile, page_buffer
from nvmtool.swap.create import create_swap
from nvmtool.swap.defrag import Defragmenter, plan_defrag
from nvmtool.swap.frames import slot_words, storage_words
from nvmtool.swap.latency import Latencies
from nvmtool.swap.layout import reservation_areas
from nvmtool.swap.moves import Mover, Moves
from nvmtool.swap.pattern import Pattern
from nvmtool.swap.reservation import create_reservation
from nvmtool.swap.swapfile import SwapFile
from nvmtool.swap.verify import Findings
from nvmtool.swap.vm import Vm
from nvmtool.swap.workload import iter_accesses

if TYPE_CHECKING:
    pass

SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
E4DEFRAG = shutil.which("e4defrag", path=SBIN)
SEQUENTIAL_BYTES = 512 * MIB
LENT_BLOCKS = 10_000


def drop_caches() -> None:
    """Let reads come from the disk, where swapped pages are; needs root."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")


def no_peer(work: str, target: str, note: str) -> Row:
    """Return the row of what cannot be measured here."""
    return {"work": work, "ours_s": None, "peer_s": None, "ratio": None, "target": target, "met": None, "note": note}


@contextmanager
def xfs(folder: Path, size: int) -> Iterator[Path]:
    """Mount an XFS with reflinks on a file of some size; needs root."""
    image, mounted = folder / "xfs.img", folder / "xfs"
    with image.open("wb") as file:
        file.truncate(size)
    mounted.mkdir()
    subprocess.run([shutil.which("mkfs.xfs", path=SBIN), "-q", "-m", "reflink=1", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    try:
        yield mounted
    finally:
        gc.collect()  # mappings keep the file system busy
        subprocess.run(["umount", mounted], check=True)
        image.unlink()
        mounted.rmdir()


class RecordingMover(Mover):
    """Notes every plan, so that the peer can move the same pages to the same places."""

    def __init__(self, swap: SwapFile, plans: list[Moves]) -> None:
        super().__init__(swap)
        self._plans = plans

    def plan(self, most: int) -> Moves:
        """Plan, and note it."""
        moves = super().plan(most)
        if len(moves.sources):
            self._plans.append(moves)
        return moves


def be_a_vm(path: Path, bench: Any) -> None:
    """Run a VM with half of its memory in memory, and tell the p99 of its faults since the last time it was asked."""
    with SwapFile.open(path, writable=True) as swap:
        swap.serve()
        findings = Findings()
        vm = Vm(swap, Pattern(swap.fields["uuid"]), swap.nframes // 2, stamps=None, findings=findings)
        questions = 0
        for frames, writes in iter_accesses("uniform", swap.nframes, seed=3, write_ratio=0.5):
            for start in range(0, len(frames), 64):
                vm.access(frames[start : start + 64], writes[start : start + 64])
            if questions == 0 and vm.swap_outs:
                bench.send("ready")
                questions, vm.latencies = 1, Latencies()
            if bench.poll():
                bench.recv()
                questions += 1
                if questions > 3:
                    break
                bench.send(vm.latencies.percentile_us(990))
                vm.latencies = Latencies()
        vm.swap_out_all()
        assert not findings.errors


class SwapRows:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sparse_file(self, name: str) -> Path:
        """Make a swap file of 1 GiB with 25 % of its slots used at random."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        create_swap(path, memory_bytes=GIB)
        generator = np.random.default_rng(1)
        frames = generator.permutation(GIB // BLOCK)
        pages = page_buffer(4096)
        pages[:] = generator.integers(0, 256, pages.shape, np.uint8)
        rows = [page.data for page in pages]
        with SwapFile.open(path, writable=True) as swap:
            for start in range(0, len(frames), swap.max_batch):
                swap.swap_out(frames[start : start + swap.max_batch], rows[: swap.max_batch])
            leaving = generator.permutation(frames)[: len(frames) * 3 // 4]
            for start in range(0, len(leaving), 8192):
                swap.forget(leaving[start : start + 8192])
                swap.commit()
        return path

    def defrag(self) -> Row:
        """Offline defragmentation against reading and writing the same pages in the same places, and nothing else."""
        plans: list[Moves] = []
        return speed_row(
            "defrag, idle, 1 GiB 25 % used / plain preadv and pwritev, cold",
            lambda: self._defrag_once(plans),
            lambda: self._plain_once(plans),
            0.6,
        )

    def _defrag_once(self, plans: list[Moves]) -> float:
        path = self.sparse_file("ours.vswp")
        self._copy(path, self.folder / "plain.vswp")
        plans.clear()
        drop_caches()
        started = time.perf_counter()
        with SwapFile.open(path, writable=True) as swap:
            mover = RecordingMover(swap, plans)
            result = Defragmenter(mover, swap.pages, swap.data_offset, swap.block_bytes, live=False).run()
        spent = time.perf_counter() - started
        assert result.blocks_after == result.blocks_optimal and result.pages_moved == result.pages_optimal
        self.data_offset = swap.data_offset
        return spent

    def _copy(self, source: Path, target: Path) -> None:
        target.unlink(missing_ok=True)
        subprocess.run(["cp", "--sparse=always", source, target], check=True)

    def _plain_once(self, plans: list[Moves]) -> float:
        fd = os.open(self.folder / "plain.vswp", os.O_RDWR)
        drop_caches()
        started = time.perf_counter()
        for moves in plans:
            buffer = page_buffer(len(moves.sources))
            for act, slots in ((os.preadv, np.sort(moves.sources)), (os.pwritev, np.sort(moves.targets))):
                row = 0
                for first, count in zip(*(each.tolist() for each in run_arrays(slots)), strict=True):
                    act(fd, [buffer[row : row + count].data.cast("B")], self.data_offset + first * BLOCK)
                    row += count
        os.fdatasync(fd)
        spent = time.perf_counter() - started
        os.close(fd)
        return spent

    def e4defrag(self) -> Row:
        """The command against e4defrag on the same pages, which moves everything and frees nothing.

        On the swap file itself e4defrag does nothing: a storage block is one extent.
        """
        if E4DEFRAG is None:
            return no_peer("nvmtool defrag / e4defrag", ">= 3 x", "needs e2fsprogs")
        freed = {}

        def ours() -> float:
            path = self.sparse_file("ours.vswp")
            self._copy_used(path, self.folder / "e4.vswp")
            before = path.stat().st_blocks
            drop_caches()
            process(nvmtool("defrag", "-h"))  # the program is in memory, the pages are not
            spent = process(nvmtool("defrag", path, "--quiet"))
            freed["ours"] = (before - path.stat().st_blocks) * 512 // MIB
            return spent

        def theirs() -> float:
            path = self.folder / "e4.vswp"
            before = path.stat().st_blocks
            drop_caches()
            subprocess.run([E4DEFRAG], capture_output=True, check=False)
            spent = process([E4DEFRAG, path])
            freed["e4defrag"] = (before - path.stat().st_blocks) * 512 // MIB
            return spent

        row = speed_row("nvmtool defrag, the whole command / e4defrag, the same pages, free slots as holes", ours, theirs, 3.0)
        return {**row, "note": ", ".join(f"{who} freed {mib} MiB" for who, mib in freed.items())}

    def _copy_used(self, source: Path, target: Path) -> None:
        """Copy the pages in use alone, one by one, so that free slots are holes: what a file looks like that is thin by the page."""
        target.unlink(missing_ok=True)
        page = page_buffer(1)
        with SwapFile.open(source) as swap, target.open("wb", buffering=0) as file:
            states = swap.states_of_range(0, swap.nframes)
            file.truncate(source.stat().st_size)
            for slot in states[states >= 0].tolist():
                swap.pages.read(swap.offset_of(slot), [page.data.cast("B")])
                os.pwrite(file.fileno(), page.data.cast("B"), swap.offset_of(slot))
            os.fsync(file.fileno())

    def choose(self) -> Row:
        """Choosing what to empty in a file of 1 TiB, opening included, against a scan of its frame table."""
        path = self.folder / "large.vswp"
        create_swap(path, memory_bytes=1 << 40)
        fields = self._fill_tables(path)

        def ours() -> float:
            def choose() -> None:
                with SwapFile.open(path) as swap:
                    plan_defrag(swap)

            return seconds(choose)

        def theirs() -> float:
            return seconds(lambda: self._scan(path, fields))

        row = speed_row("choose what to empty, 1 TiB file, open included / scan of its frame table", ours, theirs, 20.0)
        path.unlink()
        return row

    def _fill_tables(self, path: Path) -> dict[str, Any]:
        """Let a quarter of the slots be used, at random, in words that are right."""
        with SwapFile.open(path) as swap:
            fields, per_block = swap.fields, swap.slots_per_block
        generator = np.random.default_rng(2)
        with path.open("r+b", buffering=0) as file:
            used = np.zeros(fields["nblocks"], np.int64)
            for first in range(0, fields["nframes"], 1 << 20):
                frames = np.arange(first, first + (1 << 20))[generator.random(1 << 20) < 0.25]
                words = np.zeros(1 << 20, np.uint64)
                words[frames - first] = slot_words(frames, frames)
                used += np.bincount(frames // per_block, minlength=len(used))
                file.seek(fields["frame_start"] * BLOCK + first * 8)
                file.write(words.data)
            file.seek(fields["storage_start"] * BLOCK)
            file.write(storage_words(np.arange(len(used)), used, used > 0).data)
        return fields

    def _scan(self, path: Path, fields: dict[str, Any]) -> None:
        """Count the used slots of each block from the frame words, as quick as numpy can, trusting every word."""
        words = np.memmap(path, np.uint64, "r", fields["frame_start"] * BLOCK, (fields["nframes"],))
        shift = fields["slots_per_block"].bit_length() - 1
        used = np.zeros(fields["nblocks"] + 1, np.int64)
        for first in range(0, len(words), 1 << 20):
            part = words[first : first + (1 << 20)]
            slots = (part[part >> np.uint64(60) == 4] >> np.uint64(8) & np.uint64((1 << 52) - 1)).astype(np.int64) - 1
            used += np.bincount(slots >> shift, minlength=len(used))

    def swap_in(self) -> Row:
        """p99 of a running VM's faults while it is defragmented, against the same VM just before."""
        quiet, busy = zip(*(self._p99() for _ in range(REPEATS)), strict=True)
        mine, peer = statistics.median(busy), statistics.median(quiet)
        return {
            "work": "fault p99 of a running VM, 512 MiB half in memory: during defrag / before",
            "ours_s": mine / 1e6,
            "peer_s": peer / 1e6,
            "ratio": mine / peer,
            "target": "<= 2 x",
            "met": mine <= 2 * peer,
        }

    def _p99(self) -> tuple[float, float]:
        """Return the p99 of a VM's faults in microseconds, without a defragmentation and during one; each process is real."""
        path = self._fresh("vm.vswp")
        create_swap(path, memory_bytes=GIB // 2)
        fill = nvmtool("swap", "run", path, "--workload", "sweep", "--ops", GIB // 2 // BLOCK, "--resident", "64M", "--quiet")
        subprocess.run(fill, check=True, env=ENVIRONMENT)
        ours, vm = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=be_a_vm, args=(path, vm))
        process.start()
        ours.recv()  # half of the memory is in memory
        time.sleep(3)
        ours.send("next")
        quiet = ours.recv()
        done = subprocess.run(nvmtool("defrag", path, "--json"), check=True, env=ENVIRONMENT, capture_output=True)
        ours.send("next")
        busy = ours.recv()
        ours.send("next")
        process.join()
        result = json.loads(done.stdout)
        assert result["live"] and result["complete"] and result["pages_moved"] > 10_000, result
        return quiet, busy

    def swap_out(self) -> Row:
        """Sequential swap-out against contiguous pwritev and one fdatasync of the same bytes."""
        npages = SEQUENTIAL_BYTES // BLOCK
        pages = page_buffer(npages)
        pages[:] = np.random.default_rng(0).integers(0, 256, BLOCK, np.uint8)
        rows = [page.data for page in pages]

        def ours() -> float:
            path = self._fresh("out.vswp")
            create_swap(path, memory_bytes=SEQUENTIAL_BYTES)
            os.sync()
            with SwapFile.open(path, writable=True) as swap:
                most = swap.max_batch
                return seconds(lambda: [swap.swap_out(np.arange(at, at + most), rows[at : at + most]) for at in range(0, npages, most)])

        def theirs() -> float:
            fd = os.open(self._fresh("plain"), os.O_RDWR | os.O_CREAT)
            os.sync()
            started = time.perf_counter()
            for at in range(0, npages, 1024):
                os.pwritev(fd, rows[at : at + 1024], at * BLOCK)
            os.fdatasync(fd)
            spent = time.perf_counter() - started
            os.close(fd)
            return spent

        return speed_row("swap out 512 MiB in order / pwritev and fdatasync of the same", ours, theirs, 0.7)

    def lend(self) -> Row:
        """Lending 10,000 blocks of 1 MiB by move on XFS, 16 at a time, against copying them."""
        work = f"lend {LENT_BLOCKS:,} blocks of 1 MiB by move on XFS / copy and punch them"
        if os.geteuid() != 0 or shutil.which("mkfs.xfs", path=SBIN) is None:
            return {
                "work": work,
                "ours_s": None,
                "peer_s": None,
                "ratio": None,
                "target": "> 1 x",
                "met": None,
                "note": "needs root, xfsprogs",
            }
        with xfs(self.folder, 2 * LENT_BLOCKS * MIB) as mounted:
            reservation, path = mounted / "pool.rsv", mounted / "vm.vswp"
            create_reservation(reservation, LENT_BLOCKS * MIB, MIB)
            create_swap(path, memory_bytes=LENT_BLOCKS * MIB, reservation=reservation)
            blocks = [np.arange(at, min(at + 16, LENT_BLOCKS)) for at in range(0, LENT_BLOCKS, 16)]

            def ours() -> float:
                with SwapFile.open(path, writable=True) as swap:
                    return self._lend_and_return(swap, blocks)

            row = speed_row(work, ours, lambda: self._copy_blocks(reservation, mounted / "copy", blocks), 1.0)
        rates = [f"{LENT_BLOCKS / row[side]:,.0f}" for side in ("ours_s", "peer_s")]
        return {**row, "note": f"{rates[0]} blocks/s against {rates[1]}"}

    def _lend_and_return(self, swap: SwapFile, blocks: list[np.ndarray]) -> float:
        def lend() -> None:
            for part in blocks:
                swap.storage.take(part)
                swap.pages.fence()

        spent = seconds(lend)
        swap.storage.give_back(np.arange(LENT_BLOCKS))
        return spent

    def _copy_blocks(self, source: Path, target: Path, blocks: list[np.ndarray]) -> float:
        """Copy blocks to another file past the page cache, and punch them at the source, which is filled again afterwards."""
        fds = [os.open(source, os.O_RDWR), os.open(target, os.O_RDWR | os.O_CREAT)]
        lenders, borrowers = (PageFile(path, fd, writable=True) for path, fd in zip((source, target), fds, strict=True))
        buffer = page_buffer(16 * MIB // BLOCK).reshape(-1).data
        first = reservation_areas(MIB // BLOCK)["data_start"] * BLOCK

        def copy() -> None:
            for part in blocks:
                offset, length = int(part[0]) * MIB, len(part) * MIB
                lenders.read(first + offset, [buffer[:length]])
                borrowers.write(offset, [buffer[:length]])
                borrowers.fence()
                lenders.punch(first + offset, length)
                lenders.fence()

        spent = seconds(copy)
        borrowers.close()
        os.close(fds[1])
        target.unlink()
        os.sync()
        for part in blocks:
            lenders.write(first + int(part[0]) * MIB, [buffer[: len(part) * MIB]])
        lenders.fence()
        lenders.close()
        os.close(fds[0])
        return spent

    def _fresh(self, name: str) -> Path:
        path = self.folder / name
        path.unlink(missing_ok=True)
        return path


ROWS: dict[str, Callable[[SwapRows], Row]] = {
    "defrag": SwapRows.defrag,
    "e4defrag": SwapRows.e4defrag,
    "choose": SwapRows.choose,
    "swap-in": SwapRows.swap_in,
    "swap-out": SwapRows.swap_out,
    "lend": SwapRows.lend,
}
