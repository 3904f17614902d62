"""The console: an operator sees the flow at a glance, finds any order's whole story, and mends what failed.

`create_console` makes the ASGI application, to be mounted beside an API; `serve` runs it as a process of its own, as
`hopline console` does. It reads and acts through the engine's functions only, as the command line does.
"""

from hopline.console.application import create_console
from hopline.console.config import ConsoleSettings
from hopline.console.mailbox import Mail, Mailbox, WholeMail
from hopline.console.serving import end_streams, serve

__all__ = ["ConsoleSettings", "Mail", "Mailbox", "WholeMail", "create_console", "end_streams", "serve"]
