"""The watch over handlers that never give control back: it ends the process, so that the message can be parked."""

from hopline.watch.watch import Watch, watching

__all__ = ["Watch", "watching"]
