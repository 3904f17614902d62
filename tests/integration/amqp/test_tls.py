"""TLS and login by certificate, on a node of its own with a listener for it."""

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hopline import Node
from hopline.amqp import (
    AuthenticationFailed,
    ConnectFailed,
    Outgoing,
    Properties,
    ProtocolError,
    Published,
    UsageError,
    connect,
)
from hopline.node import free_ports

EXTERNAL = """
    application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'EXTERNAL']),
    application:set_env(rabbit, ssl_cert_login_from, common_name),
    application:set_env(rabbit, ssl_options, OPTIONS).
"""


class Tls(NamedTuple):
    """A node with TLS, and the files of its little authority."""

    node: Node
    port: int
    ca: Path
    folder: Path

    def url(self, login: str = "guest:guest@", *, host: str = "localhost", **query: object) -> str:
        text = "&".join(f"{name}={value}" for name, value in query.items())
        return f"amqps://{login}{host}:{self.port}/%2F?{text}"


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _certificate(folder: Path, name: str, common_name: str, alternative: str) -> None:
    """NAME.pem and NAME.key, signed by ca.pem."""
    request = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    _openssl(folder, *request, "-subj", f"/CN={common_name}")
    identifiers = (
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"  # Python 3.13 verifies strictly (RFC 5280)
    )
    (folder / f"{name}.ext").write_text(f"subjectAltName={alternative}\n{identifiers}")
    sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
    _openssl(folder, *sign, "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, rabbitmq: Node) -> Iterator[Tls]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    authority = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem")
    _openssl(folder, *authority, "-days", "2", "-subj", "/CN=hopline test authority", *usage)
    _certificate(folder, "server", "localhost", "DNS:localhost")
    _certificate(folder, "client", "warehouse", "DNS:warehouse")
    assert rabbitmq.port
    with Node(folder / "node", management=False) as node:  # stopped too if one of the steps below fails
        port = free_ports(1)[0]
        files = ", ".join(
            f'{{{option}, "{folder / name}"}}'
            for option, name in (("cacertfile", "ca.pem"), ("certfile", "server.pem"), ("keyfile", "server.key"))
        )
        options = f"[{files}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, false}}]"
        plugin = [str(Path(str(node._sbin)) / "rabbitmq-plugins"), "enable", "rabbitmq_auth_mechanism_ssl"]
        subprocess.run(plugin, env=node._environment(), cwd=node.folder, check=True, capture_output=True)
        node.ctl("eval", " ".join(EXTERNAL.split()).replace("OPTIONS", options))
        node.ctl("eval", f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, {options}, 1).')
        node.ctl("add_user", "warehouse", "not the password")
        node.ctl("set_permissions", "warehouse", ".*", ".*", ".*")
        yield Tls(node, port, folder / "ca.pem", folder)


async def test_messages_pass_over_tls_with_the_authority_named_in_the_url(tls: Tls) -> None:
    connection = await connect(tls.url(cacertfile=tls.ca))
    channel = await connection.channel()
    await channel.confirm_select()
    queue = (await channel.declare_queue("", exclusive=True, durable=False)).name
    body = os.urandom(300_000)

    outcomes = await channel.publish([Outgoing("", queue, Properties(), body)])
    delivery = await channel.get(queue)

    assert outcomes == [Published.CONFIRMED]
    assert delivery is not None
    assert delivery.body == body
    await connection.close()


async def test_an_ssl_context_of_ones_own_is_used(tls: Tls) -> None:
    context = ssl.create_default_context(cafile=str(tls.ca))

    connection = await connect(tls.url(), ssl_context=context)

    await connection.close()


async def test_an_unknown_authority_is_refused_by_default(tls: Tls) -> None:
    with pytest.raises(ConnectFailed, match="certificate"):
        await connect(tls.url())


async def test_another_host_name_is_refused_unless_it_is_expected(tls: Tls) -> None:
    with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1"):
        await connect(tls.url(host="127.0.0.1", cacertfile=tls.ca))

    connection = await connect(tls.url(host="127.0.0.1", cacertfile=tls.ca, server_name_indication="localhost"))

    await connection.close()


async def test_verification_can_be_turned_off_in_so_many_words(tls: Tls) -> None:
    connection = await connect(tls.url(host="127.0.0.1", verify="verify_none"))

    await connection.close()


async def test_a_client_certificate_logs_in_without_a_password(tls: Tls) -> None:
    files = {"certfile": str(tls.folder / "client.pem"), "keyfile": str(tls.folder / "client.key")}

    connection = await connect(tls.url("", cacertfile=tls.ca, auth_mechanism="external", **files))
    listing = await asyncio.to_thread(tls.node.ctl, "list_connections", "user")

    assert "warehouse" in listing
    await connection.close()


async def test_external_without_a_certificate_is_an_authentication_failure(tls: Tls) -> None:
    with pytest.raises(AuthenticationFailed):
        await connect(tls.url(login="", cacertfile=tls.ca, auth_mechanism="external"))


async def test_missing_certificate_files_are_a_mistake(tls: Tls) -> None:
    with pytest.raises(UsageError, match="certificate"):
        await connect(tls.url(cacertfile="/nowhere/ca.pem"))


async def test_plain_amqp_to_the_tls_port_is_a_protocol_error(tls: Tls) -> None:
    with pytest.raises(ProtocolError):
        await connect(tls.url().replace("amqps://", "amqp://"))


async def test_tls_to_the_plain_port_is_connect_failed(tls: Tls) -> None:
    with pytest.raises(ConnectFailed):
        await connect(tls.node.url.replace("amqp://", "amqps://"))
