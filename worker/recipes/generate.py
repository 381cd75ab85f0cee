"""Text that goes on from a prompt: one request."""

from worker.recipes.recipe import Steps, Work, answer_of


def generate(work: Work) -> Steps:
    (output,) = yield (work.request(task="generate", text=work.contract["text"]),)
    return answer_of(work, output)
