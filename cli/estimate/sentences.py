"""Describes an estimate in sentences."""

from collections.abc import Iterator

from cli.estimate.estimate import Estimate
from cli.output.terminal import plural


def estimate_lines(estimate: Estimate) -> Iterator[str]:
    """The lines that describe a run and its expected time."""
    for share in estimate.shares:
        parts = plural(share.num_parts, "sentence" if share.task == "translate" else "part")
        yield (
            f"{share.task} with {share.model}: {plural(share.num_documents, 'document')}, "
            f"about {parts}, about {plural(share.num_tokens, 'token')} ({share.tokens_by})"
        )
        if share.num_cached_parts:
            noun = "sentence" if share.task == "translate" else "part"
            yield (
                f"  in the content cache: {plural(share.num_cached_documents or 0, 'document')} "
                f"whole, {plural(share.num_cached_parts, noun)} in all"
            )
        if share.seconds is None or share.measured is None:
            yield f"  how long it takes is not known: there is no result of {share.model} yet"
            continue
        rate = share.measured.tokens_per_second
        results = plural(share.measured.num_results, "result")
        yield (
            f"  about {in_words(share.seconds)}, at the {rate or 0:,.0f} tokens/s "
            f"of the last {results}"
        )
        if share.num_waiting:
            yield (
                f"  {plural(share.num_waiting, 'job')} before it: about "
                f"{in_words(share.seconds_before)}"
            )
    if len(estimate.shares) > 1 and estimate.seconds is not None:
        yield f"in all about {in_words(estimate.seconds)}, the models beside each other"


def in_words(seconds: float) -> str:
    """A duration such as `3 s`, `12 min` or `1 h 40 min`."""
    if seconds < 99.5:
        return f"{seconds:,.0f} s" if seconds >= 0.95 else "1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"
