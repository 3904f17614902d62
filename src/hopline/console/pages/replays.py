"""A replay as it goes on: how far it is, what was refused, what failed again; and the button that stops it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import msgspec
from litestar.exceptions import NotFoundException

from hopline.console.masking import Mask
from hopline.console.replays import WORDS, Job, Tone
from hopline.console.request import Http
from hopline.console.web import Done, Form, action, desk_of, page
from hopline.repair import Failure, Tally
from hopline.repair.ramp import STAGES as CANARY_STAGES

STAGES = len(CANARY_STAGES) + 1


class Refused(msgspec.Struct, frozen=True):
    """A letter that was not sent."""

    letter_id: str
    verdict: str
    text: str


class ReplayPage(msgspec.Struct, frozen=True):
    """One replay."""

    id: str
    title: str
    who: str
    canary: bool
    rate: float
    started_at: datetime
    ended_at: datetime | None
    ended: str
    """Empty while it runs."""
    word: str
    tone: Tone
    trouble: str
    tally: Tally
    pending: int
    left: int
    """Neither sent nor refused; they stay parked."""
    stage: int
    stages: int
    refused: tuple[Refused, ...]
    failures: tuple[Failure, ...]
    waiting: tuple[str, ...]


async def view(request: Http) -> ReplayPage:
    """One replay of this console's process; 404 after it was forgotten."""
    desk = desk_of(request)
    job = desk.replays.find(str(request.path_params["job"]))
    if job is None:
        raise NotFoundException("this console knows no such replay; the audit log tells what was replayed by whom")
    return replay_page(job, desk.mask_for(request))


async def stop(request: Http, _form: Form) -> Done:
    """Stops a replay: what was not sent stays parked."""
    identifier = str(request.path_params["job"])
    stopped = await desk_of(request).replays.stop(identifier)
    to = f"/replays/{identifier}"
    return Done("stopped", to, "warn") if stopped else Done("it was over already", to, "idle")


ROUTES = [
    *page("/replays/{job:str}", "pages/replay.html", "dead", view),
    *action("/replays/{job:str}/stop", stop),
]


def replay_page(job: Job, mask: Mask | None) -> ReplayPage:
    """A job as its page shows it."""
    word, tone = WORDS[job.ended]
    if job.ended == "finished" and job.tally.refused:
        tone = "warn"
    failures = tuple(one if mask is None else replace(one, error=mask.text(one.error)) for one in job.failures)
    return ReplayPage(
        id=job.id,
        title=job.title,
        who=job.who,
        canary=job.plan.canary,
        rate=job.plan.rate,
        started_at=job.started_at,
        ended_at=job.ended_at,
        ended=job.ended,
        word=word,
        tone=tone,
        trouble=job.trouble,
        tally=job.tally,
        pending=job.tally.pending if job.plan.canary else 0,
        left=max(0, job.tally.chosen - job.tally.sent - job.tally.refused),
        stage=min(job.tally.stage + 1, STAGES),
        stages=STAGES,
        refused=tuple(Refused(one.letter_id, one.verdict.kind, one.verdict.text) for one in job.refused),
        failures=failures,
        waiting=job.waiting,
    )
