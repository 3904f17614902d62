"""The API of the Celery stack, for `uvicorn bench.peers.celery_api:api`."""

import os
from typing import Any

from fastapi.concurrency import run_in_threadpool

from bench.peers.api import create_api
from bench.peers.celery_flow import connected, decide
from bench.peers.shop import OrderPlaced


async def publish_in_thread(placed: OrderPlaced) -> None:
    """Waits for the confirm in a thread of Starlette's pool."""
    await run_in_threadpool(decide.delay, placed.model_dump(mode="json"))


async def publish_directly(placed: OrderPlaced) -> Any:
    """Waits for the confirm in the event loop."""
    return decide.delay(placed.model_dump(mode="json"))


direct = os.environ.get("BENCH_CELERY_PUBLISH") == "direct"
api = create_api(publish_directly if direct else publish_in_thread, connected)
