from __future__ import annotations

import pytest

from hopline.audit import is_empty
from hopline.live import QueueReading

EMPTY, FULL, UNKNOWN = QueueReading(0, 0), QueueReading(3, 0), QueueReading(0, None)


@pytest.mark.parametrize(
    ("before", "after", "empty"),
    [
        (EMPTY, EMPTY, True),
        (EMPTY, FULL, False),
        (FULL, EMPTY, False),
        (UNKNOWN, EMPTY, None),
        (UNKNOWN, FULL, False),
        (None, None, True),
    ],
)
def test_a_message_is_missing_only_if_its_queue_was_empty_both_times(
    before: QueueReading | None, after: QueueReading | None, empty: bool | None
) -> None:
    assert is_empty(before, after) is empty
