"""POST /orders with FastAPI and SQLAlchemy's async sessions: check, insert, commit, publish, 202.

The message is published after the commit, by this process, as the documentation of all of them shows: if the process
dies between the two, the order is stored and nobody will ever handle it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from bench.peers.shop import DATABASE_URL, Base, NewOrder, OrderPlaced, order_row

POOL_CONNECTIONS = 20

engine = create_async_engine(DATABASE_URL, pool_size=POOL_CONNECTIONS, max_overflow=0)
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    """A session for one request."""
    async with sessions() as session:
        yield session


def create_api(
    publish: Callable[[OrderPlaced], Awaitable[Any]], connected: Callable[[], AbstractAsyncContextManager[Any]]
) -> FastAPI:
    """The API, with what publishes a message and what has to be open for that."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with connected():
            yield
        await engine.dispose()

    api = FastAPI(lifespan=lifespan)

    @api.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @api.post("/orders", status_code=202)
    async def place_order(order: NewOrder, session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, str]:
        placed = OrderPlaced(
            order_id=uuid4(),
            email=order.customer.email,
            name=order.customer.name,
            lines=order.lines,
            total_cents=order.total_cents,
        )
        session.add(order_row(placed))
        await session.commit()
        await publish(placed)
        return {"id": str(placed.order_id), "state": "accepted", "url": f"/orders/{placed.order_id}"}

    return api
