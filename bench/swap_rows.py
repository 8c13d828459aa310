"""The rows about swap files and reservations; e4defrag (e2fsprogs) and loop-mounted XFS (root, xfsprogs) are optional."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import BLOCK, ENVIRONMENT, GIB, MIB, REPEATS, Row, nvmtool, process, seconds, speed_row

from nvmtool.media.journal import run_arrays
from nvmtool.media.pagefile import page_buffer
from nvmtool.swap.create import create_swap
from nvmtool.swap.defrag import Defragmenter, plan_defrag
from nvmtool.swap.frames import slot_words, storage_words
from nvmtool.swap.moves import Mover, Moves
from nvmtool.swap.swapfile import SwapFile

if TYPE_CHECKING:
    pass

E4DEFRAG = shutil.which("e4defrag") or shutil.which("e4defrag", path="/usr/sbin:/sbin")
SEQUENTIAL_BYTES = 512 * MIB
LENT_BLOCKS = 10_000


def drop_caches() -> None:
    """Let reads come from the disk, where swapped pages are; needs root."""
    os.sync()
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")


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
        """The command against e4defrag on the same file, which moves everything and frees nothing."""
        if E4DEFRAG is None:
            return {"work": "nvmtool defrag / e4defrag", "ours_s": None, "peer_s": None, "ratio": None, "target": ">= 3 x", "met": None}
        freed = {}

        def ours() -> float:
            path = self.sparse_file("ours.vswp")
            self._copy(path, self.folder / "e4.vswp")
            before = path.stat().st_blocks
            drop_caches()
            spent = process(nvmtool("defrag", path, "--quiet"))
            freed["ours"] = (before - path.stat().st_blocks) * 512 // MIB
            return spent

        def theirs() -> float:
            path = self.folder / "e4.vswp"
            before = path.stat().st_blocks
            drop_caches()
            spent = process([E4DEFRAG, path])
            freed["e4defrag"] = (before - path.stat().st_blocks) * 512 // MIB
            return spent

        row = speed_row("nvmtool defrag, the whole command / e4defrag on the same file", ours, theirs, 3.0)
        return {**row, "note": ", ".join(f"{who} freed {mib} MiB" for who, mib in freed.items())}

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
        """p99 of a running VM's faults beside a defragmentation, against the same VM alone."""
        path = self.folder / "vm.vswp"
        quiet, busy = [], []
        for _ in range(REPEATS):
            quiet.append(self._p99(path, beside=False))
            busy.append(self._p99(path, beside=True))
        mine, peer = statistics.median(busy), statistics.median(quiet)
        return {
            "work": "fault p99 of swap run beside defrag / alone",
            "ours_s": mine / 1e6,
            "peer_s": peer / 1e6,
            "ratio": mine / peer,
            "target": "<= 2 x",
            "met": mine <= 2 * peer,
        }

    def _p99(self, path: Path, *, beside: bool) -> float:
        """Run a VM on a file that uniform faults make sparse, with a defragmentation beside it or not."""
        path.unlink(missing_ok=True)
        create_swap(path, memory_bytes=GIB)
        run = nvmtool("swap", "run", path, "--json", "--seed", 3)
        subprocess.run(
            [*run, "--workload", "sweep", "--ops", GIB // BLOCK, "--resident", "64M"], check=True, capture_output=True, env=ENVIRONMENT
        )
        vm = subprocess.Popen([*run, "--resident", "512M", "--seconds", "40"], stdout=subprocess.PIPE, env=ENVIRONMENT)
        time.sleep(15)
        vm.terminate()
        out, _ = vm.communicate()
        return float(json.loads(out)["faults_p99_us"])

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
}
