"""What the commands answer, to people and to programs, against real admins over mTLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.world import Door, Fixed, World, world

from mesh.cli.app import run
from mesh.cli.context import Here, home_of
from mesh.errors import Code, MeshError

ACME, GLOBEX, OTHER = "t_aaaaaaaaaaaaaaaa", "t_bbbbbbbbbbbbbbbb", "t_cccccccccccccccc"


@pytest.fixture
def mesh(tmp_path: Path):
    with world(tmp_path) as made:
        made.admins["vn-1"].add("acme", ACME, ["VN"])
        made.admins["ap-southeast-1"].add("globex", GLOBEX, ["SG", "VN"], "within_allowed")
        yield made


@pytest.fixture
def call(mesh: World, capfd: pytest.CaptureFixture[str]):
    def ask(*arguments: str, status: int = 0) -> dict:
        assert run([*arguments, "--json"], mesh.here) == status
        out, err = capfd.readouterr()
        if status == 0:
            assert out.count("\n") == 1
            return json.loads(out)
        assert out == ""
        return json.loads(err.splitlines()[-1])["error"]

    return ask


def test_a_tenants_life(call, mesh: World) -> None:
    made = call("tenant", "create", "initech", "--allow", "sg,VN", "--transfer", "within_allowed")
    assert list(made) == ["tenant", "name", "home", "allowed", "transfer", "state", "revision", "label"]
    assert (made["home"], made["allowed"], made["transfer"], made["state"]) == (
        "ap-southeast-1",
        ["SG", "VN"],
        "within_allowed",
        "active",
    )
    assert call("tenant", "show", "initech") == call("tenant", "show", made["tenant"]) == made
    suspended = call("tenant", "suspend", "initech")
    assert {name: suspended[name] for name in made} == {**made, "state": "suspended", "revision": 2}
    assert call("tenant", "resume", made["tenant"])["state"] == "active"
    pinned = call("pin", "initech", "--allow", "SG")
    assert (pinned["tenant"], pinned["revision"], pinned["allowed"]) == (made["tenant"], 4, ["SG"])
    assert call("pin", "initech", "--allow", "VN", status=1)["code"] == "home_outside_pin"
    listed = call("tenant", "list")
    assert [item["name"] for item in listed["items"]] == ["acme", "globex", "initech"]
    assert listed["unreachable"] == []
    assert call("tenant", "create", "initech", "--allow", "SG", status=1)["code"] == "tenant_exists"


def test_a_home_may_be_named(call) -> None:
    assert call("tenant", "create", "x", "--allow", "VN,SG", "--home", "ap-southeast-1")["home"] == "ap-southeast-1"
    assert call("tenant", "create", "y", "--allow", "VN", "--home", "ap-east-1", status=1)["code"] == "unknown_region"
    missing = call("tenant", "create", "y", "--allow", "JP,VN", status=1)
    assert (missing["code"], missing["param"]) == ("unknown_region", "home")
    assert "vn-1" in missing["remedy"]


def test_a_keys_life(call) -> None:
    made = call("key", "create", "acme")
    assert list(made) == ["tenant", "key_id", "key", "created_at"]
    before = call("key", "list", "acme")["items"]
    assert before == [{"tenant": ACME, "key_id": made["key_id"], "created_at": made["created_at"], "revoked_at": None}]
    revoked = call("key", "revoke", made["key_id"])
    assert (revoked["key_id"], revoked["revoked_at"]) == (made["key_id"], "2026-11-21T09:00:00Z")
    assert call("key", "list", ACME)["items"][0]["revoked_at"] == "2026-11-21T09:00:00Z"
    assert call("key", "revoke", "nosuchkey", status=1)["code"] == "key_not_found"


def test_usage_of_all_regions(call, mesh: World) -> None:
    answer = call("usage", "acme", "--from", "2026-01-01", "--to", "2026-02-01T07:00:00+07:00")
    assert (answer["tenant"], answer["from"], answer["to"]) == (ACME, "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
    assert [item["region"] for item in answer["items"]] == ["vn-1", "ap-southeast-1"]
    assert list(answer["items"][0]) == ["region", "model", "requests", "refused", "prompt_tokens", "completion_tokens"]
    request = mesh.admins["vn-1"].calls[-1][1]
    assert (request.tenant, request.to_s - request.from_s) == (ACME, 31 * 86400)


def test_disclosures_of_all_regions_and_all_pages(call, mesh: World) -> None:
    answer = call("usage", "acme", "--disclosures", "--from", "2026-01-01", "--to", "2026-02-01")
    assert (answer["tenant"], answer["from"], answer["unreachable"]) == (ACME, "2026-01-01T00:00:00Z", [])
    assert list(answer["items"][0]) == ["at", "region", "jurisdiction", "key_id", "door", "request_id"]
    assert answer["items"][0]["at"] == "2026-01-09T23:06:40.124Z"
    wanted = {f"req_{region}_{number}" for region in ("vn-1", "ap-southeast-1") for number in (1, 2, 3)}
    assert {item["request_id"] for item in answer["items"]} == wanted
    assert [item["at"] for item in answer["items"]] == sorted(item["at"] for item in answer["items"])
    mesh.stop("ap-southeast-1")
    answer = call("usage", ACME, "--disclosures")
    assert (answer["unreachable"], len(answer["items"])) == (["ap-southeast-1"], 3)
    request = mesh.admins["vn-1"].calls[-1][1]
    assert (request.tenant, request.to_s - request.from_s) == (ACME, 30 * 86400)


def test_a_route_is_explained_at_home_or_elsewhere(call) -> None:
    answer = call("route", "explain", "--tenant", "globex", "--model", "m")
    assert answer == {
        "tenant": GLOBEX,
        "model": "m",
        "at": "ap-southeast-1",
        "outcome": "refuse",
        "region": None,
        "code": "model_not_found",
        "reasons": [
            {"region": "ap-southeast-1", "verdict": "rejected", "code": "model_not_hosted", "text": "Not here."}
        ],
    }
    assert call("route", "explain", "--tenant", "globex", "--model", "m", "--at", "vn-1")["at"] == "vn-1"
    assert (
        call("route", "explain", "--tenant", "globex", "--model", "m", "--at", "x", status=1)["code"]
        == "unknown_region"
    )


def test_a_name_of_two_homes_is_refused_with_the_ids(call, mesh: World) -> None:
    mesh.admins["ap-southeast-1"].add("acme", OTHER, ["SG"])
    error = call("pin", "acme", "--allow", "VN", status=1)
    assert error["code"] == "ambiguous_tenant"
    assert ACME in error["remedy"]
    assert OTHER in error["remedy"]
    assert call("tenant", "show", OTHER)["home"] == "ap-southeast-1"
    assert not any(method == "Pin" for admin in mesh.admins.values() for method, _ in admin.calls)


def test_a_region_that_does_not_answer(call, mesh: World) -> None:
    mesh.stop("ap-southeast-1")
    assert call("tenant", "list")["unreachable"] == ["ap-southeast-1"]
    assert call("tenant", "show", "acme")["tenant"] == ACME
    usage = call("usage", GLOBEX)
    assert (usage["unreachable"], len(usage["items"])) == (["ap-southeast-1"], 1)
    for command in (["tenant", "show", "globex"], ["pin", GLOBEX, "--allow", "SG"], ["key", "revoke", "x"]):
        error = call(*command, status=1)
        assert error["code"] == "region_unreachable"
        assert "ap-southeast-1" in error["remedy"]


def test_an_admins_refusal_is_told(call, mesh: World) -> None:
    mesh.admins["vn-1"].refuse = MeshError(Code.POLICY_STORE_UNAVAILABLE)
    assert call("tenant", "show", "acme", status=1)["code"] == "policy_store_unavailable"


USAGE = [
    ["nosuch"],
    ["tenant", "create"],
    ["tenant", "create", "x"],
    ["tenant", "create", "x", "--allow", "VN,,SG"],
    ["tenant", "create", "x", "--allow", "VN", "--transfer", "CANARY"],
    ["usage", "acme", "--from", "CANARY"],
    ["usage", "acme", "--from", "2026-01-01T00:00:00"],
    ["usage", "acme", "--to", "0001-01-01"],
    ["usage", "acme", "--to", "9999-12-31T23:59:59-14:00"],
    ["tenant", "show", "CANARY\udcff"],
    ["usage", "acme", "--from", "2026-02-01", "--to", "2026-01-01"],
    ["chat", "hello", "CANARY"],
    ["status", "--CANARY"],
    ["chat", "hello"],
]


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage(call, mesh: World, arguments: list[str]) -> None:
    mesh.here.environ.pop("MESH_API_KEY", None)
    error = call(*arguments, status=2)
    assert error["code"] == "invalid_parameter"
    assert "CANARY" not in json.dumps(error)
    assert all(admin.calls == [] for admin in mesh.admins.values())


def test_unknown_jurisdictions_are_refused_here(call) -> None:
    assert call("pin", "acme", "--allow", "XX", status=1)["code"] == "unknown_jurisdiction"


def test_errors_for_people_have_a_remedy(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tenant", "show", "CANARY"], mesh.here) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "Error: No tenant of this name or id." in err
    assert "mesh tenant list" in err
    assert "CANARY" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["tenant", "list"],
        ["tenant", "show", "acme"],
        ["key", "create", "acme"],
        ["usage", "acme"],
        ["route", "explain", "--tenant", "acme", "--model", "m"],
        ["region", "list"],
        ["region", "show", "vn-1"],
        ["model", "list"],
    ],
)
def test_answers_for_people(mesh: World, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(arguments, mesh.here) == 0
    assert "vn-1" in capfd.readouterr().out or arguments[0] == "key"


def test_no_mesh_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nothing = Here(dict(os.environ), tmp_path, Fixed(None))
    for command in (["status"], ["down"], ["tenant", "list"], ["chat", "x", "--key", "k"]):
        assert run([*command, "--json"], nothing) == 3
        out, err = capfd.readouterr()
        assert (out, json.loads(err)["error"]["code"]) == ("", "not_running")


def test_up_status_and_down(call, mesh: World) -> None:
    assert call("status") == mesh.supervisor.found
    assert call("up", "--regions", "vn-1,ap-south-1", "--detach") == mesh.supervisor.found
    assert mesh.supervisor.asked == [
        {"regions": ["vn-1", "ap-south-1"], "accelerator": "cpu", "domain": None, "detach": True}
    ]
    assert call("down") == {"stopped": [{"name": "gateway-vn-1-g1", "pid": 42}]}
    assert call("up", "--regions", "mars-1", status=1)["code"] == "unknown_region"
    assert call("up", "--accelerator", "tpu", status=1)["code"] == "invalid_parameter"
    assert call("up", "--domain", "mesh.test") == mesh.supervisor.found
    assert mesh.supervisor.asked[-1]["domain"] == "mesh.test"
    assert call("up", "--domain", "Mesh_.test", status=1)["param"] == "domain"
    mesh.supervisor.fault = MeshError(Code.ALREADY_RUNNING)
    assert call("up", status=1)["code"] == "already_running"


def test_up_shows_what_to_paste(mesh: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sample = {"tenant": ACME, "key": "mk_vn_sample", "home": "vn-1", "allowed": ["VN"]}
    (tmp_path / "samples.json").write_text(json.dumps({"acme": sample}))
    assert run(["up"], mesh.here) == 0
    shown = capfd.readouterr().out
    for text in ("mk_vn_sample", str(mesh.supervisor.found["ca"]), "curl --cacert", "openai.OpenAI(", "InferenceStub("):
        assert text in shown


def test_up_does_not_say_ready_of_a_mesh_that_waits_for_its_recovery(
    mesh: World, capfd: pytest.CaptureFixture[str]
) -> None:
    back = {"state": "starting", "reasons": ["run 'mesh control recover'"], "control": {"went_back": True}}
    mesh.supervisor.found = {**mesh.supervisor.found, **back}
    assert run(["up", "--detach"], mesh.here) == 0
    shown = capfd.readouterr().out
    assert "is ready" not in shown
    assert "mesh control recover" in shown


def test_region_and_model_lists_need_no_mesh(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nothing = Here(dict(os.environ), tmp_path, Fixed(None))
    assert run(["region", "list", "--json"], nothing) == 0
    regions = json.loads(capfd.readouterr().out)["items"]
    assert len(regions) == 7
    assert list(regions[0]) == ["id", "jurisdiction", "name", "accelerator", "gpus_per_replica"]
    assert run(["model", "list", "--json"], nothing) == 0
    models = {item["model"]: item for item in json.loads(capfd.readouterr().out)["items"]}
    assert models["smollm2-135m-sg"] == {
        "model": "smollm2-135m-sg",
        "kind": "chat",
        "regions": ["ap-southeast-1"],
        "context": 2048,
    }
    assert run(["region", "show", "mars-1", "--json"], nothing) == 1
    assert json.loads(capfd.readouterr().err)["error"]["code"] == "unknown_region"
    assert run(["region", "render", "vn-1"], nothing) == 0
    assert "head_ip: 10.20.0.10" in capfd.readouterr().out


def test_the_folder_of_the_mesh(tmp_path: Path) -> None:
    assert home_of({"MESH_HOME": str(tmp_path / "a")}) == tmp_path / "a"
    assert home_of({}) == Path(__file__).parents[2] / ".mesh"


@pytest.mark.parametrize("named", ["~no-such-user/mesh", "/tmp/" + "a" * 300])
def test_a_folder_that_cannot_be_is_told_like_any_error(named: str) -> None:
    for command in (["down"], ["region", "list"], ["up"]):
        done = subprocess.run(
            [sys.executable, "-m", "mesh.cli.main", *command, "--json"],
            env={**os.environ, "MESH_HOME": named},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert set(json.loads(done.stderr.splitlines()[-1])["error"]) >= {"code", "message", "remedy"}
        assert "Traceback" not in done.stderr


def test_without_stdout_or_with_few_letters(tmp_path: Path) -> None:
    program = f"{sys.executable} -m mesh.cli.main"
    for command in (f"exec {program} region list --json >&-", f"exec {program} region list --json >&- 2>&- <&-"):
        assert subprocess.run(["sh", "-c", command], check=False, capture_output=True).stderr == b""
    environ = {**os.environ, "MESH_HOME": str(tmp_path / "\u2603"), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", "down"], env=environ, capture_output=True, check=False
    )
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr


def test_no_command_shows_the_help(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["tenant"]):
        assert run(arguments, mesh.here) == 2
        out, err = capfd.readouterr()
        assert "Usage: mesh" in out
        assert err == ""


def test_as_a_process(tmp_path: Path) -> None:
    environ = {**os.environ, "MESH_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "mesh.cli.main"]

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], env=environ, capture_output=True, text=True, cwd="/", check=False)

    shown = ask("--help")
    assert shown.returncode == 0
    for name in ("up", "down", "status", "tenant", "key", "pin", "usage", "route", "region", "model", "chat"):
        assert f" {name} " in shown.stdout
    refused = ask("tenant", "list", "--json")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert json.loads(refused.stderr.splitlines()[-1])["error"]["code"] == "not_running"
    assert ask("pin").returncode == 2
    environ["SSLKEYLOGFILE"] = str(tmp_path / "keys")
    refused = ask("status", "--json")
    assert (refused.returncode, json.loads(refused.stderr)["error"]["code"]) == (1, "invalid_settings")


ANSWER = ('{"choices":[{"delta":{"role":"assistant"}}]}', '{"choices":[{"delta":{"content":"Xin "}}]}',
          '{"choices":[{"delta":{"content":"chào"}}]}', '{"choices":[],"usage":{"total_tokens":5}}', "[DONE]")  # fmt: skip


def test_chat_streams_from_the_first_door_that_serves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    away = type("Away", (Door,), {"served_here": False})
    serves = type("Serves", (Door,), {"region": "ap-southeast-1", "events": ANSWER})
    with world(tmp_path, {"vn-1": away, "ap-southeast-1": serves}) as mesh:
        assert run(["chat", "hello", "--key", "k"], mesh.here) == 0
        assert capfd.readouterr() == ("Xin chào\n", "")
        mesh.here.environ["MESH_API_KEY"] = "k"
        assert run(["chat", "hello", "--json"], mesh.here) == 0
    assert json.loads(capfd.readouterr().out) == {
        "text": "Xin chào",
        "usage": {"total_tokens": 5},
        "region": "ap-southeast-1",
        "request_id": "00112233445566778899aabb",
    }


REFUSALS = [
    (
        {"refusal": (451, {"error": {"code": "residency_refused", "allowed": [{"region": "vn-9"}]}})},
        "residency_refused",
    ),
    ({"refusal": (500, {"error": {"code": "CANARY", "message": "CANARY"}})}, "internal_error"),
    ({"events": ANSWER[:2]}, "replica_failed"),
    ({"events": (ANSWER[1], '{"error":{"code":"no_capacity","message":"CANARY"}}')}, "no_capacity"),
    ({"served_here": False}, "residency_refused"),
]


@pytest.mark.parametrize(("door", "code"), REFUSALS)
def test_chat_tells_a_doors_error(tmp_path: Path, capfd: pytest.CaptureFixture[str], door: dict, code: str) -> None:
    with world(tmp_path, {"vn-1": type("Refuses", (Door,), door)}) as mesh:
        assert run(["chat", "CANARY", "--key", "k", "--json"], mesh.here) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err)["error"]["code"] == code
    assert "CANARY" not in err


def test_chat_without_a_door(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with world(tmp_path) as mesh:
        assert run(["chat", "x", "--key", "k", "--json"], mesh.here) == 1
        assert json.loads(capfd.readouterr().err)["error"]["code"] == "region_unreachable"
        assert run(["chat", "x", "--key", "k", "--at", "vn-1", "--json"], mesh.here) == 1
        assert json.loads(capfd.readouterr().err)["error"]["code"] == "region_unreachable"
        assert run(["chat", "x", "--key", "khóa", "--json"], mesh.here) == 1
        assert json.loads(capfd.readouterr().err)["error"]["code"] == "invalid_api_key"
