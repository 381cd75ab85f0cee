"""The assistant's next message: one request with the whole dialogue."""

from worker.recipes.recipe import Steps, Work, answer_of


def chat(work: Work) -> Steps:
    (output,) = yield (
        work.request(
            task="chat",
            messages=work.messages,
            chat_template_kwargs=work.contract.get("chat_template_kwargs", {}),
        ),
    )
    return answer_of(work, output)
