"""The program put together: what the API, the worker and the command line run. Reads the environment.

HOPLINE_* are the engine's settings; ORDERS_SMTP_URL and ORDERS_MAIL_FROM are the mail server and the sender.
"""

from __future__ import annotations

from litestar import Litestar

from hopline import Hopline, configure_logging
from orders import api, emails, handlers, messages, store
from orders.lookups import LOOKUPS
from orders.mailer import Mailer

mailer = Mailer.from_environment()

app = Hopline(
    handlers=[handlers.handlers, emails.handlers(mailer)],
    messages=[
        messages.OrderPlaced,
        messages.OrderConfirmed,
        messages.OrderRejected,
        messages.UserRegistered,
        messages.UserWelcomed,
    ],
    tables=[store.metadata],
    resources=[mailer],
    lookups=LOOKUPS,
)


def create_api() -> Litestar:
    """The API, for `uvicorn --factory orders.wiring:create_api`."""
    configure_logging(app.settings)
    return api.create_app(app)
