"""Exposure: finds a Redis or database that strangers can reach or impersonate."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from sqlalchemy.engine import URL

from cli.stack.libpq_options import connection_options, remote_hosts
from cli.stack.local_host import is_local

# Options of libpq that authenticate a client without a password in the URL.
CREDENTIALS = ("passfile", "password", "service", "sslcert")
ROOT_CERTIFICATE = Path("~/.postgresql/root.crt")  # libpq's default
# By `sslmode`: the weakness that an attacker between worker and server can use.
WEAKNESSES = {
    "disable": "is not encrypted: whoever is between reads every text",
    "allow": "is not encrypted unless the server insists: whoever is between reads every text",
    "prefer": "is encrypted only if the server offers it, and its certificate is not checked: "
    "whoever is between can read every text, and answer in its place",
    "require": "is encrypted, but the server's certificate is not checked: whoever is between can "
    "answer in its place, and read every text",
    "verify-ca": "takes any certificate of its authority, for whichever name: who has one can "
    "answer in its place, and read every text",
}


def redis_exposure(url: str, settings: Mapping[str, str]) -> str | None:
    """Return a sentence about a Redis that strangers can reach or impersonate; None if they cannot.

    settings: as Redis reports them; empty if it refuses to
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    # For a client `optional` means `required`, since a server always sends a certificate.
    if query.get("ssl_cert_reqs", [""])[-1] == "none" and not is_local(parts.hostname):
        return (
            f"no certificate of {parts.hostname} is checked (ssl_cert_reqs), so that whoever is "
            "between can read and send as Redis; leave it out, and give the file of its authority "
            "as ssl_ca_certs in TIDEMILL_REDIS_URL"
        )
    if query.get("ssl_check_hostname", [""])[-1] == "false" and not is_local(parts.hostname):
        return (
            f"a certificate of {parts.hostname} may be for any name (ssl_check_hostname), so that "
            "who has another one of its authority can read and send as Redis; leave it out, and "
            "name the host in TIDEMILL_REDIS_URL as its certificate does"
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
    """Return a sentence about a database that strangers can read; None if they cannot."""
    if url.get_backend_name() == "sqlite":
        return _file_exposure(Path(url.database or ""))
    remote = remote_hosts(connection_options(url, environment))
    if url.password or not remote:
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


def database_tls_weakness(url: URL, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return a sentence about a weak connection to a remote PostgreSQL; None for any other.

    A connection is weak if an attacker between worker and server can read it, or answer as the
    server.
    """
    if url.get_backend_name() == "sqlite":
        return None
    options = connection_options(url, environment)
    remote = remote_hosts(options)
    if not remote:
        return None
    # Kerberos encryption, and SCRAM with channel binding, both authenticate the server.
    if options.get("gssencmode") == "require" or options.get("channel_binding") == "require":
        return None
    # With the system's certificate authorities, libpq's default is verify-full.
    default = "verify-full" if options.get("sslrootcert") == "system" else "prefer"
    mode = options.get("sslmode", default)
    knows_authority = options.get("sslrootcert") or ROOT_CERTIFICATE.expanduser().is_file()
    # With a root certificate file libpq treats `require` as `verify-ca`.
    meant = "verify-ca" if mode == "require" and knows_authority else mode
    weakness = WEAKNESSES.get(meant)
    if weakness is None:
        return None  # verify-full, or a value that libpq refuses
    return (
        f"the connection to {', '.join(remote)} {weakness} (sslmode {mode}); give "
        "sslmode=verify-full and its authority's certificate file as sslrootcert in "
        "TIDEMILL_DATABASE_URL, with the host name that its certificate has"
    )


def _file_exposure(file: Path) -> str | None:
    """Return a sentence about a file that every user of this machine can read; else None."""
    file = file.resolve()
    try:
        folders_let_in = all(folder.stat().st_mode & 0o001 for folder in file.parents)
        if not folders_let_in or not file.stat().st_mode & 0o006:
            return None
    except OSError:
        return None  # a missing file is reported elsewhere
    return (
        f"every user of this machine can read {file}, and so every text; "
        f"`chmod o-rwx {shlex.quote(str(file))}*`"
    )
