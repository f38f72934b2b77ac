"""The machines of a region: what fills `cluster.yaml`, the template of Ray's cluster launcher."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mesh.settings.table import Table

_WORD = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_WORD_RULE = "1 to 63 of a-z, 0-9, '.' and '-'"
_IMAGE = re.compile(r"ami-[0-9a-f]{8,17}|resolve:ssm:/[A-Za-z0-9_./-]{1,512}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_GPU = re.compile(r"[A-Z0-9][A-Za-z0-9-]{0,31}")


def read_provider(table: Table) -> Mapping[str, object]:
    """The provider's values as plain tables, checked.

    `type: local` has `head_ip`, `worker_ips` and `ssh_user`: machines that stand there already. `type: aws` has
    `region`, `availability_zones`, `image`, `ssh_user`, and the node types `head`, `gateway` and `gpu`.
    """
    kind = table.choice("type", ("local", "aws"))
    provider: dict[str, object] = {"type": kind, "ssh_user": table.text("ssh_user", _USER, "a Unix user's name")}
    if kind == "local":
        provider["head_ip"] = table.text("head_ip", _HOST, "a host's address")
        provider["worker_ips"] = list(table.texts("worker_ips", _HOST, "a host's address"))
    elif kind == "aws":
        provider["region"] = table.text("region", _WORD, _WORD_RULE)
        provider["availability_zones"] = list(table.texts("availability_zones", _WORD, _WORD_RULE))
        provider["image"] = table.text("image", _IMAGE, "an AMI's id, or resolve:ssm: and a parameter's path")
        provider["head"] = _instance(table.table("head"))
        provider["gateway"] = _instance(table.table("gateway"), least=1)
        provider["gpu"] = _gpu(table.table("gpu"))
    else:
        return {}  # unknown keys of an unknown provider would only bury the fault
    table.close()
    return provider


def _instance(table: Table, least: int | None = None) -> dict[str, object]:
    node: dict[str, object] = {"instance": table.text("instance", _WORD, _WORD_RULE)}
    if least is not None:
        node["count"] = table.integer("count", least, 100)
    table.close()
    return node


def _gpu(table: Table) -> dict[str, object]:
    node: dict[str, object] = {
        "instance": table.text("instance", _WORD, _WORD_RULE),
        "accelerator": table.text("accelerator", _GPU, "Ray's name of the GPU, such as L4"),
        "cpus": table.integer("cpus", 1, 1024),
        "gpus": table.integer("gpus", 1, 64),
        "least": table.integer("least", 0, 1000),
        "most": table.integer("most", 1, 1000),
    }
    table.close()
    return node
