"""Connection URLs."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopline.amqp import InvalidURL, parse_url


def test_a_full_url_is_read() -> None:
    address = parse_url(
        "amqps://us%40er:p%2Fa%3Ass@h1:5000,[::1]:5001,h3/v%2Fhost?heartbeat=5&connection_timeout=2500&channel_max=7"
        "&frame_max=8192&cacertfile=/ca%20.pem&certfile=c.pem&keyfile=k.pem&verify=verify_none"
        "&server_name_indication=name&auth_mechanism=external"
    )

    assert address.hosts == (("h1", 5000), ("::1", 5001), ("h3", 5671))
    assert (address.user, address.password, address.vhost) == ("us@er", "p/a:ss", "v/host")
    assert (address.heartbeat_seconds, address.timeout_seconds) == (5, 2.5)
    assert (address.channel_max, address.frame_max) == (7, 8192)
    assert (address.ca_file, address.certificate_file, address.key_file) == ("/ca .pem", "c.pem", "k.pem")
    assert (address.tls, address.verify, address.external, address.server_name) == (True, False, True, "name")


@pytest.mark.parametrize(
    "url", ["amqp://", "amqp://localhost", "amqp://localhost:5672/", "amqp:///%2F", "amqp://guest:guest@"]
)
def test_what_is_left_out_is_rabbitmqs_default(url: str) -> None:
    address = parse_url(url)

    assert address.hosts == (("localhost", 5672),)
    assert (address.user, address.password, address.vhost) == ("guest", "guest", "/")
    assert (address.tls, address.verify, address.heartbeat_seconds) == (False, True, None)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://localhost",
        "amqp://h:port/",
        "amqp://h:0/",
        "amqp://h:70000/",
        "amqp://h/a/b",
        "amqp://[::1/",
        "amqp://h/?heartbeat=x",
        "amqp://h/?heartbeat=-1",
        "amqp://h/?hearbeat=1",
        "amqp://h/?verify=perhaps",
        "amqp://[::1]5/",
        "amqp://h/?auth_mechanism=kerberos",
        "amqp://h/?heartbeat=65536",
        "amqp://h/?channel_max=65536",
        "amqp://h/?channel_max=0",
        "amqp://h/?frame_max=100",
        "amqp://h/?frame_max=99999999999",
        "amqp://h/?connection_timeout=0",
        "amqp://h/?heartbeat=" + "9" * 5000,
        "amqp://h:" + "9" * 5000,
        "amqp://h/" + "v" * 256,
        "amqp://h/\n",
        "amqp://h /",
        "amqp://app:\udcff@h/",
        "amqp://app:s3cret/pw@h",
        "amqp://app:s3cret?pw@h",
        "amqp://app:s3@cret/pw@h/v",
        "amqp://app:s3@cret?pw@h/v",
    ],
)
def test_what_cannot_be_understood_is_refused(url: str) -> None:
    with pytest.raises(InvalidURL):
        parse_url(url)


def test_the_password_is_never_shown() -> None:
    address = parse_url("amqp://user:secret@host/")
    with pytest.raises(InvalidURL) as caught:
        parse_url("amqp://user:secret@host:bad/")

    assert "secret" not in repr(address)
    assert "secret" not in str(caught.value)


SECRET = "s3cret"


def refusal(url: str) -> str:
    """What is told of a URL that cannot be read."""
    try:
        parse_url(url)
    except InvalidURL as error:
        return f"{error} {error!r}"
    return ""


@given(
    st.lists(
        st.sampled_from(
            [SECRET, "/", "?", "#", "@", ":", "[", "]", "%", "%2", ",", "=", "&", " ", "\n", "x", "é", "\udc80"]
        )
    ),
    st.lists(st.sampled_from([SECRET, "/", "?", "#", "@", ":", "[", "]", "%", ",", "=", "&", " ", "x"])),
    st.sampled_from(["amqp://", "amqps://", "http://", "amqp:/", ""]),
    st.sampled_from(["@host:5672/v", "@host", "@", "", "@host:port/v?heartbeat=1", "@h/?verify=no", "@[::1", "@h/a/b"]),
)
def test_no_text_about_a_url_has_any_part_of_its_login(
    user: list[str], password: list[str], scheme: str, rest: str
) -> None:
    url = f"{scheme}{''.join(user)}{SECRET}:{SECRET}{''.join(password)}{SECRET}{rest}"

    assert SECRET not in refusal(url)


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")), st.text("ab/@?%é", max_size=40))
def test_every_login_and_virtual_host_can_be_written(user: str, password: str, vhost: str) -> None:
    address = parse_url(f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@host/{quote(vhost, safe='')}")

    assert (address.user, address.password, address.vhost) == (user, password, vhost or "/")
    assert address.hosts == (("host", 5672),)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for url in (text, f"amqp://{text}", f"amqps://u:p@{text}", f"amqp://h/?{text}"):
        try:
            parse_url(url)
        except InvalidURL:
            continue
