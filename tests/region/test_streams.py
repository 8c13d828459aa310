"""Streams: a snapshot sent and received is the same to the byte, and what is wrong with a stream changes nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nvmtool.errors import DamagedError, ExistsError, FormatError, NoSpaceError, NotFoundError, NvmtoolError, RefusedError
from nvmtool.region import stream_format as form
from nvmtool.region.check import check_device
from nvmtool.region.device import Device
from nvmtool.region.format import format_device
from nvmtool.region.purge import purge
from nvmtool.region.receive import open_spool, receive
from nvmtool.region.send import digest_of, send_snapshot
from nvmtool.region.snapshots import create_snapshot

BLOCK, MIB = 4096, 1 << 20
SIZE = 4 * MIB
KILLS = int(os.environ.get("NVMTOOL_KILLS", "5"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


def new_image(path: Path, size: int = 32 * MIB) -> Path:
    format_device(path, size_bytes=size, mass=path.with_suffix(".mass"))
    return path


def contents(path: Path, region: str = "vm1") -> dict[str | None, bytes]:
    """Return what every state of a region holds."""
    with Device.open(path) as device:
        found = device.region(region)
        names: list[str | None] = [None, *(record.name for record in found.snapshots)]
        return {name: found.read(0, found.size_bytes, name) for name in names}


def clean(path: Path, mass: Path | None = None) -> None:
    report = check_device(path, scrub=True, mass=mass)
    assert not [each for each in report.findings if each.severity == "error"], report.findings


@pytest.fixture(params=["virtblock", "direct"])
def source(request: pytest.FixtureRequest, folder: Path) -> Path:
    """An image with snapshots monday (data and holes), tuesday (changes, and new holes) and wednesday (nothing new)."""
    path = new_image(folder / "source.nvm")
    rng = random.Random(11)
    with Device.open(path, writable=True) as device:
        region = device.create_region("vm1", SIZE, request.param)
        region.write(0, rng.randbytes(MIB))
        region.write(2 * MIB + 3 * BLOCK, rng.randbytes(70 * BLOCK))
        region.write(SIZE - 100, rng.randbytes(100))
        create_snapshot(region, "monday")
        region.write(5 * BLOCK + 17, rng.randbytes(9 * BLOCK))
        region.write(3 * MIB, rng.randbytes(BLOCK))
        region.discard(16 * BLOCK, 100 * BLOCK)
        create_snapshot(region, "tuesday")
        create_snapshot(region, "wednesday")
    return path


def send(path: Path, snapshot: str, dst: Path, base: str | None = None) -> Path:
    with Device.open(path) as device:
        send_snapshot(device.region(), snapshot, str(dst), base)
    return dst


def take(path: Path, src: Path, region: str | None = None, *, force: bool = False, dry_run: bool = False) -> None:
    with Device.open(path, writable=not dry_run) as device:
        receive(device, str(src), region, force=force, dry_run=dry_run)


@pytest.fixture
def streams(source: Path, folder: Path) -> list[Path]:
    """Monday in full, and tuesday and wednesday as what changed."""
    days = ["monday", "tuesday", "wednesday"]
    return [send(source, day, folder / f"{day}.nvms", base) for day, base in zip(days, [None, *days], strict=False)]


def test_a_chain_over_three_images_is_the_same_to_the_byte(source: Path, streams: list[Path], folder: Path) -> None:
    expected = contents(source)
    second, third = new_image(folder / "second.nvm"), new_image(folder / "third.nvm")
    for stream in streams:
        take(second, stream)
    assert contents(second) == expected
    assert streams[1].stat().st_size < 30 * BLOCK
    again = [send(second, "monday", folder / "m"), send(second, "wednesday", folder / "w", "monday")]
    for stream in again:
        take(third, stream, "other")
    assert contents(third, "other") == {name: expected[name] for name in (None, "monday", "wednesday")}
    for path in (second, third):
        clean(path)
    with Device.open(source) as one, Device.open(second) as other:
        for name in ("monday", "tuesday"):
            there, here = one.region().snapshot(name), other.region().snapshot(name)
            # Holes stay holes, and a snapshot keeps its time.
            assert (there.get("mapped"), there.get("created")) == (here.get("mapped"), here.get("created"))
        assert one.region().mapping == other.region().mapping


def test_purged_blocks_are_sent_and_a_purged_base_is_recognised(source: Path, streams: list[Path], folder: Path) -> None:
    expected = contents(source)
    second = new_image(folder / "second.nvm")
    take(second, streams[0])
    with Device.open(second, writable=True) as device:
        device.region().write(0, bytes(MIB))
        mode = "virtblock" if device.region().mapping == "virtblock" else "pointer-elimination"
        assert purge(device, mode=mode).blocks_purged > 100
    with pytest.raises(RefusedError, match="was written to since"):
        take(second, streams[1])
    take(second, streams[1], force=True)
    assert contents(second) == {name: expected[name] for name in (None, "monday", "tuesday")}
    take(folder_image := new_image(folder / "third.nvm"), send(second, "monday", folder / "again"))
    assert contents(folder_image)["monday"] == expected["monday"]


def test_a_damaged_purged_block_ends_the_stream_and_leaves_no_file(source: Path, folder: Path) -> None:
    with Device.open(source, writable=True) as device:
        device.region().write(0, bytes(MIB))
        mode = "virtblock" if device.region().mapping == "virtblock" else "pointer-elimination"
        assert purge(device, mode=mode).blocks_purged > 0
        first = device.region().read(20 * BLOCK, BLOCK, "monday")
    mass = source.with_suffix(".mass")
    held = bytearray(mass.read_bytes())
    held[held.find(first)] ^= 1
    mass.write_bytes(held)
    with pytest.raises(DamagedError):
        send(source, "monday", folder / "monday.nvms")
    assert not (folder / "monday.nvms").exists()


def test_the_same_contents_have_the_same_digest_wherever_they_lie(source: Path, streams: list[Path], folder: Path) -> None:
    other = new_image(folder / "other.nvm")
    with Device.open(source) as device:
        monday, tuesday = (digest_of(device.region(), name) for name in ("monday", "tuesday"))
        data = device.region().read(0, SIZE, "monday")
        assert digest_of(device.region(), "wednesday") == tuesday != monday
    with Device.open(other, writable=True) as device:
        region = device.create_region("vm1", SIZE, "direct")
        region.write(0, data)  # zeros and all
        create_snapshot(region, "monday")
        assert digest_of(region, "monday") == monday
    take(other, streams[1])


def refused(path: Path, stream: Path, error: type[NvmtoolError], match: str, region: str | None = None) -> None:
    """Insist that a stream is refused, and that not a byte of the image is another."""
    with Device.open(path, writable=True):  # what a writable open settles by itself is settled
        pass
    before = path.read_bytes()
    for dry_run in (True, False):
        with pytest.raises(error, match=match):
            take(path, stream, region, dry_run=dry_run)
    after = path.read_bytes()
    assert after == before


def test_what_does_not_fit_is_refused_before_anything_changes(source: Path, streams: list[Path], folder: Path) -> None:
    second = new_image(folder / "second.nvm")
    refused(second, streams[1], NotFoundError, "no region 'vm1'")
    take(second, streams[0])
    refused(second, streams[0], ExistsError, "exists already")
    refused(second, streams[2], NotFoundError, "no snapshot 'tuesday'")
    with Device.open(second, writable=True) as device:
        region = device.create_region("vm2", SIZE)
        region.write(0, b"else")
        create_snapshot(region, "monday")
        device.create_region("vm3", SIZE // 2)
        create_snapshot(device.region("vm3"), "monday")
    refused(second, streams[1], RefusedError, "other contents", "vm2")
    refused(second, streams[1], RefusedError, "other contents", "vm3")
    with Device.open(second, writable=True) as device:
        device.region("vm1").write(0, b"later")
    refused(second, streams[1], RefusedError, "was written to since")
    take(second, streams[1], force=True)
    refused(second, streams[1], ExistsError, "has a snapshot 'tuesday'")
    refused(second, second, FormatError, "not a stream")
    refused(second, folder / "none", NvmtoolError, "none")
    small = new_image(folder / "small.nvm", MIB)
    refused(small, streams[0], NoSpaceError, "the stream has more data than the device has blocks")
    full = new_image(folder / "full.nvm", 4 * MIB)
    with Device.open(full, writable=True) as device:
        device.create_region("other", SIZE).write(0, random.Random(2).randbytes(3 * MIB))
    refused(full, streams[0], NoSpaceError, "327 blocks of data takes [0-9]+ blocks of 4 KiB, [0-9]+ are available")


def test_a_thin_region_of_any_size_needs_room_for_what_it_holds(folder: Path) -> None:
    source, target = new_image(folder / "source.nvm", 16 * MIB), new_image(folder / "target.nvm", 16 * MIB)
    content = random.Random(3).randbytes(12 * MIB)
    with Device.open(source, writable=True) as device:
        region = device.create_region("vm1", 64 << 30)
        region.write(40 << 30, content)
        create_snapshot(region, "monday")
    take(target, send(source, "monday", folder / "monday"))
    with Device.open(target) as device:
        assert device.region("vm1").read(40 << 30, 12 * MIB, "monday") == content
    clean(target)


def test_a_time_that_no_snapshot_can_have_is_refused_like_any_other_damage(source: Path, folder: Path) -> None:
    header = form.StreamHeader(64, 1, 1 << 56, "vm1", "monday", "", bytes(16))
    (folder / "forged").write_bytes(header.encode() + form.encode_record(0, form.END, 0, 0))
    refused(source, folder / "forged", DamagedError, "contradict")


def test_a_stream_from_a_pipe_is_kept_where_there_is_room(source: Path, streams: list[Path], folder: Path, tmp_path: Path) -> None:
    image = new_image(folder / "second.nvm")
    with Device.open(image) as device:
        assert _spool_folder(device) == str(folder)
    # A block device lies in a folder of memory, as a rule a small one.
    loop = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=False)
    if loop.returncode:
        pytest.skip("losetup needs root")
    try:
        with Device.open(Path(loop.stdout.strip()), mass=image.with_suffix(".mass")) as device:
            assert _spool_folder(device) == str(folder)
    finally:
        subprocess.run(["losetup", "-d", loop.stdout.strip()], check=True)


def _spool_folder(device: Device) -> str:
    with open_spool(device) as file:
        return str(Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).parent)


def test_a_named_pipe_and_a_character_device_are_written_to(source: Path, streams: list[Path], folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with (folder / "copy").open("wb") as copy, subprocess.Popen(["cat", str(folder / "pipe")], stdout=copy) as reader:
        send(source, "monday", folder / "pipe")
    assert reader.returncode == 0
    assert (folder / "copy").read_bytes() == streams[0].read_bytes()
    send(source, "monday", Path("/dev/null"))


@pytest.mark.parametrize("source", ["virtblock"], indirect=True)
def test_cut_off_anywhere_a_stream_changes_nothing(source: Path, streams: list[Path], folder: Path) -> None:
    second = new_image(folder / "second.nvm")
    take(second, streams[0])
    whole = streams[1].read_bytes()
    before = second.read_bytes()
    borders = [0, 1, 4095, 4096, 4097, 4136, len(whole) - 41, len(whole) - 40, len(whole) - 1]
    for cut in borders + random.Random(1).sample(range(len(whole)), 60):
        (folder / "cut").write_bytes(whole[:cut])
        with pytest.raises(DamagedError):
            take(second, folder / "cut", dry_run=True)
    with pytest.raises(DamagedError, match="cut off"):
        take(second, folder / "cut")
    for extra in (b"\0", whole):
        (folder / "cut").write_bytes(whole + extra)
        with pytest.raises(DamagedError, match="follows the end"):
            take(second, folder / "cut", dry_run=True)
    with Device.open(second, writable=True):
        pass
    assert contents(second).keys() == {None, "monday"}
    assert len(before) == second.stat().st_size


@pytest.mark.parametrize("source", ["virtblock"], indirect=True)
def test_every_flipped_bit_is_found(source: Path, streams: list[Path], folder: Path) -> None:
    second = new_image(folder / "second.nvm")
    take(second, streams[0])
    whole = streams[1].read_bytes()
    places = [*range(320), 4095, *range(4096, 4176), *range(len(whole) - 40, len(whole))]
    places += random.Random(2).sample(range(len(whole)), 60)
    with Device.open(second) as device:
        for place in places:
            broken = bytearray(whole)
            broken[place] ^= 1 << place % 8
            (folder / "broken").write_bytes(broken)
            with pytest.raises((DamagedError, FormatError)):
                receive(device, str(folder / "broken"), dry_run=True)


def test_a_record_out_of_place_is_refused_though_its_checksum_is_right(folder: Path) -> None:
    second = new_image(folder / "second.nvm")
    header = form.StreamHeader(8, 1, 5, "vm1", "s", "", bytes(16)).encode()
    zeros = np.zeros((1, BLOCK), np.uint8)

    def data(sequence: int, first: int) -> bytes:
        return form.encode_record(sequence, form.DATA, first, 1, form.crcs_of(zeros)) + zeros.tobytes()

    end = form.encode_record(2, form.END, 2, 2)
    (folder / "right").write_bytes(header + data(0, 3) + data(1, 7) + end)
    take(second, folder / "right", dry_run=True)
    for name, wrong in {
        "past the end": data(0, 3) + data(1, 8) + end,
        "not ascending": data(0, 3) + data(1, 3) + end,
        "left out": data(1, 7) + end,
        "counted wrongly": data(0, 3) + data(1, 7) + form.encode_record(2, form.END, 2, 3),
    }.items():
        (folder / "wrong").write_bytes(header + wrong)
        with pytest.raises(DamagedError):
            take(second, folder / "wrong", dry_run=True)
        assert name
    bad = form.StreamHeader(8, 1, 5, "a/b", "s", "", bytes(16)).encode()
    (folder / "wrong").write_bytes(bad + data(0, 3) + data(1, 7) + end)
    with pytest.raises(NvmtoolError, match="a/b"):
        take(second, folder / "wrong", dry_run=True)


TOOL = [sys.executable, "-m", "nvmtool"]


@pytest.mark.parametrize("source", ["virtblock"], indirect=True)
def test_a_pipe_between_two_processes_carries_it(source: Path, folder: Path) -> None:
    second = new_image(folder / "second.nvm")
    tool = f"{sys.executable} -m nvmtool"
    for options in ("--snapshot monday", "--snapshot tuesday --from monday"):
        line = f"set -o pipefail; {tool} send {source} {options} - | {tool} receive {second} -"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert contents(second) == {name: data for name, data in contents(source).items() if name != "wednesday"}
    assert sorted(os.listdir(folder)) == ["second.mass", "second.nvm", "source.mass", "source.nvm"]
    cut = f"{tool} send {source} --snapshot monday - | head -c 700000 | {tool} receive {second} - --region cut"
    done = subprocess.run(["bash", "-c", cut], capture_output=True, text=True, check=False)
    assert done.returncode == 4 and "cut off" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("incremental", [False, True])
def test_ended_at_any_moment_it_has_happened_or_not(number: int, incremental: bool, folder: Path) -> None:
    big = new_image(folder / "big.nvm", 96 * MIB)
    data = [random.Random(seed).randbytes(16 * MIB) for seed in (1, 2)]
    with Device.open(big, writable=True) as device:
        region = device.create_region("vm1", 16 * MIB)
        for name, content in zip(("monday", "tuesday"), data, strict=True):
            region.write(0, content)
            create_snapshot(region, name)
    streams = [send(big, "monday", folder / "m"), send(big, "tuesday", folder / "t", "monday")]
    target, base = folder / "target.nvm", new_image(folder / "base.nvm", 96 * MIB)
    if incremental:
        take(base, streams[0])
    stream, name = (streams[1], "tuesday") if incremental else (streams[0], "monday")
    ended = 0
    for step in range(KILLS):
        shutil.copy(base, target)
        shutil.copy(base.with_suffix(".mass"), target.with_suffix(".mass"))
        process = subprocess.Popen(
            [*TOOL, "receive", str(target), str(stream), "--mass", str(target.with_suffix(".mass"))],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(0.15 + 0.4 * step / KILLS)
        process.send_signal(number)
        ended += process.wait(60) != 0
        clean(target, target.with_suffix(".mass"))
        with Device.open(target, mass=target.with_suffix(".mass")) as device:
            names = [region.name for region in device.regions()]
            if not incremental and not names:
                continue
            region = device.region("vm1")
            happened = region.snapshots.find(name) is not None
            assert happened or incremental
            assert region.read(0, 16 * MIB) == data[incremental if happened else 0]
            assert region.read(0, 16 * MIB, "monday") == data[0]
    assert ended
