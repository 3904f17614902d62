"""What the peers' API and workers share: the order as pydantic checks it, its table, and the confirmation letter.

The checks are those of Hopline's orders API, so that all refuse the same; the table has the columns that the job
needs; the letter is made from the same templates, by the standard library's EmailMessage as its documentation shows.
What is left out is left out in the peers' favour: catalogue, stock, history, idempotency keys, outbox and inbox.
"""

import os
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import jinja2
from pydantic import BaseModel, ConfigDict, EmailStr, Field
from sqlalchemy import BigInteger, String, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DATABASE_URL = os.environ["BENCH_DATABASE_URL"]
BROKER_URL = os.environ["BENCH_BROKER_URL"]
SMTP_PORT = int(os.environ["BENCH_SMTP_PORT"])
QUEUE = "orders"
SENDER = "Orders <orders@example.com>"

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parents[2] / "src" / "orders" / "templates"),
    autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters["money"] = lambda cents: f"{cents // 100:,}.{cents % 100:02d}"


class Strict(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Customer(Strict):
    email: EmailStr
    name: Annotated[str, Field(max_length=100)] = ""


class Line(Strict):
    sku: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    quantity: Annotated[int, Field(ge=1, le=999_999)]
    unit_price: Annotated[Decimal, Field(ge=0, max_digits=14, decimal_places=8)]

    @property
    def cents(self) -> int:
        return int((self.unit_price * self.quantity * 100).to_integral_value(ROUND_HALF_UP))


class NewOrder(Strict):
    """The body of POST /orders."""

    customer: Customer
    lines: Annotated[list[Line], Field(min_length=1, max_length=500)]

    @property
    def total_cents(self) -> int:
        return sum(line.cents for line in self.lines)


class OrderPlaced(BaseModel):
    """The message: all that the worker needs."""

    order_id: UUID
    email: str
    name: str
    lines: list[Line]
    total_cents: int


class Base(DeclarativeBase):
    """The tables."""


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    name: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(16))
    lines: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    total_cents: Mapped[int] = mapped_column(BigInteger)
    accepted_at: Mapped[datetime] = mapped_column(server_default=func.now())
    decided_at: Mapped[datetime | None]


def order_row(placed: OrderPlaced) -> Order:
    """The row of a new order."""
    return Order(
        id=placed.order_id,
        email=placed.email,
        name=placed.name,
        state="accepted",
        lines=[line.model_dump(mode="json") for line in placed.lines],
        total_cents=placed.total_cents,
    )


def letter(order: OrderPlaced) -> EmailMessage:
    """The confirmation."""
    values = {
        "name": order.name,
        "order_id": order.order_id,
        "lines": [
            {"name": line.sku, "quantity": line.quantity, "unit_price": line.unit_price, "cents": line.cents}
            for line in order.lines
        ],
        "more": 0,
        "total_cents": order.total_cents,
    }
    mail = EmailMessage()
    mail["From"] = SENDER
    mail["To"] = order.email
    mail["Subject"] = f"Your order {order.order_id} is confirmed"
    mail["Message-ID"] = make_msgid(domain="example.com")
    mail.set_content(_templates.get_template("order-confirmed.txt.j2").render(values))
    mail.add_alternative(_templates.get_template("order-confirmed.html.j2").render(values), subtype="html")
    return mail
