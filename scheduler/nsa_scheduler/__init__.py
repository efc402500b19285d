"""Continuous batching over a pool of pages: which tokens of which sequences the next step computes.

Pure Python; knows token ids and page numbers, no tensor, no text and no request.
"""

from nsa_scheduler.config import PolicyName, SchedulerConfig
from nsa_scheduler.errors import NeverFits, QueueFull
from nsa_scheduler.output import EndReason, ScheduledBatch, ScheduledSequence, StepUpdate
from nsa_scheduler.scheduler import Scheduler
from nsa_scheduler.sequence import Sequence, SequenceState
from nsa_scheduler.stats import SchedulerStats

__all__ = [
    "EndReason",
    "NeverFits",
    "PolicyName",
    "QueueFull",
    "ScheduledBatch",
    "ScheduledSequence",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStats",
    "Sequence",
    "SequenceState",
    "StepUpdate",
]
