"""X.509 certificates for OPC UA: our application instance certificate (IEC 62541-6, 6.2.2), and servers' to trust."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.errors import PlcError

KEY_BITS = 2048  # what Basic256Sha256 allows at least, and every PLC can check
YEARS = 10  # a line that stops because nobody renewed a certificate helps no one; servers trust it one by one


def create_certificate(folder: Path, host: str | None = None) -> tuple[Path, Path]:
    """Makes `opcua-certificate.der` and `opcua-key.pem` (mode 0600) in `folder`; returns their paths.

    `host` is the name of this computer in the certificate and in its application URI `urn:HOST:edge-inspect`. Raises
    `PlcError` where either file exists (servers would no longer trust us) or cannot be written.
    """
    host = host or socket.gethostname()
    paths = (folder / "opcua-certificate.der", folder / "opcua-key.pem")
    for path in paths:
        if path.exists():
            raise PlcError(f"{path}: exists already; remove it first, and trust the new one in every server")
    key = rsa.generate_private_key(public_exponent=65_537, key_size=KEY_BITS)
    contents = (
        _self_signed(key, host).public_bytes(serialization.Encoding.DER),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, content, mode in zip(paths, contents, (0o644, 0o600), strict=True):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            written.append(path)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise PlcError(f"{folder}: cannot write the certificate: {error.strerror}") from error
    return paths


def _self_signed(key: rsa.RSAPrivateKey, host: str) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edge-inspect@{host}"[:64])])
    now = datetime.datetime.now(datetime.timezone.utc)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=True,
        key_encipherment=True,
        data_encipherment=True,
        key_agreement=False,
        key_cert_sign=True,  # self-signed: it signs itself
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    alternatives = [x509.UniformResourceIdentifier(f"urn:{host}:edge-inspect"), x509.DNSName(host)]
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a PLC's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def certificate_der(path: Path, owner: str) -> bytes:
    """The certificate in a DER or PEM file, as DER. Raises `PlcError` that begins with `owner`."""
    try:
        data = path.read_bytes()
        if b"-----BEGIN" in data:
            certificate = x509.load_pem_x509_certificate(data)
        else:
            certificate = x509.load_der_x509_certificate(data)
    except OSError as error:
        raise PlcError(f"{owner}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PlcError(f"{owner}: {path} holds no certificate (DER or PEM)") from error
    return certificate.public_bytes(serialization.Encoding.DER)


def application_uri(der: bytes, owner: str) -> str:
    """The application URI in a certificate. Raises `PlcError` where it has none: servers would refuse it."""
    certificate = x509.load_der_x509_certificate(der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if not uris:
        raise PlcError(f"{owner}: has no application URI; make one with `edge plc certificate`")
    return uris[0]


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate as people compare it."""
    digest = hashlib.sha256(der).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))
