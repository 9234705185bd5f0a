"""`honmaru hosts`: the lines that lead AWS's host names to the enclave, for a hosts file or split DNS."""

from __future__ import annotations

import argparse

NAME = "hosts"
HELP = "print the lines for /etc/hosts (or dnsmasq) that lead AWS's host names of the region here"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dns", action="store_true", help="lines for dnsmasq instead: they cover every bucket")
    parser.add_argument("--bucket", action="append", default=[], metavar="NAME", help="a bucket that needs a line")


def run(args: argparse.Namespace) -> int:
    from honmaru.app.hostnames import default_buckets, dns_lines, hosts_lines, service_hosts
    from honmaru.app.operator import ask

    status = ask(args.data, "Status")
    hosts = status["hosts"]
    if not hosts:
        from honmaru.api.models import SERVICES

        hosts = service_hosts(status["region"], SERVICES)
        print("# The enclave does not serve these names now: start it with `honmaru up --real-hostnames`")
    if args.dns:
        lines = dns_lines(status["host"], hosts)
    else:
        buckets = [*default_buckets(status["region"], status["account"]), *args.bucket]
        lines = hosts_lines(status["host"], hosts, buckets)
    print("\n".join(lines))
    return 0
