"""Tasks of a mount on the serving loop: each goes on when it may, and errors come out."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nvmtool.live.loop import Loop
from nvmtool.live.mount_tasks import ClosedResourceError, Tasks


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def _turn_until_done(loop: Loop, tasks: Tasks) -> None:
    sleep = 0.0
    for _ in range(1000):
        if tasks.is_done:
            return
        sleep = loop.turn(min(sleep, 0.01))
    raise AssertionError("tasks go on for ever")


def test_a_reader_gets_everything_and_others_run_meanwhile(loop: Loop) -> None:
    tasks = Tasks(loop)
    reading, writing = os.pipe()
    seen: list[bytes] = []

    async def read() -> None:
        while len(seen) < 200:
            await tasks.wait_readable(reading)
            seen.append(os.read(reading, 1))

    turns = 0

    async def write() -> None:
        nonlocal turns
        os.write(writing, b"x" * 150)
        await tasks.sleep(0)
        turns = len(seen)
        await tasks.sleep(0.01)
        os.write(writing, b"y" * 50)

    tasks.start(read())
    tasks.start(write())
    _turn_until_done(loop, tasks)
    assert b"".join(seen) == b"x" * 150 + b"y" * 50
    assert turns < 150, "a reader who finds something each time must let the loop turn"
    os.close(reading)
    os.close(writing)


def test_a_lock_is_handed_on_in_order_and_a_nursery_waits_for_all(loop: Loop) -> None:
    tasks = Tasks(loop)
    lock, order = tasks.Lock(), list[str]()

    async def hold(name: str) -> None:
        async with lock:
            order.append(f"{name} in")
            await tasks.sleep(0)
            order.append(f"{name} out")

    async def parent() -> None:
        async with tasks.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(hold, name)
        order.append("all")

    tasks.start(parent())
    _turn_until_done(loop, tasks)
    assert order == ["a in", "a out", "b in", "b out", "c in", "c out", "all"]


def test_closing_wakes_the_reader_and_an_error_comes_out_of_the_loop(loop: Loop) -> None:
    tasks = Tasks(loop)
    reading, writing = os.pipe()

    async def read() -> None:
        await tasks.wait_readable(reading)

    tasks.start(read())
    loop.turn(0.0)
    tasks.notify_closing(reading)
    with pytest.raises(ClosedResourceError):
        loop.turn(0.0)
    os.close(reading)
    os.close(writing)
