"""Queues on a private node."""

from __future__ import annotations

from hopline import Node


def sync_queues(node: Node) -> None:
    """Puts what RabbitMQ knows of its quorum queues on the disk, which it does by itself within a second.

    A quorum queue that was declared just before a kill -9 comes back without a leader, for good (seen on 3.10.8):
    a test that kills a node soon after a declaration calls this in between.
    """
    node.ctl("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")
