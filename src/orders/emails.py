"""The queue `emails`: a mail for every decided order and every new user. Effects: at least once, with a stable id.

A mail server that is down, or that refuses the session or this program, pauses the queue and costs no attempt. One that
refuses a mail for good parks the message, with the server's answer as its detail. A letter that cannot be written parks
it too. Everything else is a failed attempt.
"""

from __future__ import annotations

from collections.abc import Callable

from hopline import Dead, Done, Envelope, Handlers, RetryPolicy
from orders import letters
from orders.domain import Customer
from orders.letters import LetterError
from orders.mailer import Mailer
from orders.messages import OrderConfirmed, OrderRejected, UserWelcomed
from orders.smtp import MailRefused, MailServerDown

RETRY = RetryPolicy(attempts=100, first_seconds=1.0, cap_seconds=300.0, immediate=0, pause=(MailServerDown,))
"""About 8 hours for a mail that the server takes no time for; while the server is down the queue pauses instead."""


def handlers(mailer: Mailer) -> Handlers:
    """The handlers of the queue `emails`, sending with `mailer`."""
    registry = Handlers()

    @registry.on("emails", retry=RETRY)
    async def confirm(order: OrderConfirmed, envelope: Envelope) -> Done | Dead:
        return await _send(mailer, envelope, order.customer, letters.confirmation, order)

    @registry.on("emails", retry=RETRY)
    async def reject(order: OrderRejected, envelope: Envelope) -> Done | Dead:
        return await _send(mailer, envelope, order.customer, letters.rejection, order)

    @registry.on("emails", retry=RETRY)
    async def welcome(user: UserWelcomed, envelope: Envelope) -> Done | Dead:
        return await _send(mailer, envelope, user.customer, letters.welcome, user)

    return registry


def message_id(envelope: Envelope, domain: str) -> str:
    """The Message-ID of the mail for a message: the same at every attempt."""
    return f"<{envelope.id}@{domain}>"


async def _send(
    mailer: Mailer, envelope: Envelope, to: Customer, write: Callable[..., bytes], message: object
) -> Done | Dead:
    identifier = message_id(envelope, mailer.domain)
    try:
        mail = write(message, sender=mailer.sender, message_id=identifier, at=envelope.created_at)
        answer = await mailer.send(to.email, mail)
    except LetterError as error:
        return Dead("mail-unwritable", str(error))
    except MailRefused as refusal:
        return Dead("mail-refused", str(refusal))
    return Done(f"{answer}, to {to.email} {identifier}")
