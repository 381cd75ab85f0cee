"""TLS options in the URL of Redis, rewritten so that kombu and redis-py read them alike.

A worker reads the URL with kombu and the commands with redis-py, and they differ: a switch that is
off for one is on for the other, and an option that only one knows raises a KeyError in the other.
"""

import os

from tasks.errors import SettingsError

VERIFICATIONS = ("required", "optional", "none")
CHECKED = {"ssl_cert_reqs": "required"}
FILES = {
    "ssl_ca_certs": "the certificates of the authorities to trust",
    "ssl_certfile": "this client's own certificate",
    "ssl_keyfile": "the key of this client's own certificate",
}
AS_THEY_ARE = ("ssl_ca_path", "ssl_ciphers", "ssl_password")
OPTIONS = tuple(sorted((*FILES, *AS_THEY_ARE, "ssl_cert_reqs", "ssl_check_hostname")))
# PostgreSQL's names of the same options.
OF_POSTGRESQL = {
    "sslmode": "ssl_cert_reqs=required",
    "sslrootcert": "ssl_ca_certs",
    "sslcert": "ssl_certfile",
    "sslkey": "ssl_keyfile",
}
SWITCHES = {
    "true": "true",
    "yes": "true",
    "1": "true",
    "false": "false",
    "no": "false",
    "0": "false",
}


def tls_value(subject: str, name: str, value: str) -> str:
    """The value of an option in a form that both read alike; raises SettingsError.

    subject: the URL in its redacted form
    """
    if name not in OPTIONS:
        meant = OF_POSTGRESQL.get(name)
        hint = f"here it is {meant}" if meant else f"known: {', '.join(OPTIONS)}"
        raise SettingsError(
            f"{subject} has {_shown(name)}, which is no option of TLS to Redis; {hint}"
        )
    if name in AS_THEY_ARE:
        return value
    if name == "ssl_cert_reqs":
        word = value.lower().removeprefix("cert_")
        if word not in VERIFICATIONS:
            raise SettingsError(
                f"{subject} has an ssl_cert_reqs that is none of {', '.join(VERIFICATIONS)}"
            )
        return word
    if name == "ssl_check_hostname":
        if value.lower() not in SWITCHES:
            raise SettingsError(
                f"{subject} has an ssl_check_hostname that is neither true nor false"
            )
        return SWITCHES[value.lower()]
    if not os.access(value, os.R_OK) or not os.path.isfile(value):
        fault = "is no file" if not os.path.isfile(value) else "may not be read by this user"
        raise SettingsError(
            f"{subject}: {value or 'an empty path'}, {FILES[name]} ({name}), {fault}; "
            "put it there, or change the path"
        )
    return value


def _shown(name: str) -> str:
    """A parameter's name, redacted if a `?` in a password may have split it."""
    return name if name.startswith("ssl") and name.isidentifier() else "a parameter"
