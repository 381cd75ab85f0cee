"""Exposure: finds a Redis or database that strangers can reach or impersonate."""

import os
import shlex
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from sqlalchemy.engine import URL

LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")
# Settings of libpq that give access without a password in the URL.
CREDENTIALS = ("passfile", "password", "service", "sslcert")


def is_local(host: str | None) -> bool:
    """Whether only this machine can reach the host; None or a path is a socket."""
    if not host or host.startswith("/") or host in LOCAL_NAMES:
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def redis_exposure(url: str, settings: Mapping[str, str]) -> str | None:
    """A sentence on a Redis that lets strangers in; None if it does not.

    settings: as Redis reports them; empty if it does not
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if query.get("ssl_cert_reqs", ["required"])[-1] != "required" and not is_local(parts.hostname):
        return (
            f"no certificate of {parts.hostname} is checked (ssl_cert_reqs), so that whoever is "
            "between can read and send as Redis; leave it out, and give the file of its authority "
            "as ssl_ca_certs in TIDEMILL_REDIS_URL"
        )
    if parts.password or query.get("ssl_certfile"):
        return None
    if not is_local(parts.hostname):
        return (
            f"{parts.hostname} lets in without a password whoever can reach it, to read job ids "
            "and to send jobs; set `requirepass` there, and the password in TIDEMILL_REDIS_URL"
        )
    bound = settings.get("bind", "127.0.0.1").split()
    addresses = [address.lstrip("-") for address in bound]
    others = not bound or any(not is_local(address) for address in addresses)
    if others and settings.get("protected-mode") == "no":
        return (
            f"it listens for other machines ({' '.join(addresses) or 'all addresses'}) without a "
            "password; bind it to 127.0.0.1, or set `requirepass`"
        )
    return None


def database_exposure(url: URL, environment: Mapping[str, str] = os.environ) -> str | None:
    """A sentence on a database that lets strangers in; None if it does not."""
    if url.get_backend_name() == "sqlite":
        return _file_exposure(Path(url.database or ""))
    if url.password:
        return None
    hosts = [url.host] if url.host else _listed(url.query.get("host"))
    remote = [host for host in hosts if not is_local(host)]
    if not remote:
        return None
    named = any(name in url.query for name in CREDENTIALS)
    has_password = any(environment.get(name) for name in ("PGPASSWORD", "PGPASSFILE", "PGSERVICE"))
    if named or has_password or (Path.home() / ".pgpass").is_file():
        return None
    return (
        f"{', '.join(remote)} lets in without a password whoever can reach it, to read every "
        "text; ask for one in its pg_hba.conf (scram-sha-256), and give it in "
        "TIDEMILL_DATABASE_URL"
    )


def _file_exposure(file: Path) -> str | None:
    """A sentence on a file that every user of this machine can read; None for others."""
    file = file.resolve()
    try:
        folders_let_in = all(folder.stat().st_mode & 0o001 for folder in file.parents)
        if not folders_let_in or not file.stat().st_mode & 0o006:
            return None
    except OSError:
        return None  # the file does not exist, which is reported elsewhere
    return (
        f"every user of this machine can read {file}, and so every text; "
        f"`chmod o-rwx {shlex.quote(str(file))}*`"
    )


def _listed(hosts: str | tuple[str, ...] | None) -> list[str]:
    joined = ",".join(hosts) if isinstance(hosts, tuple) else hosts or ""
    return [host for host in joined.split(",") if host]
