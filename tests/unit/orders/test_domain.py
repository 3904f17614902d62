from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import msgspec
import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import example, given
from hypothesis import strategies as st

from orders import deciding, domain
from orders.domain import (
    MAX_EMAIL_CHARACTERS,
    Customer,
    Line,
    Product,
    Refused,
    check_customer,
    check_lines,
    mail_address,
    normalise_email,
    parse_price,
    reserve,
)
from orders.messages import OrderPlaced
from tests.unit.orders.examples import CUSTOMER, placed

SKUS = ["apple", "bread", "cheese", "dates"]


def product(sku: str, on_hand: int = 100, list_price: str | None = "1.00") -> Product:
    return Product(sku, sku.title(), None if list_price is None else Decimal(list_price), on_hand)


def one_line(sku: str = "apple", quantity: int = 1, price: str = "1.00") -> OrderPlaced:
    return placed([Line(sku, quantity, Decimal(price))])


def codes(order: OrderPlaced, *products: Product) -> list[str]:
    return [reason.code for reason in reserve([order], {p.sku: p for p in products}).reasons[0]]


orders_of_lines = st.lists(
    st.lists(st.tuples(st.sampled_from([*SKUS, "unknown"]), st.integers(1, 9)), min_size=1, max_size=4).map(
        lambda lines: placed([Line(sku, quantity, Decimal("1.00")) for sku, quantity in lines])
    ),
    max_size=12,
)
stocks = st.fixed_dictionaries({sku: st.integers(0, 20) for sku in SKUS})


@given(orders=orders_of_lines, stock=stocks, cuts=st.lists(st.integers(0, 12), max_size=4))
def test_no_grouping_of_orders_ever_takes_more_than_there_is(
    orders: list[OrderPlaced], stock: dict[str, int], cuts: list[int]
) -> None:
    # Given the same orders, cut into groups anywhere
    bounds = [0, *sorted(cuts), len(orders)]
    groups = [orders[start:end] for start, end in pairwise(bounds)]
    left = dict(stock)
    confirmed: list[OrderPlaced] = []

    # When the groups are decided one after the other
    for group in groups:
        reservation = reserve(group, {sku: product(sku, units) for sku, units in left.items()})
        confirmed += [order for order, why in zip(group, reservation.reasons, strict=True) if not why]
        for sku, units in reservation.taken.items():
            left[sku] -= units

    # Then the stock is never negative, and what is gone is exactly what was confirmed
    assert all(units >= 0 for units in left.values())
    sold = {sku: sum(line.quantity for order in confirmed for line in order.lines if line.sku == sku) for sku in SKUS}
    assert {sku: stock[sku] - left[sku] for sku in SKUS} == sold


@given(orders=orders_of_lines, stock=stocks)
def test_a_group_decides_as_its_members_would_one_by_one(orders: list[OrderPlaced], stock: dict[str, int]) -> None:
    shelf = {sku: product(sku, units) for sku, units in stock.items()}

    # When decided together, and one by one
    together = reserve(orders, shelf).reasons
    apart = []
    for order in orders:
        alone = reserve([order], shelf)
        apart += alone.reasons
        shelf = {sku: product(sku, p.on_hand - alone.taken.get(sku, 0)) for sku, p in shelf.items()}

    # Then nothing differs
    assert together == apart


def test_an_order_takes_all_or_nothing_and_says_every_reason() -> None:
    order = placed(
        [
            Line("apple", 1, Decimal("1.00")),
            Line("nothing", 1, Decimal("1.00")),
            Line("fuel", 1, Decimal("1.00")),
            Line("bread", 1, Decimal("0.00")),
            Line("bread", 1, Decimal("4.01")),
        ]
    )

    reservation = reserve(
        [order], {"apple": product("apple"), "bread": product("bread"), "fuel": product("fuel", 1, None)}
    )

    found = [(reason.code, reason.line) for reason in reservation.reasons[0]]
    assert found == [("unknown-product", 2), ("no-list-price", 3), ("price-zero", 4), ("price-disagrees", 5)]
    assert reservation.taken == {}


@pytest.mark.parametrize(
    ("price", "agrees"),
    [("0.10", True), ("0.0999", False), ("1.00", True), ("4.00", True), ("4.00000001", False), ("0.00000001", False)],
)
def test_a_price_may_be_a_tenth_to_four_times_the_list_price(price: str, agrees: bool) -> None:
    assert codes(one_line(price=price), product("apple")) == ([] if agrees else ["price-disagrees"])


def test_lines_of_one_product_are_added_up() -> None:
    order = placed([Line("apple", 3, Decimal("1.00")), Line("apple", 3, Decimal("0.90"))])

    assert codes(order, product("apple", 6)) == []
    assert codes(order, product("apple", 5)) == ["insufficient-stock"]


@pytest.mark.parametrize("quantity", [0, -1, -1_000_000, domain.MAX_QUANTITY + 1])
def test_an_order_that_did_not_come_by_the_edge_cannot_add_stock(quantity: int) -> None:
    reservation = reserve([one_line(quantity=quantity)], {"apple": product("apple")})

    assert [reason.code for reason in reservation.reasons[0]] == ["quantity-out-of-range"]
    assert reservation.taken == {}


@pytest.mark.parametrize("price", ["NaN", "sNaN", "Infinity", "-Infinity", "-1", "1E+999999", "1E-999999"])
def test_a_price_that_is_no_money_is_rejected_not_raised(price: str) -> None:
    assert codes(one_line(price=price), product("apple")) == ["price-disagrees"]


def test_a_price_with_more_places_than_the_edge_takes_is_rejected() -> None:
    assert codes(one_line(price="1." + "0" * 100_000), product("apple")) == ["price-malformed"]


def raw_lines(quantity: str, price: str) -> bytes:
    return b'{"sku":"apple","quantity":%b,"unit_price":"%b"}' % (quantity.encode(), price.encode())


numbers = st.sampled_from(["0", "-1", "1", "1" * 30, "9" * 4_300, "-" + "9" * 4_300]) | st.integers().map(str)
price_texts = st.sampled_from(
    ["NaN", "-sNaN", "Infinity", "1E+999999", "1E-999999", "1E+99999999999999999999", "-0", "0E-30", "1." + "0" * 400]
) | st.decimals().map(str)


@given(lines=st.lists(st.builds(raw_lines, numbers, price_texts), max_size=4), total=numbers, listed=st.booleans())
def test_any_order_that_decodes_is_decided_and_its_neighbour_too(lines: list[bytes], total: str, listed: bool) -> None:
    # Given any order that the decoder lets through
    good = one_line()
    body = b'{"order_id":"%b","customer":{"email":"a@b.de"},"lines":[%b],"total_cents":%b,"placed_at":"%b"}' % (
        *(good.order_id.encode(), b",".join(lines), total.encode(), b"9999-12-31T23:59:59-23:59"),
    )
    try:
        odd = msgspec.json.decode(body, type=OrderPlaced)
    except (msgspec.DecodeError, ArithmeticError) as error:
        assert isinstance(error, msgspec.DecodeError)  # noqa: PT017 - nothing else may come out of a decoder
        return

    # When it is decided beside a good one
    shelf = {"apple": product("apple", list_price="1.00" if listed else "999999.99999999")}
    reasons = reserve([odd, good], shelf).reasons

    # Then both have their answer, which fits a message and the columns of the database
    for order, against in zip((odd, good), reasons, strict=True):
        answer = deciding.answer_to(order, against, shelf)
        assert len(msgspec.json.encode(answer)) < 8_000
        assert -(2**63) <= order.total_cents < 2**63
    if listed:
        assert reasons[1] == [] or reasons[0] == []


@given(cents=st.integers(0, 99_999_999), quantity=st.integers(1, domain.MAX_QUANTITY))
@example(cents=99, quantity=2)
@example(cents=2437, quantity=10152)
@example(cents=1, quantity=domain.MAX_QUANTITY)
def test_a_unit_price_gives_the_lines_total_to_the_cent(cents: int, quantity: int) -> None:
    price = domain.unit_price(Decimal(cents) / 100, quantity)

    assert Line("x", quantity, price).cents == cents
    assert -price.as_tuple().exponent >= 2  # type: ignore[operator]
    assert parse_price(f'"{price:f}"'.encode()) == price


@pytest.mark.parametrize(
    ("raw", "price"),
    [
        (b"1.99", "1.99"),
        (b'"1.99"', "1.99"),
        (b"2", "2"),
        (b"-3.5", "-3.5"),
        (b'"0.00240000"', "0.0024"),
        (b"999999.99999999", "999999.99999999"),
    ],
)
def test_prices_that_are_read_exactly(raw: bytes, price: str) -> None:
    assert parse_price(raw) == Decimal(price)


NO_PRICES = (
    ["1e5", '"1E+5"', '"NaN"', '"Infinity"', '"1_0"', '" 1"', '"1', '1"', "null", "true", "[]", "{}", '""', "."],
    ["1000000", "0.123456789", '"\u0661"', '"1.99\n"', "1.99\n", '"+1"', "1" * 100_000],
)


@pytest.mark.parametrize("raw", [raw.encode() for row in NO_PRICES for raw in row])
def test_prices_that_are_none(raw: bytes) -> None:
    assert parse_price(raw) is None


def test_every_fault_of_every_line_is_told_with_its_place() -> None:
    with pytest.raises(Refused) as refused:
        check_lines([("ok", 1, b"1.00"), ("", 0, b'"x"'), ("a b", 1_000_000, b"-1"), ("x" * 65, 1, b"1")])

    assert [(r.code, r.line, r.pointer) for r in refused.value.reasons] == [
        ("sku-malformed", 2, "/lines/1/sku"),
        ("quantity-out-of-range", 2, "/lines/1/quantity"),
        ("price-malformed", 2, "/lines/1/unit_price"),
        ("sku-malformed", 3, "/lines/2/sku"),
        ("quantity-out-of-range", 3, "/lines/2/quantity"),
        ("price-negative", 3, "/lines/2/unit_price"),
        ("sku-malformed", 4, "/lines/3/sku"),
    ]


@pytest.mark.parametrize(("count", "code"), [(0, "lines-missing"), (501, "lines-too-many"), (10_000, "lines-too-many")])
def test_an_order_has_1_to_500_lines(count: int, code: str) -> None:
    with pytest.raises(Refused) as refused:
        check_lines([("apple", 1, b"1.00")] * count)

    assert [reason.code for reason in refused.value.reasons] == [code]
    assert len(check_lines([("apple", 1, b"1.00")] * 500)) == 500


def test_a_thousand_faults_are_not_all_told() -> None:
    with pytest.raises(Refused) as refused:
        check_lines([("", 0, b"x")] * 500)

    assert len(refused.value.reasons) == domain.MAX_REASONS


@pytest.mark.parametrize(
    "name", ["", "Ann", "Jörg Müller", "名前", "محمد", "O'Brien-Smith", "نورالدین‌پور", "👩‍🌾", "x" * 100]
)
def test_names_of_people(name: str) -> None:
    assert check_customer("a@example.com", name).name == name


@pytest.mark.parametrize(
    "name", ["a\r\nBcc: b@example.com", "a\nb", "a\x00b", "a\tb", "a\x7fb", "a\x85b", "a\u2028b", "a\u202eb", "x" * 101]
)
def test_names_that_could_hurt(name: str) -> None:
    with pytest.raises(Refused) as refused:
        check_customer("a@example.com", name)

    assert [(reason.code, reason.pointer) for reason in refused.value.reasons] == [("name-malformed", "/customer/name")]


@pytest.mark.parametrize(
    ("email", "normalised"),
    [
        ("Ann@Example.COM", "Ann@example.com"),
        ("household-900@example.com", "household-900@example.com"),
        ("a.b+tag@example.co.uk", "a.b+tag@example.co.uk"),
        ("ann@münchen.de", "ann@xn--mnchen-3ya.de"),
        ("ann@xn--mnchen-3ya.de", "ann@xn--mnchen-3ya.de"),
        ("x@faß.de", "x@xn--fa-hia.de"),
    ],
)
def test_addresses_are_normalised_to_ascii(email: str, normalised: str) -> None:
    assert normalise_email(email) == normalised


@pytest.mark.parametrize(
    ("email", "normalised"),
    [
        ("\u00fc@example.com", "\u00fc@example.com"),
        ("J\u00f6rg@M\u00fcnchen.DE", "J\u00f6rg@m\u00fcnchen.de"),
        ("j\u00f6rg@xn--mnchen-3ya.de", "j\u00f6rg@m\u00fcnchen.de"),
        ("jo\u0308rg@example.com", "j\u00f6rg@example.com"),
        ("名前@例え.jp", "名前@例え.jp"),
    ],
)
def test_addresses_that_need_smtputf8_are_kept_in_one_readable_form(email: str, normalised: str) -> None:
    assert normalise_email(email) == normalised
    assert normalise_email(normalised) == normalised


NO_ADDRESSES = (
    ["", "a", "a@", "@example.com", "a@b", "a@localhost", "a@1.2.3.4", "a@[127.0.0.1]", "a@b@example.com"],
    ["a@example.com\r\nBcc: b@example.com", "a\r\n@example.com", "a@example.com\n", "a\x00@example.com"],
    ["a@exa mple.com", "a b@example.com", '"a b"@example.com', "a@example.com>", "<a@example.com>"],
    ["a@example.com,b@example.com", "a..b@example.com", ".a@example.com", "\u00fc..b@example.com", "\ud800@b.de"],
    ["\u00fc\r\n@example.com", "\u00fc\u2028@example.com", "\u00fc\u202e@example.com", "\u00fc\xa0b@example.com"],
    ["\u00fc@" + "\u00fc." * 90 + "de", "\u540d" * 64 + "@" + "\u540d" * 20 + ".jp", "a@\u2603..de"],
    ["a" * 65 + "@example.com", "a@" + "b" * 64 + ".com", "a" * 1_000_000 + "@example.com"],
)


@pytest.mark.parametrize("email", [email for row in NO_ADDRESSES for email in row])
def test_addresses_that_are_none(email: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        normalise_email(email)


plain_words = st.text("abcXYZ019_-", min_size=1, max_size=6)
addresses = st.one_of(
    st.builds(
        "{}{}{}@{}.{}".format,
        plain_words,
        st.sampled_from(["", ".", "+", "..", "'"]),
        plain_words,
        plain_words,
        plain_words,
    ),
    st.text(st.sampled_from("ab.-_+@ü\"' \n1"), max_size=14),
    st.text(max_size=20),
)


@given(addresses)
@example("a@-b.com")
@example("a@b-.com")
@example("-a@b.com")
@example("a@ab--cd.com")
@example("a@b.c1")
@example("a@b.test")
def test_the_fast_path_answers_as_the_library_does(email: str) -> None:
    # Given what the library says
    try:
        valid = validate_email(email, check_deliverability=False, strict=True)
        expected = valid.ascii_email or valid.normalized
    except EmailNotValidError:
        expected = None

    # When we ask our function
    try:
        answer: str | None = normalise_email(email)
    except ValueError:
        answer = None

    # Then it is the same
    assert answer == expected


@given(addresses | st.emails() | st.builds("{}@{}".format, st.text(min_size=1, max_size=5), st.text(max_size=5)))
@example("jo\u0308rg@xn--mnchen-3ya.de")
def test_an_address_of_the_edge_decodes_and_goes_into_a_mail_as_it_is(email: str) -> None:
    # Given an address that the edge takes
    try:
        kept = normalise_email(email)
    except ValueError:
        return

    # Then it stays as it is on every further way, and fits an envelope
    assert normalise_email(kept) == kept
    assert mail_address(kept) == kept
    assert msgspec.json.decode(msgspec.json.encode(Customer(kept)), type=Customer).email == kept
    assert len(kept.encode()) <= MAX_EMAIL_CHARACTERS
    assert len(kept.lower()) <= MAX_EMAIL_CHARACTERS


@given(st.text(max_size=30) | st.builds("{}@{}".format, st.text(max_size=9), st.text(max_size=9)))
@example("a@" + "\u00fc" * 300)
@example("\u0130" * 253 + "@")
@example("\ud800@example.com")
def test_any_text_goes_into_a_mail_in_one_safe_line_or_is_refused(text: str) -> None:
    try:
        address = mail_address(text)
    except ValueError:
        return

    assert len(address.encode()) <= MAX_EMAIL_CHARACTERS
    assert len(address.split()) == 1
    assert not {"<", ">", "\x00", "\x7f", "\x85"} & set(address)
    assert address.isascii() or not text.rpartition("@")[0].isascii() or "@" not in text


def test_an_international_domain_goes_into_a_mail_in_ascii() -> None:
    assert mail_address("ann@m\u00fcnchen.de") == "ann@xn--mnchen-3ya.de"
    assert mail_address("j\u00f6rg@m\u00fcnchen.de") == "j\u00f6rg@m\u00fcnchen.de"
    assert mail_address("Ann@Example.COM") == "Ann@Example.COM"


def test_cents_are_rounded_half_up_and_written_with_two_places() -> None:
    assert Line("x", 1, Decimal("0.005")).cents == 1
    assert Line("x", 3, Decimal("0.33166667")).cents == 100
    assert domain.total_cents([Line("x", 2, Decimal("0.495")), Line("y", 1, Decimal("1.10"))]) == 209
    assert domain.money(123_456) == "1,234.56"
    assert domain.money(5) == "0.05"
    assert domain.money(-123_456) == "-1,234.56"
    assert domain.money(-1) == "-0.01"


def test_the_examples_pass_their_own_rules() -> None:
    assert check_customer(CUSTOMER.email, CUSTOMER.name) == CUSTOMER
