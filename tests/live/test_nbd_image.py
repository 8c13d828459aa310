"""What becomes of an image and of its clients when NVM is full, blocks are damaged, or the image is managed meanwhile."""

from __future__ import annotations

import random
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nvmtool.live.nbd_protocol import Chunk, Command, Error, Flag

from .conftest import BLOCK, MIB, Served
from .nbd_client import Raw


def damage_purged_block(served: Served, contents: bytes) -> None:
    """Flip a byte in the middle of a block of the mass store."""
    held = served.mass.read_bytes()
    at = held.find(contents)
    assert at >= 0 and held.find(contents, at + 1) < 0
    with served.mass.open("r+b") as file:
        file.seek(at + 2000)
        file.write(bytes([contents[2000] ^ 1]))


def purge_with_damage(served: Served, *, bad: int, first: int, count: int) -> list[bytes]:
    """Write blocks, keep them in a snapshot, purge it, and damage one block; return the contents."""
    blocks = [random.Random(number).randbytes(BLOCK) for number in range(count)]
    with Raw(served.socket) as client:
        client.go()
        assert client.write(first * BLOCK, b"".join(blocks), flags=Flag.FUA) == 0
        served.tool("snapshot", "create", served.image, "monday")
        assert client.write(first * BLOCK, bytes(count * BLOCK), flags=Flag.FUA) == 0
    assert served.json("purge", served.image, "--mode", "virtblock")["blocks_purged"] == count
    damage_purged_block(served, blocks[bad])
    return blocks


def test_a_damaged_block_fails_its_own_request_alone_and_is_named(served: Served) -> None:
    first, bad, count = 512 * 3 - 5, 23, 40  # across two tables
    blocks = purge_with_damage(served, bad=bad, first=first, count=count)
    with Raw(served.socket) as plain, Raw(served.socket) as client:
        plain.go("vm1@monday")
        client.go("vm1@monday", structured=True)
        for number in range(count):  # all in flight at once
            client.send(Command.READ, (first + number) * BLOCK, BLOCK, cookie=number)
        for _ in range(count):
            flags, kind, cookie, data = client.chunk()
            if cookie == bad:
                error, said = struct.unpack_from(">IH", data)
                assert (flags, kind, error) == (1, Chunk.ERROR_OFFSET, Error.EIO)
                assert struct.unpack(">Q", data[6 + said :]) == ((first + bad) * BLOCK,)
            else:
                assert (flags, kind, data[8:]) == (1, Chunk.OFFSET_DATA, blocks[cookie])
        # A long read that meets it, unaligned at both ends, says where; without structured replies it is EIO.
        client.send(Command.READ, first * BLOCK + 7, count * BLOCK - 20, cookie=99)
        _, kind, _, data = client.chunk()
        assert kind == Chunk.ERROR_OFFSET and struct.unpack(">Q", data[-8:]) == ((first + bad) * BLOCK,)
        client.send(Command.READ, (first + bad) * BLOCK + 100, 50, cookie=99)
        assert struct.unpack(">Q", client.chunk()[3][-8:]) == ((first + bad) * BLOCK + 100,)
        assert plain.ask(Command.READ, first * BLOCK, count * BLOCK) == Error.EIO
        assert plain.read(first * BLOCK, bad * BLOCK) == b"".join(blocks[:bad])
        assert plain.read((first + bad + 1) * BLOCK, (count - bad - 1) * BLOCK) == b"".join(blocks[bad + 1 :])
    assert f"vm1@monday: read of {BLOCK} bytes at {(first + bad) * BLOCK} fails at {(first + bad) * BLOCK}: " in served.log
    with Raw(served.socket) as client:
        client.go()
        assert client.read(first * BLOCK, count * BLOCK) == bytes(count * BLOCK)


def prepare_purge(served: Served, client: Raw, nblocks: int) -> tuple[bytes, bytes]:
    """Have so many blocks that only a snapshot needs; return what it and the running point hold."""
    old, new = random.Random(1).randbytes(nblocks * BLOCK), random.Random(2).randbytes(nblocks * BLOCK)
    assert client.write(0, old) == 0
    served.tool("snapshot", "create", served.image, "monday")
    assert client.write(0, new, flags=Flag.FUA) == 0
    return old, new


def require_states(served: Served, client: Raw, old: bytes, new: bytes) -> None:
    assert client.read(0, len(new)) == new
    with Raw(served.socket) as reader:
        reader.go("vm1@monday")
        assert reader.read(0, len(old)) == old


def test_a_purge_into_a_full_mass_store_ends_and_service_goes_on(tmp_path: Path) -> None:
    """The fifth state of 4 MiB does not fit any more into what the server may write of a file."""
    served = Served(tmp_path)
    try:
        served.create(16, 8)
        served.start()
        assert served.process is not None
        before = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (18 * MIB, resource.RLIM_INFINITY))
        client, _ = write_rounds(served, 4, 4 * MIB, purge=True)
        held = random.Random(9).randbytes(4 * MIB)
        assert client.write(0, held, flags=Flag.FUA) == 0
        served.tool("snapshot", "create", served.image, "s4")
        assert client.write(0, bytes(4 * MIB), flags=Flag.FUA) == 0
        assert "disk.mass" in served.tool("purge", served.image, "--mode", "virtblock", code=5)
        with Raw(served.socket) as reader:
            reader.go("vm1@s4")
            assert reader.read(0, len(held)) == held
        assert client.write(6 * MIB, b"goes on", flags=Flag.FUA) == 0
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, before)
        assert served.json("purge", served.image, "--mode", "virtblock")["blocks_purged"]
        require_all(served, client, {0: bytes(MIB)}, 4, 4 * MIB)
    finally:
        served.end()


def test_nothing_is_purged_into_a_mass_store_that_was_deleted(served: Served) -> None:
    """Its contents would go with the server; what is in NVM stays there."""
    with Raw(served.socket) as client:
        client.go()
        old, new = prepare_purge(served, client, 512)
        served.mass.rename(served.folder / "away")
        (served.folder / "away").unlink()
        assert "was deleted" in served.tool("purge", served.image, "--mode", "virtblock", code=7)
        require_states(served, client, old, new)
        assert client.write(20 * MIB, b"goes on", flags=Flag.FUA) == 0


def fill(client: Raw, size: int) -> dict[int, bytes]:
    """Write 256 KiB here and there until there is no room; return what was completed."""
    done: dict[int, bytes] = {}
    rng = random.Random(3)
    for offset in range(0, size, 256 << 10):
        data = rng.randbytes(256 << 10)
        error = client.write(offset, data)
        if error:
            assert error == Error.ENOSPC
            return done
        done[offset] = data
    raise AssertionError("it never filled")


def test_a_full_device_fails_writes_with_enospc_and_loses_nothing(tmp_path: Path) -> None:
    served = Served(tmp_path)
    try:
        served.create(32, 256)
        served.start()
        with Raw(served.socket) as client:
            client.go()
            done = fill(client, 256 * MIB)
            assert 24 * MIB < len(done) * (256 << 10) < 32 * MIB
            assert client.ask(Command.FLUSH) == 0
            for offset, data in done.items():
                assert client.read(offset, len(data)) == data
            # Room that is given back is used again.
            assert client.ask(Command.TRIM, 0, 4 * MIB) == 0
            assert client.ask(Command.FLUSH) == 0
            assert client.write(200 * MIB, b"z" * MIB, flags=Flag.FUA) == 0
            assert client.read(200 * MIB, MIB) == b"z" * MIB
        assert served.stop() == 0
        served.check()
        served.start()
        with Raw(served.socket) as client:
            client.go()
            for offset, data in done.items():
                assert client.read(offset, len(data)) == (bytes(len(data)) if offset < 4 * MIB else data)
    finally:
        served.end()


def write_rounds(
    served: Served, rounds: int, each: int, *, purge: bool = False, before: Callable[[], None] | None = None
) -> tuple[Raw, dict[int, bytes]]:
    """Overwrite a region again and again, with a snapshot after each round."""
    client = Raw(served.socket)
    client.go()
    held: dict[int, bytes] = {}
    for number in range(rounds):
        if before is not None:
            before()
        rng = random.Random(number)
        for start in range(0, each, MIB):
            data = rng.randbytes(MIB)
            error = client.write(start, data)
            assert error == 0, (number, start, error, served.log)
            held[start] = data
        assert client.ask(Command.FLUSH) == 0
        served.tool("snapshot", "create", served.image, f"s{number}")
        if purge and number:
            served.tool("purge", served.image, "--mode", "virtblock")
    return client, held


def require_all(served: Served, client: Raw, held: dict[int, bytes], rounds: int, each: int) -> None:
    for start, data in held.items():
        assert client.read(start, MIB) == data
    client.socket.close()
    for number in range(rounds):
        rng = random.Random(number)
        with Raw(served.socket) as snapshot:
            snapshot.go(f"vm1@s{number}")
            assert all(snapshot.read(start, MIB) == rng.randbytes(MIB) for start in range(0, each, MIB))
    assert served.stop() == 0
    served.check()


def test_auto_purge_makes_room_before_a_writer_sees_enospc(tmp_path: Path) -> None:
    """Five states of 4 MiB go through 16 MiB of NVM; only the running point has to stay."""
    served = Served(tmp_path)
    try:
        served.create(16, 8)
        served.start("--auto-purge", "20%")
        client, held = write_rounds(served, 5, 4 * MIB)
        assert "purged" in served.log
        require_all(served, client, held, 5, 4 * MIB)
    finally:
        served.end()


def test_purges_to_a_target_in_a_loop_keep_a_busy_region_from_filling_up(tmp_path: Path) -> None:
    served = Served(tmp_path)
    ending = threading.Event()
    begun = threading.Semaphore(0)

    def purge() -> None:
        while not ending.is_set():
            served.tool("purge", served.image, "--mode", "pointer-elimination", "--free-target", "50%")
            begun.release()

    def wait() -> None:
        """Let a purge that began after this end; without it, four rounds would fill the device."""
        while begun.acquire(blocking=False):
            pass
        assert begun.acquire(timeout=60) and begun.acquire(timeout=60)

    loop = threading.Thread(target=purge)
    try:
        served.create(16, 8)
        served.start()
        loop.start()
        client, held = write_rounds(served, 5, 4 * MIB, before=wait)
        ending.set()
        loop.join(60)
        require_all(served, client, held, 5, 4 * MIB)
    finally:
        ending.set()
        loop.join(60)
        served.end()


@pytest.mark.parametrize("number", [2, 9])
def test_commands_cut_off_in_the_middle_leave_the_server_and_the_image_whole(number: int, served: Served) -> None:
    rng = random.Random(number)
    with Raw(served.socket) as client:
        client.go()
        model = bytearray(rng.randbytes(12 * MIB))
        for turn in range(2):
            assert client.write(0, bytes(model), flags=Flag.FUA) == 0
            served.tool("snapshot", "create", served.image, f"s{turn}")
            model[:] = rng.randbytes(len(model))
            assert client.write(0, bytes(model)) == 0
            command = [sys.executable, "-m", "nvmtool", "purge", str(served.image), "--mode", "virtblock"]
            cut = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(0.15 + rng.random() * 0.2)
            cut.send_signal(number)
            cut.wait(30)
            at = rng.randrange(len(model) - MIB)
            assert client.read(at, MIB) == model[at : at + MIB]
        assert client.ask(Command.FLUSH) == 0
        served.check()
        served.tool("purge", served.image, "--mode", "virtblock")
        assert client.read(0, len(model)) == model
    assert served.stop() == 0
    served.check()
