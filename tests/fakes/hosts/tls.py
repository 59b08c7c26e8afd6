"""A certificate of our own for the fake model hosts, good for 127.0.0.1 and localhost."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM
CA_KEY_USAGE = x509.KeyUsage(True, False, False, False, False, True, True, False, False)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(subject: str, key: Any, *extensions: tuple[Any, bool]) -> Any:
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name("Fake CA"))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """Write ca.pem and server.pem (key and certificate) into a folder."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    identifier = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    basic = (x509.BasicConstraints(ca=True, path_length=None), True)
    ca = _certificate("Fake CA", ca_key, basic, (CA_KEY_USAGE, True), (identifier, False))
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    leaf = _certificate(
        "localhost",
        key,
        (x509.SubjectAlternativeName(addresses), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (authority, False),
    )
    ca_file, server_file = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private = key.private_bytes(PEM, *plain)
    server_file.write_bytes(private + leaf.sign(ca_key, hashes.SHA256()).public_bytes(PEM))
    return ca_file, server_file


def server_context(server_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_file)
    return context
