"""TLS in front of a server: certificates of the test's own, and a proxy that terminates TLS."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SSL_REQUEST = bytes([0, 0, 0, 8, 4, 210, 22, 47])  # of PostgreSQL's protocol


@dataclass(frozen=True)
class Certificates:
    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def made(cls, folder: Path, name: str = "localhost", days_valid: float = 1.0) -> "Certificates":
        """An authority, and its certificate for a name.

        days_valid: from now on; negative for an expired one, since a day ago at most
        """
        folder.mkdir(parents=True, exist_ok=True)
        authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        authority_name = _named(f"authority of {folder.name}")
        authority = (
            _builder(authority_name, authority_name, authority_key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(authority_key, hashes.SHA256())
        )
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        with suppress(ValueError):
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        own = (
            _builder(_named(name), authority_name, key, days_valid)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        made = cls(folder / "authority.pem", folder / "own.pem", folder / "own.key")
        pem = serialization.Encoding.PEM
        made.authority.write_bytes(authority.public_bytes(pem))
        made.certificate.write_bytes(own.public_bytes(pem))
        made.key.write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return made


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days_valid: float = 1.0,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days_valid))
    )


@contextmanager
def in_front_of(
    connect_to: tuple[str, int] | str, certificates: Certificates, *, postgres: bool = False
) -> Iterator[int]:
    """The port of a proxy that takes only TLS, for a server without TLS.

    postgres: TLS begins after PostgreSQL's own request for it
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError), client:
            if postgres:
                if client.recv(8, socket.MSG_WAITALL) != SSL_REQUEST:
                    return
                client.sendall(b"S")
            with (
                context.wrap_socket(client, server_side=True) as secured,
                _connected(connect_to) as server,
            ):
                back = threading.Thread(target=_pass_on, args=(server, secured), daemon=True)
                back.start()
                _pass_on(secured, server)
                back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()


def _connected(to: tuple[str, int] | str) -> socket.socket:
    if isinstance(to, tuple):
        return socket.create_connection(to)
    made = socket.socket(socket.AF_UNIX)
    made.connect(to)
    return made


def _pass_on(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError, ssl.SSLError, ValueError):
        while data := source.recv(65536):
            to.sendall(data)
    for each in (source, to):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
