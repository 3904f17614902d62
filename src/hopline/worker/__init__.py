"""The worker: from delivery to committed outcome to acknowledgement. See intake.py for the ways of a delivery."""

from hopline.worker.desk import Desk
from hopline.worker.intake import Worker

__all__ = ["Desk", "Worker"]
