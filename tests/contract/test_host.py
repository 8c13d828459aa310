"""What the host, pool and vm commands print, and how they end: names, keys and exit codes that scripts depend on."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvmtool.host import layout as lay

from .test_exit_codes import opened_for_writing

MIB = 1 << 20
PAGE = 4096
STATUS = {"host", "uuid", "life", "ram_bytes", "lent_bytes", "free_bytes", "free_share", "state", "guaranteed_bytes", "nvm", "vms"}
ACCOUNT = {
    *("capacity_pages", "private_pages", "shared_pages", "suspended_pages", "lent_pages", "parked_pages", "free_pages"),
    *("difference_pages", "nodes"),
}
VM = {
    *("name", "pool", "state", "memory_bytes", "reservation_bytes", "limit_bytes", "shares", "granted_bytes", "promised_swap_bytes"),
    *("private_bytes", "shared_bytes", "suspended_bytes", "swapped_bytes", "at_work"),
}
POOL = {"name", "parent", "reservation_bytes", "limit_bytes", "shares", "guaranteed_bytes", "vms", "swap_bytes", "swap_promised_bytes"}


def _raw(path: str, seed: int, size_bytes: int = 4 * MIB) -> bytes:
    data = random.Random(seed).randbytes(size_bytes // 2) + bytes(size_bytes // 2)
    Path(path).write_bytes(data)
    return data


@pytest.fixture
def host(empty: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder of `empty` with host `h`: 16 MiB, disk.nvm lends; vm1 and vm2 of 4 MiB are on and hold one raw file, vm3 is off."""
    monkeypatch.setenv("NVMTOOL_HOST", "h")
    empty.run("host", "init", "h", "--ram", "16M", "--nvm", "disk.nvm")
    _raw("raw", 1)
    for name in ("vm1", "vm2", "vm3"):
        empty.run("vm", "create", name, "--memory", "4M", "--reservation", "1M")
    for name in ("vm1", "vm2"):
        empty.run("vm", "power-on", name)
        empty.run("vm", "load", name, "raw")
    return empty


def test_status_and_account_have_the_keys_of_the_contract(host: Any) -> None:
    status = host.json("host", "status")
    assert set(status) >= STATUS
    assert (status["ram_bytes"], status["lent_bytes"], status["free_bytes"], status["state"]) == (16 * MIB, 0, 12 * MIB, "high")
    assert [(vm["name"], vm["state"], vm["private_bytes"]) for vm in status["vms"]] == [
        ("vm1", "on", 2 * MIB),
        ("vm2", "on", 2 * MIB),
        ("vm3", "off", 0),
    ]
    found = host.json("host", "account")
    assert set(found) >= ACCOUNT
    assert all(set(node) >= {"name", "kind", "reserved_pages", "consumed_pages"} for node in found["nodes"])
    assert (found["capacity_pages"], found["private_pages"], found["free_pages"], found["difference_pages"]) == (4096, 1024, 3072, 0)
    consumed = {node["name"]: node["consumed_pages"] for node in found["nodes"]}
    assert (consumed["vm1"], consumed["vm2"], consumed["free"]) == (512, 512, 3072)


def test_share_says_what_it_saves_per_vm_and_in_all(host: Any) -> None:
    facts = host.json("host", "share")
    assert (facts["frames_saved"], facts["bytes_saved"]) == (512, 2 * MIB)
    assert sum(vm["frames"] for vm in facts["vms"]) == 512
    assert host.json("host", "account")["shared_pages"] == 512
    assert host.json("host", "share")["frames_saved"] == 0


def test_a_vm_goes_through_all_its_states_and_keeps_its_memory(host: Any) -> None:
    raw = Path("raw").read_bytes()
    host.run("host", "share")
    for name in ("vm1", "vm2"):
        moved = host.json("vm", "suspend", name)
        assert (moved["name"], moved["pages"], moved["shared_pages"]) == (name, 512, 512)
    assert host.json("host", "account")["parked_pages"] == 512
    assert host.json("host", "restart")["life"] == 2
    for name in ("vm2", "vm1"):
        assert host.json("vm", "resume", name)["shared_pages"] == 512
    assert host.json("host", "account")["shared_pages"] == 512
    for name in ("vm1", "vm2"):
        host.run("vm", "dump", name, f"{name}.raw")
        assert Path(f"{name}.raw").read_bytes() == raw
        assert set(host.json("vm", "info", name)) >= VM
    assert host.json("vm", "power-off", "vm1")["freed_bytes"] == 0
    assert host.json("vm", "power-off", "vm2")["freed_bytes"] == 2 * MIB
    host.run("vm", "delete", "vm1")
    assert [vm["name"] for vm in host.json("vm", "list")["vms"]] == ["vm2", "vm3"]


def test_power_on_and_settle_say_what_is_granted_and_promised(host: Any) -> None:
    facts = host.json("vm", "power-on", "vm3")
    assert facts["granted_bytes"] + facts["promised_swap_bytes"] >= 4 * MIB
    settled = host.json("vm", "settle", "vm3", "--step", "1M")
    assert (settled["granted_bytes_before"], settled["granted_bytes"], settled["promised_swap_bytes"]) == (4 * MIB, MIB, 3 * MIB)
    assert (settled["steps"], settled["complete"], settled["failure"]) == (3, True, None)
    assert host.json("vm", "settle", "vm3")["steps"] == 0


def test_run_reports_what_the_guest_did(host: Any) -> None:
    facts = host.json("vm", "run", "vm1", "--workload", "sweep", "--ops", "1024", "--verify")
    assert (facts["ops"], facts["verified_pages"], facts["errors"], facts["ended_by"]) == (1024, 1024, 0, "ops")
    assert {"swap_ins", "swap_outs", "shares_broken"} <= set(facts)


def test_lend_and_return_by_hand(host: Any) -> None:
    assert host.json("host", "lend", "1M")["lent_bytes"] == MIB
    assert host.json("host", "status")["lent_bytes"] == MIB
    assert host.json("info", "disk.nvm")["lent_bytes"] == MIB
    assert host.json("host", "return", "1M")["returned_bytes"] == MIB
    assert host.json("info", "disk.nvm")["lent_bytes"] == 0
    assert host.json("host", "return", "1M")["returned_bytes"] == 0


def test_balance_and_run_say_what_they_did(host: Any) -> None:
    balanced = host.json("host", "balance")
    assert (balanced["state_before"], balanced["state"], balanced["failure"]) == ("high", "high", None)
    lines = host.run("host", "run", "--rounds", "1", "--interval", "0.01", "--json").stdout.splitlines()
    said = [json.loads(line)["what"] for line in lines]
    assert any("shar" in what for what in said), said
    assert any("settle" in what for what in said), said


def test_pools_nest_and_list_what_they_promise(host: Any) -> None:
    host.run("pool", "create", "web", "--reservation", "4M", "--limit", "8M", "--shares", "7")
    host.run("pool", "create", "inner", "--parent", "web")
    host.run("vm", "create", "w", "--memory", "4M", "--pool", "inner")
    pools = {pool["name"]: pool for pool in host.json("pool", "list")["pools"]}
    assert all(set(pool) >= POOL for pool in pools.values())
    assert (pools["web"]["parent"], pools["inner"]["parent"], pools["inner"]["vms"]) == ("root", "web", ["w"])
    assert (pools["web"]["reservation_bytes"], pools["web"]["limit_bytes"], pools["web"]["shares"]) == (4 * MIB, 8 * MIB, 7)
    assert "inner" in host.run("pool", "list").stdout
    host.run("vm", "delete", "w")
    host.run("pool", "delete", "inner")
    host.run("pool", "delete", "web")
    assert [pool["name"] for pool in host.json("pool", "list")["pools"]] == ["root"]


def test_check_says_clean_or_what_is_wrong(host: Any) -> None:
    facts = host.json("host", "check")
    assert (facts["clean"], facts["findings"], facts["leaked_blocks"], facts["repaired"]) == (True, [], 0, 0)
    assert "clean" in host.run("host", "check").stdout
    frames = next(Path("h").glob("volatile/frames")).resolve()
    with frames.open("r+b") as file:
        file.seek(8 * (lay.first_frame_word(4096) + 4000))
        file.write((lay.SHARED << lay.KIND_SHIFT | 3).to_bytes(8, "little"))
    (finding, *_) = host.json("host", "check", code=1)["findings"]
    assert set(finding) == {"severity", "structure", "where", "what"}
    assert host.json("host", "check", "--repair")["clean"]
    assert host.json("host", "account")["difference_pages"] == 0


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (2, "host init new --ram 0"),
        (2, "host init new --ram 5000"),
        (9, "host init h --ram 16M"),
        (9, "host init new --ram 16M --nvm none.nvm"),
        (3, "host init new --ram 16M --nvm raw"),
        (9, "host status --host none"),
        (9, "host account --host none"),
        (8, "host restart"),
        (2, "vm create new --memory 0"),
        (2, "vm create a/b --memory 4M"),
        (2, "vm create new --memory 4M --reservation 8M"),
        (2, "vm create new --memory 4M --reservation 2M --limit 1M"),
        (9, "vm create vm1 --memory 4M"),
        (9, "vm create new --memory 4M --pool none"),
        (9, "vm power-on none"),
        (9, "vm power-on vm1"),
        (8, "vm suspend vm3"),
        (8, "vm resume vm1"),
        (8, "vm settle vm3"),
        (8, "vm delete vm1"),
        (8, "vm load vm3 raw"),
        (9, "vm load vm1 none.raw"),
        (2, "vm load vm1 disk.nvm"),
        (8, "vm dump vm3 out.raw"),
        (8, "vm run vm3 --ops 1"),
        (8, "pool delete root"),
        (9, "pool create root"),
        (9, "pool create new --parent none"),
        (8, "pool create new --reservation 1G"),
        (5, "host lend 1G"),
        (2, "host lend 0"),
    ],
)
def test_refused_in_one_line_and_nothing_changed(code: int, command: str, host: Any) -> None:
    before = host.json("host", "account"), host.json("host", "status"), sorted(str(path) for path in Path().rglob("*"))
    host.run(*command.split(), code=code)
    assert (host.json("host", "account"), host.json("host", "status"), sorted(str(path) for path in Path().rglob("*"))) == before


def test_a_power_on_that_cannot_be_kept_names_the_amounts(host: Any) -> None:
    host.run("vm", "create", "big", "--memory", "64M", "--reservation", "15M")
    line = host.run("vm", "power-on", "big", code=8).stderr
    assert "15 MiB" in line, line


def test_reading_commands_never_open_for_writing(host: Any) -> None:
    for command in ("host status", "host account", "host check", "vm info vm1", "vm list", "pool list"):
        with opened_for_writing() as opened:
            host.run(*command.split())
        assert opened == [], command


def test_vm_dump_reaches_a_pipe(host: Any) -> None:
    assert host.process("vm", "dump", "vm1", "-").stdout == Path("raw").read_bytes()


def test_a_folder_that_is_no_host_says_so(host: Any) -> None:
    Path("folder").mkdir()
    assert "nvmtool host init" in host.run("host", "status", "--host", "folder", code=9).stderr
    Path("folder/host.nvh").write_bytes(Path("disk.nvm").read_bytes()[: 1 << 16])
    assert "a device image" in host.run("host", "status", "--host", "folder", code=3).stderr


def test_a_lost_memory_is_named_and_given_up_only_by_force(host: Any) -> None:
    Path("h/memory").resolve().unlink()
    assert "host restart --force" in host.run("vm", "suspend", "vm1", code=8).stderr
    host.run("host", "restart", code=8)
    assert host.json("host", "restart", "--force")["vms_powered_off"] == 2
    assert host.json("host", "account")["free_pages"] == 4096
    host.run("host", "check")


def test_watch_prints_json_lines_where_stdout_is_no_terminal(host: Any) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "nvmtool", "host", "status", "--watch", "--interval", "0.05"], stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    try:
        looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
    finally:
        watching.terminate()
        assert watching.wait(20) == 0
        watching.stdout.close()
    assert all(set(look) >= STATUS for look in looks)
