from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline import UsageError
from orders.settings import OrdersSettings, SmtpServer, smtp_server

MARK = "S3CR3T"


def test_a_url_names_the_server_and_the_login() -> None:
    assert smtp_server("smtp+starttls://me:a%2Fb@mail") == SmtpServer("smtp+starttls", "mail", 587, "me", "a/b")
    assert smtp_server("smtp://mail:2525") == SmtpServer("smtp", "mail", 2525, None, None)


@pytest.mark.parametrize(
    "url",
    [
        f"smpt://me:{MARK}@mail:25",
        f"smtp:me:{MARK}@mail",
        f"smtps://me:{MARK}/x@mail",
        f"smtp://me:{MARK}@mail:port",
        f"smtp://me:{MARK}@mail:70000",
        f"smtp://me:{MARK}@[mail",
        f"smtp://me:{MARK}@",
        MARK,
        "",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match="ORDERS_SMTP_URL is smtp://") as told:
        OrdersSettings.from_environment({"ORDERS_SMTP_URL": url})

    assert MARK not in str(told.value)


@given(st.text())
def test_any_text_is_a_server_or_a_sentence(text: str) -> None:
    for url in (text, f"smtp://{text}", f"smtp://u:{text}@mail", f"smtp://mail:{text}"):
        try:
            found = smtp_server(url)
        except UsageError:
            continue
        assert 0 < found.port < 65_536
        assert found.host


def test_a_server_shows_no_password() -> None:
    assert MARK not in repr(smtp_server(f"smtp://me:{MARK}@mail"))
