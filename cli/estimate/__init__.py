"""Estimates: the work and time that a source will take, before it is enqueued."""

from cli.estimate.estimate import Estimate, estimated
from cli.estimate.source import estimate_source, say_estimate

__all__ = ["Estimate", "estimate_source", "estimated", "say_estimate"]
