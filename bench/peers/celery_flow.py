"""The job with Celery: its tasks are plain functions, so the worker has SQLAlchemy with psycopg and smtplib.

Settings as the documentation advises for work that must not be lost: a quorum queue, confirmed publishing, late
acknowledgement, no results, no events. A connection to the database and one to the mail server are kept by each
process or thread. The API publishes in a thread, so that its event loop goes on meanwhile (BENCH_CELERY_PUBLISH=direct
publishes in the loop: less CPU, but everybody waits).
"""

import os
import smtplib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery
from sqlalchemy import create_engine, func, update
from sqlalchemy.orm import sessionmaker

from bench.peers.shop import BROKER_URL, DATABASE_URL, QUEUE, SMTP_PORT, Order, OrderPlaced, letter

PREFETCH = 8
CONCURRENCY = int(os.environ.get("BENCH_CELERY_CONCURRENCY", "8"))

app = Celery("orders", broker=BROKER_URL)
app.conf.update(
    task_default_queue=QUEUE,
    task_default_queue_type="quorum",
    worker_detect_quorum_queues=True,
    broker_transport_options={"confirm_publish": True},
    broker_pool_limit=40,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=PREFETCH,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
)

engine = create_engine(DATABASE_URL.replace("+asyncpg", "+psycopg"), pool_size=CONCURRENCY)
sessions = sessionmaker(engine)
_kept = threading.local()


@app.task(name="decide")
def decide(order: dict[str, Any]) -> None:
    """Confirms the order, then mails the customer."""
    placed = OrderPlaced.model_validate(order)
    with sessions.begin() as session:
        change = update(Order).where(Order.id == placed.order_id, Order.state == "accepted")
        session.execute(change.values(state="confirmed", decided_at=func.now()))
    send(placed)


def send(placed: OrderPlaced) -> None:
    """Sends the letter on this thread's connection, or on a new one if that was closed."""
    mail = letter(placed)
    try:
        connection().send_message(mail)
    except smtplib.SMTPServerDisconnected:
        del _kept.connection
        connection().send_message(mail)


def connection() -> smtplib.SMTP:
    """This thread's connection to the mail server."""
    if not hasattr(_kept, "connection"):
        _kept.connection = smtplib.SMTP("127.0.0.1", SMTP_PORT, timeout=15, local_hostname="localhost")
    kept: smtplib.SMTP = _kept.connection
    return kept


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """Celery connects when it first publishes, and keeps a pool."""
    yield
    app.close()
