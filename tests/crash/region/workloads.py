"""The workloads: every operation alone, and every ordered pair of operations in one session, on each base image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvmtool.errors import NvmtoolError

from ..trace import Recording, Trace
from .bases import base, frozen
from .media import MASS, NVM, open_recorded
from .model import digest_of

if TYPE_CHECKING:
    from .operations import Operation


def record(mapping: str, *steps: Operation) -> Recording | None:
    """Run operations in one session on a base image and close it; None where the image refuses one of them.

    All but the last operation are recorded and not enumerated: they are enumerated as workloads of their own.
    """
    origin, trace = base(mapping), Trace()
    allowed, model, start = [], origin.model, 0
    with frozen():
        device = open_recorded(trace, origin.image, origin.mass)
        for number, operation in enumerate(steps):
            if number == len(steps) - 1:
                start = len(trace.events)
            try:
                models = operation.steps(model)
                operation.run(device)
            except (NvmtoolError, KeyError):  # no such region or snapshot any more
                device.close(flush=False)
                return None
            trace.ack()
            allowed.append({digest_of(each) for each in (model, *models)})
            model = models[-1]
        device.close()
        trace.ack()
    allowed += [{digest_of(model)}] * 2
    name = "+".join([mapping, *(step.name for step in steps)])
    return Recording(name, {NVM: origin.image, MASS: origin.mass}, trace.events, allowed, start if len(steps) > 1 else 0)
