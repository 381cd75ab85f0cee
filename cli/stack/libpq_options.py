"""Reads the options of a connection to PostgreSQL from every place where libpq looks for them."""

import re
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as NotReadable
from pathlib import Path

from sqlalchemy.engine import URL

from cli.stack.local_host import is_local

# libpq's environment variables by connection option; the URL and a service file take precedence.
VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "gssencmode": "PGGSSENCMODE",
    "channel_binding": "PGCHANNELBINDING",
}


def connection_options(url: URL, environment: Mapping[str, str]) -> dict[str, str]:
    """Return a connection's options as libpq merges them.

    The URL takes precedence over a service file, and that over the environment.
    """
    in_url = {name: _joined(value) for name, value in url.query.items()}
    if url.host and not in_url.get("host"):
        in_url["host"] = url.host
    service = in_url.get("service") or environment.get("PGSERVICE")
    of_service = _service_options(service, environment) if service else {}
    in_environment = {name: environment.get(key, "") for name, key in VARIABLES.items()}
    options: dict[str, str] = {}
    for place in (in_environment, of_service, in_url):
        options |= {name: value for name, value in place.items() if value}
    return options


def _service_options(service: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the options of a service from libpq's service files; the user's file comes first."""
    files = [Path(environment.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf")]
    if folder := environment.get("PGSYSCONFDIR"):
        files.append(Path(folder) / "pg_service.conf")
    for file in files:
        parser = ConfigParser(
            delimiters=("=",), comment_prefixes=("#",), interpolation=None, strict=False
        )
        try:
            parser.read(file, encoding="utf-8")
        except (NotReadable, UnicodeDecodeError, OSError):
            continue  # libpq reports it when it connects
        if parser.has_section(service):
            return dict(parser[service])
    return {}


def remote_hosts(options: Mapping[str, str]) -> list[str]:
    """Return the names of the hosts that are other machines.

    If a host also has an address (`hostaddr`), the address decides.
    """
    hosts, addresses = (options.get(name, "").split(",") for name in ("host", "hostaddr"))
    places = max(len(hosts), len(addresses))
    named = hosts + [""] * (places - len(hosts))
    reached = addresses + [""] * (places - len(addresses))
    # In SQLAlchemy's form of several hosts, each may be followed by its port.
    shown = [re.sub(r"\A([^:]*):[0-9]*\Z", r"\1", each) for each in named]
    return [
        name or address
        for name, address in zip(shown, reached, strict=True)
        if not is_local(address or name)
    ]


def _joined(value: str | tuple[str, ...]) -> str:
    return ",".join(value) if isinstance(value, tuple) else value
