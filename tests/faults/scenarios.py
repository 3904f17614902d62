"""Faults that several tests bring about: on the system as it is, and on mutants of it."""

from __future__ import annotations

import asyncio

from tests.support.system import Load, System


async def worker_killed_before_its_commit(running: System) -> Load:
    """The worker is killed when its handlers have run and their transaction is still open."""
    async with running.loading() as load:
        worker = await running.arm("worker-1", "worker.before-commit=kill")
        await running.died(worker)
    return load


async def broker_frozen_and_killed(running: System) -> Load:
    """RabbitMQ stops reading (SIGSTOP) under load, is killed, and comes back: what was on the wire is gone."""
    async with running.loading() as load:
        await load.more(20)
        running.node.pause()
        await load.more(50, "answers while the broker is frozen")
        await asyncio.to_thread(running.node.kill)
        await asyncio.to_thread(running.node.start)
    return load
