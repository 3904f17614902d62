"""A connection: TCP or TLS, login, tuning, channels, blocked and unblocked, and the connection's end.

`connect` tries the hosts of the URL in turn, each under its own deadline, and either gives an open Connection or
raises a typed error; nothing is left running in between. A Connection does not reconnect: it ends once, says why, and
its owner makes a new one. Everything on a connection ends with it: calls raise its reason, publishes end as unknown.

Heartbeats, joined writes and back-pressure are in `transport.py`, the parsing is in `reader.py`.
"""

import asyncio
import platform
import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Self

from hopline.amqp import methods, spec
from hopline.amqp.channel import Channel, open_channel
from hopline.amqp.errors import (
    AMQPError,
    AuthenticationFailed,
    ConnectFailed,
    ConnectionClosed,
    ConnectTimeout,
    NotAllowed,
    ProtocolError,
    TLSFailed,
    UsageError,
    connection_closed,
)
from hopline.amqp.reader import Inlet
from hopline.amqp.transport import Transport
from hopline.amqp.url import Address, parse_url

_CAPABILITIES: Final[Mapping[str, bool]] = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}


class Connection:
    """Made by `connect`. To be used from its event loop's thread."""

    def __init__(self, name: str, reply_seconds: float) -> None:
        self.name = name
        self.server_properties: dict[str, object] = {}
        self.frame_max = spec.FRAME_MAX
        self.channel_max = spec.CHANNEL_MAX
        self.heartbeat_seconds = 0
        self.blocked: str | None = None
        """Why the server reads nothing more from publishers (memory or disk alarm); None while it does."""
        self.on_blocked: Callable[[str | None], None] | None = None
        """Called with the reason when the server blocks, with None when it goes on."""
        self._reply_seconds = reply_seconds
        self._loop = asyncio.get_running_loop()
        self._transport = Transport(self._on_over, self._on_writable)
        self._transport.reader.inlets[0] = Inlet(None, self._on_method)
        self._reply: tuple[tuple[int, ...], asyncio.Future[tuple[int, bytes]]] | None = None
        self._open = False
        self._closing = False
        self._last_number = 0
        self._reason: AMQPError | None = None
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Connection {self.name!r}{' closed' if self.closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        return self._closing or self._ended.is_set()

    @property
    def close_reason(self) -> AMQPError | None:
        """Why it ended; None while it is open and after an orderly `close`."""
        return self._reason

    async def wait_closed(self) -> AMQPError | None:
        """Ends when the connection is over, and gives the reason. Never raises."""
        await self._ended.wait()
        return self._reason

    async def channel(self) -> Channel:
        """Opens a channel. Channels are for life: one for each role, not one for each message."""
        self._require_open()
        return await open_channel(self._free_number(), self._transport, self._reply_seconds)

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Closes in order, or after the deadline without. Idempotent. Never raises for the broker."""
        if not self.closed:
            self._closing = True
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._ask(methods.connection_close(spec.REPLY_SUCCESS, ""), spec.CONNECTION_CLOSE_OK)
            except (TimeoutError, AMQPError):
                self._transport.fail(None)
            except asyncio.CancelledError:
                self._transport.fail(None)
                raise
            else:
                self._transport.close(None)
        await self._ended.wait()
        await self._transport.wait_gone()

    def abort(self) -> None:
        """Ends at once, without a word to the server. The reason is None, as after `close`."""
        self._transport.fail(None)

    # login

    async def _login(self, address: Address, heartbeat_seconds: int, properties: Mapping[str, object]) -> None:
        """The handshake of section 2.2.4: start, tune, open."""
        _, fields = await self._ask(spec.PROTOCOL_HEADER, spec.CONNECTION_START)
        start = methods.decode_start(fields)
        if (start.major, start.minor) != (0, 9):
            raise ProtocolError(f"the server speaks AMQP {start.major}-{start.minor}, not 0-9")
        self.server_properties = start.server_properties
        mechanism = "EXTERNAL" if address.external else "PLAIN"
        if mechanism not in start.mechanisms:
            offered = ", ".join(start.mechanisms)
            raise AuthenticationFailed(
                f"the server offers {offered} as login, not {mechanism}", code=spec.ACCESS_REFUSED
            )
        response = b"" if address.external else f"\0{address.user}\0{address.password}".encode()
        frame = methods.connection_start_ok(properties, mechanism, response)
        method, fields = await self._ask(frame, spec.CONNECTION_TUNE, spec.CONNECTION_SECURE)
        if method == spec.CONNECTION_SECURE:
            raise AuthenticationFailed(f"the server asks for a second step, which {mechanism} does not have")
        self._tune(methods.decode_tune(fields), address, heartbeat_seconds)
        await self._ask(methods.connection_open(address.vhost), spec.CONNECTION_OPEN_OK)
        self._open = True
        self._transport.watch(self.heartbeat_seconds)

    def _tune(self, offer: methods.Tune, address: Address, heartbeat_seconds: int) -> None:
        """The smaller of both sides' limits, where 0 is none; our heartbeat, unless the server's is shorter."""
        self.frame_max = _smaller(address.frame_max or spec.FRAME_MAX, offer.frame_max)
        self.channel_max = _smaller(address.channel_max or spec.CHANNEL_MAX, offer.channel_max)
        self.heartbeat_seconds = _smaller(heartbeat_seconds, offer.heartbeat_seconds) if heartbeat_seconds else 0
        if self.frame_max < spec.FRAME_MAX_LOWEST:
            raise ProtocolError(f"a frame_max of {self.frame_max} is below AMQP's least")
        self._transport.reader.frame_max = self.frame_max
        self._transport.send(methods.connection_tune_ok(self.channel_max, self.frame_max, self.heartbeat_seconds))

    # channel numbers

    def _free_number(self) -> int:
        """The next number that is not taken: a number is not used again soon, which keeps logs readable."""
        taken = self._transport.reader.inlets
        for step in range(1, self.channel_max + 1):
            number = (self._last_number + step - 1) % self.channel_max + 1
            if number not in taken:
                self._last_number = number
                return number
        raise UsageError(f"all {self.channel_max} channels of the connection are open")

    # asking and being told

    def _require_open(self) -> None:
        if self.closed:
            raise self._closed_error()

    def _closed_error(self) -> AMQPError:
        return self._reason.again() if self._reason else ConnectionClosed("the connection was closed by this client")

    async def _ask(self, frame: bytes, *expected: int) -> tuple[int, bytes]:
        if self._ended.is_set():
            raise self._closed_error()
        reply: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._reply = (expected, reply)
        self._transport.send(frame)
        return await reply

    def _on_method(self, method: int, fields: bytes) -> None:
        if method == spec.CONNECTION_CLOSE:
            self._on_server_close(methods.decode_close(fields))
        elif method == spec.CONNECTION_BLOCKED:
            self._set_blocked(methods.decode_text(fields) or "blocked")
        elif method == spec.CONNECTION_UNBLOCKED:
            self._set_blocked(None)
        else:
            expected, reply = self._reply or ((), None)
            if reply is None or method not in expected:
                raise ProtocolError(f"the server sent {spec.method_name(method)} out of turn", code=503)
            self._reply = None
            if not reply.done():
                reply.set_result((method, fields))

    def _on_server_close(self, close: methods.Close) -> None:
        self._transport.send(methods.connection_close_ok())
        if close.code == spec.ACCESS_REFUSED and not self._open:
            self._transport.close(AuthenticationFailed(close.text, code=close.code))
        else:
            self._transport.close(connection_closed(*close))

    def _set_blocked(self, reason: str | None) -> None:
        self.blocked = reason
        self._transport.blocked = reason is not None
        if reason is None:
            self._on_writable()
        if self.on_blocked is not None:
            try:
                self.on_blocked(reason)
            except Exception as error:  # noqa: BLE001 - the caller's code; it must not end the connection
                self._loop.call_exception_handler({"message": "on_blocked raised", "exception": error})

    def _on_writable(self) -> None:
        for inlet in self._transport.reader.inlets.values():
            if inlet.on_writable is not None:
                inlet.on_writable()

    def _on_over(self, reason: AMQPError | None) -> None:
        if not self._closing:
            self._reason = reason
        self._ended.set()
        if self._reply is not None and not self._reply[1].done():
            self._reply[1].set_exception(self._closed_error())
        for inlet in list(self._transport.reader.inlets.values()):
            if inlet.on_over is not None:
                inlet.on_over(self._reason)
        self._transport.reader.inlets.clear()


def _smaller(ours: int, theirs: int) -> int:
    return min(ours, theirs) if theirs else ours


async def connect(
    url: str,
    *,
    host: tuple[str, int] | None = None,
    name: str = "",
    heartbeat_seconds: int = 10,
    timeout_seconds: float = 10.0,
    ssl_context: ssl.SSLContext | None = None,
    client_properties: Mapping[str, object] | None = None,
) -> Connection:
    """Connects and logs in.

    `host` is the one of the URL's hosts to try; without it all are tried in turn.
    `name` is what RabbitMQ shows to operators. `heartbeat_seconds` 0 turns heartbeats off. `timeout_seconds` is the
    deadline for each host, and later for each answer on a channel. What the URL says goes before these parameters.
    With `amqps`, the server's certificate and name are checked against the system's authorities, or `cacertfile`, or
    `ssl_context`.

    Raises InvalidURL, AuthenticationFailed, NotAllowed (virtual host), ConnectFailed, ConnectTimeout, TLSFailed,
    ProtocolError.
    """
    address = parse_url(url)
    if address.heartbeat_seconds is not None:
        heartbeat_seconds = address.heartbeat_seconds
    if address.timeout_seconds is not None:
        timeout_seconds = address.timeout_seconds
    if ssl_context is not None and not address.tls:
        raise UsageError("an ssl_context needs a URL that begins with amqps://")
    context = ssl_context or (tls_context(address) if address.tls else None)
    properties = _client_properties(name, client_properties)
    failures: list[ConnectionClosed] = []
    for each in (host,) if host is not None else address.hosts:
        only = replace(address, hosts=(each,))
        try:
            return await _connect_host(only, name, heartbeat_seconds, timeout_seconds, context, properties)
        except (AuthenticationFailed, NotAllowed):
            raise
        except ConnectionClosed as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    kind = ConnectTimeout if all(isinstance(each, ConnectTimeout) for each in failures) else ConnectFailed
    raise kind("; ".join(each.text for each in failures)) from failures[-1]


async def _connect_host(
    address: Address,
    name: str,
    heartbeat_seconds: int,
    timeout_seconds: float,
    context: ssl.SSLContext | None,
    properties: Mapping[str, object],
) -> Connection:
    connection = Connection(name, timeout_seconds)
    [(host, port)] = address.hosts
    server_name = (address.server_name or host) if context else None
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.get_running_loop().create_connection(
                lambda: connection._transport,  # noqa: SLF001 - made together
                host,
                port,
                ssl=context,
                server_hostname=server_name,
            )
            await connection._login(address, heartbeat_seconds, properties)  # noqa: SLF001
    except TimeoutError as error:
        connection.abort()
        raise ConnectTimeout(f"{host}:{port} did not answer within {timeout_seconds} seconds") from error
    except ssl.SSLError as error:
        connection.abort()
        raise TLSFailed(f"TLS with {host}:{port} failed: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a host name that DNS cannot carry
        connection.abort()
        if isinstance(error, AMQPError):
            raise
        raise ConnectFailed(f"{host}:{port} cannot be reached: {error}") from error
    except BaseException:
        connection.abort()
        raise
    return connection


def tls_context(address: Address) -> ssl.SSLContext:
    """Verifies the server's certificate and host name unless the URL says `verify=verify_none`."""
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
        if address.certificate_file:
            context.load_cert_chain(address.certificate_file, address.key_file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the certificate files of the URL cannot be used: {error}") from error
    if not address.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _client_properties(name: str, more: Mapping[str, object] | None) -> dict[str, object]:
    properties: dict[str, object] = {
        "product": "hopline.amqp",
        "platform": f"Python {platform.python_version()}",
        **(more or {}),
        "capabilities": dict(_CAPABILITIES),
    }
    if name:
        properties["connection_name"] = name
    return properties
