"""Distinguishes hosts that only this machine can reach from all others."""

from ipaddress import IPv6Address, ip_address

LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


def is_local(host: str | None) -> bool:
    """Whether only this machine can reach the host. None or a path means a Unix socket."""
    if not host or host.startswith(("/", "@")) or host.lower().rstrip(".") in LOCAL_NAMES:
        return True
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback
