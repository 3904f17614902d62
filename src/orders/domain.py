"""The rules of an order, pure: no clock, no I/O. Money is Decimal or whole cents, never float.

Two places refuse. The edge (the API) refuses what no catalogue is needed to see; the worker rejects what only
the catalogue and the stock can tell. Nothing else refuses, and neither ever drops an order silently.

| What is wrong | Where | Answer | Code |
|---|---|---|---|
| no lines, or more than 500 | edge | 422 | `lines-missing`, `lines-too-many` |
| a quantity below 1 or over 999,999 | edge | 422 | `quantity-out-of-range` |
| a negative price; one that is no plain number below a million | edge | 422 | `price-negative`, `price-malformed` |
| a SKU that is no SKU (1 to 64 of A-Z a-z 0-9 . _ -) | edge | 422 | `sku-malformed` |
| no e-mail address; a name with control characters | edge | 422 | `email-malformed`, `name-malformed` |
| a product that the catalogue does not have | worker | rejected | `unknown-product` |
| a product without a list price (fuel, coupons: sold by other rules) | worker | rejected | `no-list-price` |
| a price of 0 | worker | rejected | `price-zero` |
| a price outside a tenth to four times the list price | worker | rejected | `price-disagrees` |
| a price longer than the edge takes, from another sender | worker | rejected | `price-malformed` |
| less stock than all lines of that product ask for together | worker | rejected | `insufficient-stock` |

An order is confirmed whole or rejected whole, with every reason. The price band is what real discounts need:
of 31,838 real lines the price is 0.25 times the median at the 0.1st percentile and 3.15 times at the 99.9th.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from typing import Annotated, Protocol

import msgspec
from email_validator import EmailNotValidError, validate_email

MAX_LINES = 500
"""The longest of 155,848 real baskets has 161 lines."""
MAX_QUANTITY = 999_999
"""Below a million, a unit price with 8 places gives the line's total to the cent (0.5e-8 * 1e6 = 0.005)."""
PRICE_PLACES = 8
MAX_PRICE_CHARACTERS = 6 + 1 + PRICE_PLACES
MAX_SKU_CHARACTERS = 64
SKU_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_NAME_CHARACTERS = 100
"""In HTML a character may become 6 (&quot;): 600 stay below SMTP's 998 bytes a line (RFC 5322, 2.1.1)."""
MAX_EMAIL_CHARACTERS = 254
"""RFC 5321, 4.5.3.1.3: a path has at most 256 octets, its brackets included. Outside ASCII the octets count."""
MAX_REASONS = 20
"""As many reasons are told; whoever sent 500 wrong lines needs no more to find the fault."""
LOWEST_PRICE_PART = Decimal("0.1")
HIGHEST_PRICE_PART = Decimal(4)

_CENT = Decimal("0.01")
_SKU = re.compile(SKU_PATTERN)
_PRICE = re.compile(rb'(")?(-?)([0-9]{1,6}(?:\.[0-9]{1,8})?)(?(1)")')
_PLAIN_LOCAL_PART = re.compile(r"[A-Za-z0-9_-]{1,32}(?:[.+][A-Za-z0-9_-]{1,31})?")
_CACHED_DOMAINS = 4096
_TOO_LONG = f"it has more than {MAX_EMAIL_CHARACTERS} characters, counted in the bytes of UTF-8"
_CARRIED = r"[^\s\x00-\x20\x7f-\xa0<>\ud800-\udfff]"
"""A character that cannot end the address nor the command that carries it: no control, blank, bracket or surrogate."""
_ADDRESS = re.compile(f"{_CARRIED}+")
# Cc control, Cs surrogate, Zl and Zp line and paragraph separators: none is part of a name.
_NOT_IN_NAMES = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Bidirectional overrides and isolates can make a name display as another one (UTS 36, section 2.10).
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Reason(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Why something was refused: a code for programs, a sentence for people, and where."""

    code: str
    detail: str
    line: int | None = None
    """The order line, counted from 1."""
    pointer: str | None = None
    """RFC 6901 pointer into the request's body; only at the edge."""


class Customer(msgspec.Struct, frozen=True, gc=False):
    """Who orders. `email` is normalised; `name` may be empty. A message that holds anything else does not decode."""

    email: Annotated[str, msgspec.Meta(max_length=MAX_EMAIL_CHARACTERS, pattern=rf"^{_CARRIED}+@{_CARRIED}+\Z")]
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]*\Z")] = ""


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line of an order, with the unit price that the customer saw."""

    sku: Annotated[str, msgspec.Meta(pattern=rf"^{SKU_PATTERN}\Z")]
    quantity: int
    unit_price: Decimal

    @property
    def cents(self) -> int:
        """The line's total, rounded half up to the cent."""
        return int((self.unit_price * self.quantity * 100).to_integral_value(ROUND_HALF_UP))


class Product(msgspec.Struct, frozen=True, gc=False):
    """A product of the catalogue. Without a list price it cannot be ordered."""

    sku: str
    name: str
    list_price: Decimal | None
    on_hand: int


class Wanted(Protocol):
    """Anything with order lines."""

    @property
    def lines(self) -> Sequence[Line]:
        """The lines, in the customer's order."""
        ...


class Reservation(msgspec.Struct, frozen=True):
    """What a group of orders came to: the reasons against each (none: confirmed), and the units taken by SKU."""

    reasons: list[list[Reason]]
    taken: dict[str, int]


class Refused(Exception):
    """Input that the edge refuses, with all its reasons."""

    def __init__(self, reasons: Sequence[Reason]) -> None:
        super().__init__("; ".join(reason.detail for reason in reasons))
        self.reasons = tuple(reasons)


def total_cents(lines: Iterable[Line]) -> int:
    """The sum of the lines' totals, each rounded to the cent."""
    return sum(line.cents for line in lines)


def money(cents: int) -> str:
    """Cents as text: 123456 is 1,234.56."""
    return f"{'-' * (cents < 0)}{abs(cents) // 100:,}.{abs(cents) % 100:02d}"


def parse_price(raw: bytes) -> Decimal | None:
    """A price from raw JSON, a number or a string of one, exactly; None if it is no plain decimal number.

    Plain means no exponent, no blanks, ASCII digits: what Decimal() takes beyond that is not money.
    """
    match = _PRICE.fullmatch(raw)
    return Decimal((match[2] + match[3]).decode()) if match else None


def unit_price(sales_value: Decimal, quantity: int) -> Decimal:
    """The unit price at which `quantity` units (1 to 999,999) cost `sales_value` to the cent."""
    exact = (sales_value / quantity).quantize(Decimal(1).scaleb(-PRICE_PLACES)).normalize()
    return exact if -exact.as_tuple().exponent >= 2 else exact.quantize(_CENT)  # type: ignore[operator]


def check_lines(lines: Sequence[tuple[str, int, bytes]]) -> list[Line]:
    """The lines of a request as (sku, quantity, raw price), checked; Refused with every fault there is."""
    if not lines:
        raise Refused([Reason("lines-missing", "an order has at least one line", pointer="/lines")])
    if len(lines) > MAX_LINES:
        detail = f"an order has at most {MAX_LINES} lines, this one has {len(lines)}"
        raise Refused([Reason("lines-too-many", detail, pointer="/lines")])
    checked: list[Line] = []
    reasons: list[Reason] = []
    for index, (sku, quantity, raw_price) in enumerate(lines):
        price = parse_price(raw_price)
        if price is not None and price >= 0 and 1 <= quantity <= MAX_QUANTITY and _SKU.fullmatch(sku):
            checked.append(Line(sku, quantity, price))
        elif len(reasons) < MAX_REASONS:
            reasons += _line_faults(index, sku, quantity, price)
    if reasons:
        raise Refused(reasons[:MAX_REASONS])
    return checked


def _line_faults(index: int, sku: str, quantity: int, price: Decimal | None) -> list[Reason]:
    number, place = index + 1, f"/lines/{index}"
    faults = []
    if not _SKU.fullmatch(sku):
        detail = f"line {number}: a SKU has 1 to {MAX_SKU_CHARACTERS} of the characters A-Z a-z 0-9 . _ -"
        faults.append(Reason("sku-malformed", detail, number, f"{place}/sku"))
    if not 1 <= quantity <= MAX_QUANTITY:
        detail = f"line {number}: the quantity is 1 to {MAX_QUANTITY:,}, not {quantity}"
        faults.append(Reason("quantity-out-of-range", detail, number, f"{place}/quantity"))
    if price is None:
        detail = (
            f'line {number}: a unit price is a number like "1.99", with at most 6 digits before '
            f"and {PRICE_PLACES} after the point"
        )
        faults.append(Reason("price-malformed", detail, number, f"{place}/unit_price"))
    elif price < 0:
        detail = f"line {number}: the unit price {price} is negative"
        faults.append(Reason("price-negative", detail, number, f"{place}/unit_price"))
    return faults


def product(sku: str, name: str, list_price: Decimal | None, on_hand: int) -> Product:
    """A product for the catalogue, checked; a list price of 0 is none. ValueError says what is wrong."""
    if not _SKU.fullmatch(sku):
        raise ValueError(f"{sku[:100]!r} is no SKU")
    if on_hand < 0:
        raise ValueError(f"on_hand is {on_hand}")
    if list_price is not None and parse_price(f"{list_price:f}".encode()) is None:
        raise ValueError(f"{_short(list_price)} is no price with at most {PRICE_PLACES} places below a million")
    if list_price is not None and list_price < 0:
        raise ValueError(f"the price {list_price} is negative")
    return Product(sku, name[:MAX_NAME_CHARACTERS], list_price or None, on_hand)


def check_customer(email: str, name: str, *, place: str = "/customer") -> Customer:
    """A customer with a normalised address; Refused with every fault there is."""
    faults = []
    normalised = ""
    try:
        normalised = normalise_email(email)
    except ValueError as error:
        faults.append(Reason("email-malformed", f"this is no e-mail address: {error}", pointer=f"{place}/email"))
    if problem := name_problem(name):
        faults.append(Reason("name-malformed", problem, pointer=f"{place}/name"))
    if faults:
        raise Refused(faults)
    return Customer(normalised, name.strip())


def name_problem(name: str) -> str:
    """What keeps a name from being one; empty if nothing does. Any script is fine, control characters are not."""
    if len(name) > MAX_NAME_CHARACTERS:
        return f"a name has at most {MAX_NAME_CHARACTERS} characters, this one has {len(name)}"
    if name.isascii():
        return "" if name.isprintable() else "a name has no control characters and no line breaks"
    for character in name:
        if character in _BIDI_CONTROLS or unicodedata.category(character) in _NOT_IN_NAMES:
            return f"a name has no control characters, this one has U+{ord(character):04X}"
    return ""


def normalise_email(email: str) -> str:
    """The address in the one form in which it is kept and compared. No DNS is asked. ValueError says what is wrong.

    The domain is in lower case. An ASCII part before the @ makes all of it ASCII, an international domain included
    (RFC 5890), because every mail server takes that form. Else it is the readable form in Unicode NFC (RFC 6531).
    Plain addresses take a fast path that a test holds equal to the library's answer: only their domain is checked by
    it, once, and remembered.
    """
    local, at, domain = email.rpartition("@")
    if at and domain.isascii() and len(email) <= MAX_EMAIL_CHARACTERS and _PLAIN_LOCAL_PART.fullmatch(local):
        return f"{local}@{_normalise_domain(domain)}"
    return _validated(email)


@lru_cache(_CACHED_DOMAINS)
def _normalise_domain(domain: str) -> str:
    return _validated(f"x@{domain}").removeprefix("x@")


def _validated(email: str) -> str:
    if len(email) > MAX_EMAIL_CHARACTERS:
        raise ValueError(_TOO_LONG)
    try:
        valid = validate_email(email, check_deliverability=False, strict=True)
    except EmailNotValidError as error:
        raise ValueError(str(error)) from None
    address = valid.ascii_email or valid.normalized
    if len(address.encode()) > MAX_EMAIL_CHARACTERS:
        raise ValueError(_TOO_LONG)
    return address


def mail_address(email: str) -> str:
    """An address as a mail carries it, in its envelope and its headers. ValueError for one that no mail can carry.

    It is all ASCII if its part before the @ is; an international domain is then encoded by IDNA (RFC 5891), so that
    every server takes it. Takes any text: not every message comes from this program's own edge.
    """
    if not _ADDRESS.fullmatch(email):
        raise ValueError(f"an address has no control character, blank or angle bracket: {email[:100]!r}")
    local, at, domain = email.rpartition("@")
    if at and local.isascii() and not domain.isascii():
        try:
            email = f"{local}@{_normalise_domain(domain)}"
        except ValueError as error:
            raise ValueError(f"the domain of {email[:100]!r} is no domain: {error}") from None
    if len(email.encode()) > MAX_EMAIL_CHARACTERS:
        raise ValueError(_TOO_LONG)
    return email


def account_key(email: str) -> str:
    """What decides whether two addresses are one account: lower case, and no longer than its column.

    A few letters grow in lower case. Only an address that no edge has seen can grow beyond the column.
    """
    return email.lower()[:MAX_EMAIL_CHARACTERS]


def reserve(orders: Sequence[Wanted], products: Mapping[str, Product]) -> Reservation:
    """Decides a group of orders one after the other, in the given order, against one view of the stock.

    An order takes all it asks for or nothing. Never more is taken of a product than is on hand, so the group
    may be stored as one subtraction a product.
    """
    left = {sku: product.on_hand for sku, product in products.items()}
    taken: dict[str, int] = {}
    reasons: list[list[Reason]] = []
    for order in orders:
        against, wanted = _judge(order.lines, products)
        against += _shortages(order.lines, wanted, left) if not against else []
        if not against:
            for sku, quantity in wanted.items():
                left[sku] -= quantity
                taken[sku] = taken.get(sku, 0) + quantity
        reasons.append(against[:MAX_REASONS])
    return Reservation(reasons, taken)


def _judge(lines: Sequence[Line], products: Mapping[str, Product]) -> tuple[list[Reason], dict[str, int]]:
    """What the catalogue says against the lines, and the units wanted by SKU over all lines."""
    against: list[Reason] = []
    wanted: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        product = products.get(line.sku)
        if product is None or not _fair(line, product):
            against.append(_objection(number, line, product))
        wanted[line.sku] = wanted.get(line.sku, 0) + line.quantity
    if not lines:
        against.append(Reason("lines-missing", "an order has at least one line"))
    return against, wanted


def _fair(line: Line, product: Product) -> bool:
    """Whether quantity and price are what the edge let through and the list price allows."""
    price, listed = line.unit_price, product.list_price
    return (
        listed is not None
        and 1 <= line.quantity <= MAX_QUANTITY
        and price.is_finite()
        and price > 0
        and listed * LOWEST_PRICE_PART <= price <= listed * HIGHEST_PRICE_PART
        and len(str(price)) <= MAX_PRICE_CHARACTERS
    )


def _objection(number: int, line: Line, product: Product | None) -> Reason:
    if not 1 <= line.quantity <= MAX_QUANTITY:  # the edge refuses it, but not every order comes by the API
        return Reason("quantity-out-of-range", f"line {number}: the quantity is 1 to {MAX_QUANTITY:,}", number)
    if product is None:
        return Reason("unknown-product", f"line {number}: the catalogue has no product {line.sku[:64]!r}", number)
    if product.list_price is None:
        detail = f"line {number}: {product.name} ({line.sku}) has no list price and cannot be ordered"
        return Reason("no-list-price", detail, number)
    if line.unit_price.is_zero():
        return Reason("price-zero", f"line {number}: {product.name} ({line.sku}) is not free", number)
    if len(str(line.unit_price)) > MAX_PRICE_CHARACTERS:  # likewise, and it would make the letter as long
        detail = f"line {number}: a unit price has at most 6 digits before and {PRICE_PLACES} after the point"
        return Reason("price-malformed", detail, number)
    low, high = product.list_price * LOWEST_PRICE_PART, product.list_price * HIGHEST_PRICE_PART
    detail = (
        f"line {number}: the unit price {_short(line.unit_price)} of {product.name} ({line.sku}) is outside "
        f"{low:.3f} to {high:.2f}, a tenth to four times its list price {product.list_price}"
    )
    return Reason("price-disagrees", detail, number)


def _short(price: Decimal) -> str:
    """A price as text; one that did not come by the edge may be of any length."""
    text = str(price)
    return text if len(text) <= 20 else f"{text[:20]}…"


def _shortages(lines: Sequence[Line], wanted: Mapping[str, int], left: Mapping[str, int]) -> list[Reason]:
    numbers = {line.sku: number for number, line in reversed(list(enumerate(lines, 1)))}
    return [
        Reason("insufficient-stock", f"line {numbers[sku]}: {quantity} of {sku} wanted, {left[sku]} left", numbers[sku])
        for sku, quantity in wanted.items()
        if left[sku] < quantity
    ]
