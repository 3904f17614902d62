from __future__ import annotations

import pytest

from hopline.live import QueueReading


@pytest.mark.parametrize(
    ("reading", "empty"),
    [
        (QueueReading(0, 0), True),
        (QueueReading(1, 0), False),
        (QueueReading(0, 3), False),
        (QueueReading(0, None), None),
        (QueueReading(2, None), False),
    ],
)
def test_a_queue_is_empty_only_if_its_unacknowledged_deliveries_are_known(
    reading: QueueReading, empty: bool | None
) -> None:
    assert reading.is_empty is empty
