from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from orders.mailbox import Ledger, Mail, count_by_message_id, mails

FULL = Path("/dev/full")  # a disk without space: a device of Linux
AT = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def mail(message_id: str) -> Mail:
    return Mail(message_id, ["ann@example.com"], "Welcome, 名前", AT, "Subject: x\r\n\r\nline\r\n")


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "mails.ndjson"
    ledger = Ledger(path)

    for message_id in ("<1>", "<2>", "<1>"):
        ledger.append(mail(message_id))

    assert list(mails(path)) == [mail("<1>"), mail("<2>"), mail("<1>")]  # before it is closed
    assert count_by_message_id(path) == {"<1>": 2, "<2>": 1}
    ledger.close()


def test_a_line_that_a_crash_tore_is_skipped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    # Given a ledger whose last line was torn
    path = tmp_path / "mails.ndjson"
    ledger = Ledger(path)
    ledger.append(mail("<1>"))
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])

    # When the next process goes on
    assert [one.message_id for one in mails(path)] == ["<1>"]
    ledger = Ledger(path)
    ledger.append(mail("<2>"))
    ledger.close()

    # Then only the torn line is missing
    assert [one.message_id for one in mails(path)] == ["<1>", "<2>"]


def test_a_ledger_that_is_not_there_has_no_mails(tmp_path: Path) -> None:
    assert list(mails(tmp_path / "none.ndjson")) == []


@pytest.mark.parametrize("full", [FULL] if FULL.exists() else [])
def test_a_disk_that_is_full_is_an_error(full: Path) -> None:
    ledger = Ledger(full)

    with pytest.raises(OSError, match="No space left"):
        ledger.append(mail("<1>"))
    ledger.close()
