"""Tenants, keys and pins by the command, and how running gateways see them."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e.live import CHAT, ELSEWHERE, JP, SG, VN, Json, Mesh, messages, wait_until

pytestmark = pytest.mark.mesh
SEEN_S = 5
"""A second is promised, from the commit on; the rest is the loaded machine's, and the poll's."""
_TENANT = {"tenant", "name", "home", "allowed", "transfer", "state", "revision", "label"}


def code_at(mesh: Mesh, region: str, key: str) -> str:
    """What a region says to a key."""
    answer = mesh.get(region, "/v1/models", key)
    return "ok" if answer.status == 200 else answer.error["code"]


def seen(mesh: Mesh, region: str, key: str, code: str) -> None:
    wait_until(lambda: code_at(mesh, region, key) == code, f"{region} says {code}", deadline_s=SEEN_S)


def test_a_tenant_from_its_making_to_its_suspension(mesh: Mesh) -> None:
    made = mesh.tenant("life", "--allow", "VN,SG")
    tenant, key = made["tenant"], made["key"]
    assert made.keys() == _TENANT | {"key_id", "key", "created_at"}
    assert tenant.startswith("t_")
    assert (made["home"], made["allowed"], made["transfer"], made["state"]) == (VN, ["SG", "VN"], "never", "active")
    assert key.startswith("mk_vn_" + made["key_id"])
    shown = mesh.ask("tenant", "show", tenant).json
    assert shown.keys() == _TENANT
    assert mesh.ask("tenant", "show", made["name"]).json == shown
    assert shown in mesh.ask("tenant", "list").items
    for region in (VN, SG):
        seen(mesh, region, key, "ok")
    seen(mesh, JP, key, "residency_refused")

    suspended = mesh.ask("tenant", "suspend", made["name"]).json
    assert (suspended["state"], suspended["revision"] > shown["revision"]) == ("suspended", True)
    # What takes something away is in force when it returns: nobody waits for it to be seen.
    assert [code_at(mesh, region, key) for region in mesh.regions] == ["tenant_suspended"] * len(mesh.regions)
    assert {member["region"] for member in suspended["acked"]} == set(mesh.regions)
    assert mesh.ask("tenant", "suspend", tenant).json["revision"] == suspended["revision"]
    resumed = mesh.ask("tenant", "resume", tenant).json
    assert (resumed["state"], resumed["revision"] > suspended["revision"]) == ("active", True)
    seen(mesh, VN, key, "ok")


def test_keys_open_and_close(mesh: Mesh) -> None:
    made = mesh.tenant("keys", "--allow", "VN")
    other = mesh.ask("key", "create", made["tenant"]).json
    assert other.keys() == {"tenant", "key_id", "key", "created_at"}
    for key in (made["key"], other["key"]):
        seen(mesh, VN, key, "ok")
    listed = mesh.ask("key", "list", made["tenant"])
    assert made["key"] not in listed.out
    assert [row["key_id"] for row in listed.items] == [made["key_id"], other["key_id"]]
    assert all(row["revoked_at"] is None and "key" not in row for row in listed.items)

    revoked = mesh.ask("key", "revoke", made["key_id"]).json
    assert revoked.keys() >= {"key_id", "revoked_at", "waited_ms", "acked", "lapsed", "timed_out"}
    assert [code_at(mesh, region, made["key"]) for region in mesh.regions] == ["invalid_api_key"] * len(mesh.regions)
    assert code_at(mesh, VN, other["key"]) == "ok"
    again = {row["key_id"]: row["revoked_at"] for row in mesh.ask("key", "list", made["tenant"]).items}
    assert again == {made["key_id"]: revoked["revoked_at"], other["key_id"]: None}


def test_a_pin_is_seen_by_every_running_gateway(mesh: Mesh) -> None:
    made = mesh.tenant("moving", "--allow", "VN,SG", "--transfer", "within_allowed")
    key = made["key"]
    pids = [gateway["pid"] for row in mesh.status()["regions"] for gateway in row["gateways"]]
    for region in (VN, SG):
        seen(mesh, region, key, "ok")
    body: Json = {"model": ELSEWHERE, "messages": messages("Hi"), "max_tokens": 2}
    assert mesh.post(VN, "/v1/chat/completions", body, key).headers["mesh-region"] == SG

    narrow = mesh.ask("pin", made["tenant"], "--allow", "VN").json
    assert code_at(mesh, SG, key) == "residency_refused"
    assert mesh.post(VN, "/v1/chat/completions", body, key).status == 404, "nothing is sent on"
    assert narrow.keys() >= {"tenant", "revision", "allowed", "waited_ms", "acked", "lapsed", "timed_out"}
    assert (narrow["allowed"], narrow["revision"] > made["revision"]) == (["VN"], True)
    answer = mesh.get(VN, "/v1/models", key)
    assert int(answer.headers["mesh-policy-revision"]) == narrow["revision"]

    same = mesh.ask("pin", made["tenant"], "--allow", "VN").json
    assert same["revision"] == narrow["revision"]
    wide = mesh.ask("pin", made["tenant"], "--allow", "VN,JP").json
    seen(mesh, JP, key, "ok")
    assert int(mesh.get(JP, "/v1/models", key).headers["mesh-policy-revision"]) == wide["revision"]
    assert pids == [gateway["pid"] for row in mesh.status()["regions"] for gateway in row["gateways"]]


def test_a_pin_may_name_a_jurisdiction_without_a_region(mesh: Mesh) -> None:
    made = mesh.tenant("wide", "--allow", "VN,KR,CN")
    assert made["allowed"] == ["CN", "KR", "VN"]
    seen(mesh, VN, made["key"], "ok")


def test_a_home_by_name(mesh: Mesh) -> None:
    made = mesh.tenant("abroad", "--allow", "VN,SG", "--home", SG)
    assert made["home"] == SG
    assert made["key"].startswith("mk_sg_")
    seen(mesh, VN, made["key"], "ok")
    assert mesh.ask("tenant", "show", made["name"]).json["home"] == SG


def test_a_tenant_moves_to_another_home_and_is_served_meanwhile(mesh: Mesh) -> None:
    made = mesh.tenant("nomad", "--allow", "VN,SG")
    tenant, key = made["tenant"], made["key"]
    for region in (VN, SG):
        seen(mesh, region, key, "ok")
    assert mesh.refused("tenant", "move", tenant, "--home", JP)["code"] == "home_outside_pin"
    over = threading.Event()

    def call(region: str) -> list[str]:
        said: list[str] = []
        while not over.is_set():
            said.append(code_at(mesh, region, key))
        return said

    body: Json = {"model": CHAT, "messages": messages("Tell me of the sea"), "max_tokens": 64}
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(call, region) for region in (VN, SG)]
        running = pool.submit(mesh.post, VN, "/v1/chat/completions", body, key)
        moved = mesh.ask("tenant", "move", made["name"], "--home", SG).json
        over.set()
        answered = [set(one.result()) for one in asked]
        whole = running.result()
    assert answered == [{"ok"}, {"ok"}], "no call was refused meanwhile"
    assert (whole.status, json.loads(whole.body)["usage"]["completion_tokens"] > 0) == (200, True)
    assert moved.keys() >= _TENANT | {"op_id", "waited_ms", "acked", "lapsed", "timed_out"}
    assert (moved["tenant"], moved["name"], moved["home"], moved["allowed"]) == (tenant, made["name"], SG, ["SG", "VN"])
    assert {member["region"] for member in moved["acked"]} == set(mesh.regions)
    assert mesh.ask("tenant", "show", made["name"]).json["home"] == SG
    assert [one["home"] for one in mesh.ask("tenant", "list").items if one["tenant"] == tenant] == [SG]
    # The old home's jurisdiction can leave the pin now; keys and usage are the same tenant's.
    pinned = mesh.ask("pin", made["name"], "--allow", "SG").json
    assert pinned["allowed"] == ["SG"]
    assert (code_at(mesh, VN, key), code_at(mesh, SG, key)) == ("residency_refused", "ok")
    used = {item["region"]: item["requests"] for item in mesh.ask("usage", made["name"]).json["items"] if item["model"]}
    assert used[VN] == 1
    assert mesh.ask("key", "create", tenant).json["key"].startswith("mk_sg_")
    mesh.ask("key", "revoke", made["key_id"])
    assert code_at(mesh, SG, key) == "invalid_api_key"


def test_the_home_is_by_default_in_the_first_jurisdiction_named(mesh: Mesh) -> None:
    assert mesh.tenant("first", "--allow", "SG,VN")["home"] == SG


def test_refusals(mesh: Mesh) -> None:
    made = mesh.tenant("taken", "--allow", "VN,SG")
    for args, code in [
        (("tenant", "create", made["name"], "--allow", "VN"), "tenant_exists"),
        (("tenant", "create", "x1", "--allow", "VN,XX"), "unknown_jurisdiction"),
        (("tenant", "create", "x2", "--allow", "VN", "--home", SG), "home_outside_pin"),
        (("tenant", "create", "x3", "--allow", "VN", "--home", "mars-1"), "unknown_region"),
        (("tenant", "show", "nobody"), "tenant_not_found"),
        (("tenant", "suspend", "t_aaaaaaaaaaaaaaaa"), "tenant_not_found"),
        (("key", "create", "nobody"), "tenant_not_found"),
        (("key", "revoke", "000000000000"), "key_not_found"),
        (("pin", made["tenant"], "--allow", "SG"), "home_outside_pin"),
        (("pin", made["tenant"], "--allow", "VN,XX"), "unknown_jurisdiction"),
        (("pin", "nobody", "--allow", "VN"), "tenant_not_found"),
        (("route", "explain", "--tenant", "nobody", "--model", CHAT), "tenant_not_found"),
        (("usage", "nobody"), "tenant_not_found"),
    ]:
        error = mesh.refused(*args)
        assert (error["code"], bool(error["message"])) == (code, True), args
        assert "nobody" not in json.dumps(error)
    assert mesh.ask("tenant", "show", made["tenant"]).json["revision"] >= 1


def test_wrong_usage_is_told_apart(mesh: Mesh) -> None:
    for args in [
        ("tenant", "create", "x"),
        ("pin", "x"),
        ("nonsense",),
        ("usage",),
        ("status", "--shiny"),
        ("pin", "x", "--allow", "VN,,SG"),
    ]:
        error = mesh.refused(*args, code=2)
        assert error["message"], args


def test_a_name_in_two_homes_is_ambiguous(mesh: Mesh) -> None:
    name = f"twin-{mesh.mark}"
    both = [mesh.ask("tenant", "create", name, "--allow", "VN,SG", "--home", home).json for home in (VN, SG)]
    error = mesh.refused("tenant", "show", name)
    assert error["code"] == "ambiguous_tenant"
    assert all(made["tenant"] in error["remedy"] for made in both)
    assert mesh.refused("pin", name, "--allow", "VN")["code"] == "ambiguous_tenant"
    assert [mesh.ask("tenant", "show", made["tenant"]).json["home"] for made in both] == [VN, SG]


def test_explanations_are_those_of_the_hot_path(mesh: Mesh) -> None:
    acme, globex = (mesh.samples[name]["tenant"] for name in ("acme", "globex"))

    def explain(tenant: str, model: str, *at: str) -> Json:
        told = mesh.ask("route", "explain", "--tenant", tenant, "--model", model, *at).json
        assert told.keys() == {"tenant", "model", "at", "outcome", "region", "code", "reasons"}
        assert (told["tenant"], told["model"]) == (tenant, model)
        assert {reason["region"] for reason in told["reasons"]} >= set(mesh.regions)
        assert all(reason["verdict"] in {"taken", "rejected"} and reason["text"] for reason in told["reasons"])
        taken = [reason["region"] for reason in told["reasons"] if reason["verdict"] == "taken"]
        assert taken == ([] if told["outcome"] == "refuse" else [told["region"]])
        return told

    home = explain(acme, CHAT)
    assert (home["at"], home["outcome"], home["region"], home["code"]) == (VN, "serve", VN, None)
    away = explain(acme, CHAT, "--at", SG)
    assert (away["at"], away["outcome"], away["region"], away["code"]) == (SG, "refuse", None, "residency_refused")
    sent = explain(globex, ELSEWHERE)
    assert (sent["outcome"], sent["region"], sent["code"]) == ("forward", SG, None)
    none = explain(acme, ELSEWHERE)
    assert (none["outcome"], none["code"]) == ("refuse", "model_not_found")
    why = {reason["region"]: reason["code"] for reason in none["reasons"]}
    assert (why[VN], why[SG]) == ("model_not_hosted", "jurisdiction_not_allowed")
