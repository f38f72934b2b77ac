"""The border lab to play with: `scripts/border-lab`.

border-lab up [--rtt vn-sg=30,sg-jp=70,vn-jp=90] [--gateways vn=2]    brings it up and stays; Ctrl-C, or `down`, ends it
border-lab status                     what crosses each border, by service, and what is set on it
border-lab cut vn sg [--one-way]      nothing passes; what is in flight is lost too
border-lab heal [vn sg] [--one-way]   it passes again
border-lab delay vn sg 120 [--jitter 5] [--loss 0.01]    the round trip in ms, half of it each way
border-lab pcap FILE | off            records all that crosses
border-lab down
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from border.countries import ABROAD, CHAT, Countries, Tenant
from border.namespaces import COUNTRIES, GRPC, HTTP, RTT_MS, LabError, Network, Router, ip, missing

LAB = "play"
SERVICES = {
    2379: "etcd",
    2380: "etcd peers",
    8445: "border",
    8446: "admin",
    8447: "peer",
    8545: "border 2",
    8547: "peer 2",
    0: "other",
}


def main(argv: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="border-lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up_ = commands.add_parser("up")
    up_.add_argument("--rtt", type=_round_trips, default=dict(RTT_MS))
    up_.add_argument("--gateways", type=_numbers, default={})
    commands.add_parser("down")
    commands.add_parser("status")
    for name in ("cut", "heal"):
        one = commands.add_parser(name)
        for end in ("source", "target"):
            one.add_argument(
                end, choices=[*COUNTRIES, "*"], **({"nargs": "?", "default": "*"} if name == "heal" else {})
            )
        one.add_argument("--one-way", action="store_true")
    delay = commands.add_parser("delay")
    for end in ("source", "target"):
        delay.add_argument(end, choices=[*COUNTRIES, "*"])
    delay.add_argument("rtt", type=float, help="round trip, ms")
    delay.add_argument("--jitter", type=float, default=0.0, help="ms, each way")
    delay.add_argument("--loss", type=float, default=0.0, help="share of the packets, 0 to 1")
    commands.add_parser("pcap").add_argument("file")
    options = parser.parse_args(argv)
    network = Network(LAB)
    try:
        match options.command:
            case "up":
                up(network, options.rtt, options.gateways)
            case "down":
                down(network)
            case "status":
                status(network)
            case _:
                control(network, options)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def up(network: Network, rtt_ms: dict[tuple[str, str], float], gateways: dict[str, int]) -> None:
    """Brings it up, says what there is, and stays until it is told to end."""
    if (reason := missing()) is not None:
        raise LabError(f"{reason}: run it with sudo")
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"border lab: {time.monotonic() - began_s:4.0f} s: {text}", file=sys.stderr, flush=True)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with network.held():
        countries = Countries(network, network.up(), say, gateways)
        try:
            countries.start(rtt_ms)
            acme = countries.tenant("acme", "VN")
            globex = countries.tenant("globex", "VN", "SG", transfer="within_allowed")
            print(shown(countries, acme, globex), flush=True)
            while True:
                signal.pause()
        except KeyboardInterrupt:
            say("ending")
        finally:
            countries.close()
    say("gone")


def shown(countries: Countries, acme: Tenant, globex: Tenant) -> str:
    """What there is, and what may be tried."""
    network, ca = countries.network, countries.doors_ca
    lines = ["", "country  HTTP door               gRPC door         border side"]
    for name, one in COUNTRIES.items():
        lines.append(f"{name:8} https://{one.public}:{HTTP}  {one.public}:{GRPC}    {one.border}   ({one.region})")
    lines += ["", f"CA of the doors: {ca}", f"logs: {countries.home.logs}"]
    for tenant in (acme, globex):
        lines.append(f"{tenant.name}: {tenant.id}, pinned to {','.join(tenant.allowed)}, key {tenant.key}")
    clients = f"ip netns exec {network.names['pub']}"
    body = '{"model": "%s", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}'
    ask = f"{clients} curl --cacert {ca} -H 'content-type: application/json' -H 'authorization: Bearer %s' -d '%s' https://%s:{HTTP}/v1/chat/completions"
    lines += [
        "",
        "served in vn, refused in sg, and sent on from vn to sg:",
        "  " + ask % (acme.key, body % CHAT, COUNTRIES["vn"].public),
        "  " + ask % (acme.key, body % CHAT, COUNTRIES["sg"].public),
        "  " + ask % (globex.key, body % ABROAD, COUNTRIES["vn"].public),
        "",
        "a shell in vn, and the border from elsewhere:",
        f"  ip netns exec {network.names['vn']} bash",
        "  scripts/border-lab status",
        "  scripts/border-lab cut vn sg; scripts/border-lab heal",
        "  scripts/border-lab delay vn jp 120 --jitter 5",
        "",
        "Ctrl-C ends it.",
    ]
    return "\n".join(lines)


def down(network: Network) -> None:
    """Ends the lab that runs, and removes what a killed one left."""
    holder = network.holder()
    if holder is not None:
        os.kill(holder, signal.SIGTERM)
        deadline_s = time.monotonic() + 60
        while network.holder() is not None:
            if time.monotonic() > deadline_s:
                raise LabError(f"process {holder} does not end; kill it, then run 'down' again")
            time.sleep(0.1)
    with network.held():
        pass
    print("border lab: gone", file=sys.stderr)


def status(network: Network) -> None:
    """What is set on each border and what crossed it."""
    with suppress(LabError):
        for line, counts in Router(network.folder / "router.sock").lines().items():
            ports = ", ".join(f"{SERVICES[int(p)]} {n['bytes']:,} B" for p, n in sorted(counts["ports"].items()))
            state = "CUT " if counts["is_cut"] else ""
            line_ = f"{counts['delay_ms']:g} ms, jitter {counts['jitter_ms']:g} ms, loss {counts['loss']:.1%}"
            print(f"{line}: {state}{line_}; crossed: {ports or 'nothing'}")
        for who, name in network.names.items():
            print(f"{name}: {len(network.pids([who]))} processes")
        return
    left = [name for name in network.names.values() if name in ip("netns").split()]
    print("no lab runs" + (f"; a killed one left {', '.join(left)}: 'down' removes it" if left else ""))


def control(network: Network, options: argparse.Namespace) -> None:
    """What changes the border of the lab that runs."""
    router = Router(network.folder / "router.sock")
    match options.command:
        case "cut":
            router.cut(options.source, options.target, both=not options.one_way)
        case "heal":
            router.heal(options.source, options.target, both=not options.one_way)
        case "delay":
            more = {"delay_ms": options.rtt / 2, "jitter_ms": options.jitter, "loss": options.loss}
            router.ask("set", options.source, options.target, both=True, **more)
        case _:
            router.ask("pcap", file=None if options.file == "off" else str(Path(options.file).absolute()))


def _round_trips(text: str) -> dict[tuple[str, str], float]:
    found = dict(RTT_MS)
    for pair, ms in (one.split("=") for one in text.split(",")):
        a, b = pair.split("-")
        found.pop((b, a), None)
        found[a, b] = float(ms)
    if any(name not in COUNTRIES for pair in found for name in pair):
        raise ValueError(text)
    return found


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (one.split("=") for one in text.split(","))}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
