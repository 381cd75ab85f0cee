"""A summary: the whole text in one request."""

from worker.recipes.recipe import Steps, Work, answer_of


def summarize(work: Work) -> Steps:
    (output,) = yield (work.request(task="summarize", text=work.contract["text"]),)
    return answer_of(work, output)
