"""A translation: the whole text in one request."""

from worker.recipes.recipe import Steps, Work, answer_of


def translate(work: Work) -> Steps:
    (output,) = yield (
        work.request(
            task="translate",
            text=work.contract["text"],
            source_language=work.contract["source_language"],
            target_language=work.contract["target_language"],
        ),
    )
    return answer_of(work, output)
