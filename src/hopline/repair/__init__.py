"""What an operator repairs with: replay, edit and discard dead letters; cancel or hurry what is scheduled;
send again what the audit names as missing.

verdicts.py decides, without I/O, whether a letter can be replayed by today's code; actions.py acts; ramp.py replays
many, carefully. Each act is one transaction that also writes the audit log. The command line and the console are
thin on top of these functions.
"""

from hopline.repair.actions import (
    ACT_LETTERS,
    Judged,
    Selection,
    cancel,
    check,
    discard,
    edit,
    pages,
    replay,
    run_now,
    select,
    undo,
)
from hopline.repair.ramp import DEADLINE_SECONDS, RATE, Failure, Plan, Progress, Tally, ramp
from hopline.repair.resending import Resent, check_act, check_evidence, named, resend
from hopline.repair.verdicts import Code, Edited, Verdict, validate

__all__ = [
    "ACT_LETTERS",
    "DEADLINE_SECONDS",
    "RATE",
    "Code",
    "Edited",
    "Failure",
    "Judged",
    "Plan",
    "Progress",
    "Resent",
    "Selection",
    "Tally",
    "Verdict",
    "cancel",
    "check",
    "check_act",
    "check_evidence",
    "discard",
    "edit",
    "named",
    "pages",
    "ramp",
    "replay",
    "resend",
    "run_now",
    "select",
    "undo",
    "validate",
]
