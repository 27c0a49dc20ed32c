"""TLS: a provider is known by the authority that its core names, and by no other."""

from __future__ import annotations

import asyncio
import importlib
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aiosd.endpoints.__main__ import DRIVERS
from aiosd.endpoints.endpoint import Delta, End, Endpoint, Trouble
from aiosd.endpoints.protocol import Chat, Message, Setup
from tests.frontier import Frontier

CHAT = Chat([Message("user", "Hello")], 50)


async def ask(client: Endpoint) -> Delta:
    """Have a provider looked at, and ask it; return the last of its reply."""
    try:
        await client.check()
        return [delta async for delta in client.chat(CHAT)][-1]
    finally:
        await client.close()


@pytest.mark.parametrize("driver", ["openai", "anthropic", "gemini"])
def test_a_provider_is_known_by_its_authority(driver: str, tmp_path: Path) -> None:
    def made(ca_file: str) -> Endpoint:
        file = str(tmp_path / ca_file) if ca_file else ""
        module, name = DRIVERS[driver]
        url = frontier.url("x") if driver == "openai" else frontier.url("x").removesuffix("/v1")
        setup = Setup(driver, "m", url, "", "openai", 30.0, 60.0, 60.0, file)
        client: Endpoint = getattr(importlib.import_module(module), name)(setup, "")
        return client

    with Frontier(served(tmp_path)) as frontier:
        assert isinstance(asyncio.run(ask(made("good.pem"))), End)
        for wrong in ("other.pem", ""):
            with pytest.raises(Trouble, match=r"certificate is not trusted: .* ca_file") as found:
                asyncio.run(ask(made(wrong)))
            assert found.value.kind == "unreachable"
        with pytest.raises(FileNotFoundError, match=r"none\.pem: No such file"):
            made("none.pem")
        with pytest.raises(OSError, match=r"empty\.pem: it has no certificates"):
            made("empty.pem")
    assert len(frontier.bodies["x"]) == 1  # nothing was said to whom nobody trusts


def served(directory: Path) -> ssl.SSLContext:
    """Make two authorities, and a server's context with a certificate of the one that is good."""
    key, name = authority(directory / "good.pem", "good")
    authority(directory / "other.pem", "other")
    (directory / "empty.pem").write_text("nothing\n")
    own = ec.generate_private_key(ec.SECP256R1())
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    issued = (
        certificate(_name("server"), name, own.public_key())
        .add_extension(address, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    secret = own.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    whole = directory / "server.pem"
    whole.write_bytes(issued.public_bytes(serialization.Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(whole)
    return context


def authority(path: Path, title: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Name]:
    """Write an authority's certificate; return its key and name."""
    key, name = ec.generate_private_key(ec.SECP256R1()), _name(title)
    use = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=True,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
    made = (
        certificate(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(use, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key, name


def certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """Begin a certificate that is good for a day around now."""
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(),
        now - timedelta(days=1), now + timedelta(days=1),
    )  # fmt: skip


def _name(title: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
