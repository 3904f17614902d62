"""`./dev bench wire --soak SECONDS`: hopline.amqp publishes and consumes at once for so long; its memory must not grow.

    python -m bench.wire_soak URL QUEUE SECONDS MESSAGES_A_SECOND

One process, a connection to publish and one to consume, as in a real system. The resident set is read once a second.
The first tenth is for warming up; growth is counted from there. Prints one line of JSON.
"""

import asyncio
import json
import resource
import sys
import time
from pathlib import Path

import uvloop

from bench.wire_work import BODY, PREFETCH, properties
from hopline.amqp import Channel, Delivery, Outgoing, Properties, Published, connect

BATCH = 200
CALLS = 5
WARM_UP_SHARE = 0.1


def rss_bytes() -> int:
    """The resident set now; where there is no /proc, the largest so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def soak(url: str, queue: str, seconds: float, messages_a_second: float) -> dict[str, float]:
    publishing, consuming = await connect(url), await connect(url)
    publisher, worker = await publishing.channel(), await consuming.channel()
    await publisher.confirm_select()
    await worker.qos(PREFETCH)
    got = 0

    def on_deliveries(deliveries: list[Delivery]) -> None:
        nonlocal got
        got += sum(delivery.properties.message_id is not None for delivery in deliveries)
        worker.ack(deliveries[-1].delivery_tag, multiple=True)

    await worker.consume(queue, on_deliveries)
    start = time.monotonic()
    readings = asyncio.create_task(read_memory(seconds))
    sent = await asyncio.gather(
        *(publish(publisher, queue, start + seconds, messages_a_second / CALLS) for _ in range(CALLS))
    )
    warm, last, most = await readings
    await publishing.close()
    await consuming.close()
    return {
        "messages": sum(sent),
        "consumed": got,
        "seconds": time.monotonic() - start,
        "rss_warm_bytes": warm,
        "rss_last_bytes": last,
        "rss_max_bytes": most,
    }


async def publish(channel: Channel, queue: str, until: float, messages_a_second: float) -> int:
    sent = 0
    start = time.monotonic()
    while time.monotonic() < until:
        now = int(time.time())
        batch = [Outgoing("", queue, Properties(**properties(sent + each, now)), BODY) for each in range(BATCH)]
        outcomes = await channel.publish(batch, timeout_seconds=60)
        if outcomes.count(Published.CONFIRMED) != BATCH:
            raise RuntimeError(f"not confirmed: {set(outcomes)}")
        sent += BATCH
        await asyncio.sleep(start + sent / messages_a_second - time.monotonic())
    return sent


async def read_memory(seconds: float) -> tuple[int, int, int]:
    """The resident set after the warm-up, at the end, and the largest since the warm-up."""
    start = time.monotonic()
    await asyncio.sleep(seconds * WARM_UP_SHARE)
    readings = [rss_bytes()]
    while time.monotonic() < start + seconds:
        await asyncio.sleep(1)
        readings.append(rss_bytes())
    return readings[0], readings[-1], max(readings)


if __name__ == "__main__":
    _, url, queue, seconds, messages_a_second = sys.argv
    report = uvloop.run(soak(url, queue, float(seconds), float(messages_a_second)))
    sys.stdout.write(json.dumps(report) + "\n")
