"""Recipes: one for each task."""

from dataclasses import replace

from worker.errors import JobError
from worker.masking.masker import Masker
from worker.recipes.chat import chat
from worker.recipes.generate import generate
from worker.recipes.recipe import Fallible, Recipe, Steps, Work
from worker.recipes.summarize import summarize
from worker.recipes.translate import translate

RECIPES: dict[str, Recipe] = {
    "summarize": summarize,
    "translate": translate,
    "generate": generate,
    "chat": chat,
}


def steps_of(work: Work, recipe: Recipe | None = None) -> Steps:
    """A job's recipe, or the given replacement. A masked job's recipe sees only placeholders."""
    recipe = recipe or RECIPES[work.task]
    return recipe(work) if work.masker is None else _masked(recipe, work, work.masker)


def _masked(recipe: Recipe, work: Work, masker: Masker) -> Steps:
    masked = masker.masked(work.contract, work.placeholders)
    work.placeholders.update(masked.values)
    try:
        answer = yield from recipe(replace(work, contract=masked.contract))
    except JobError as error:
        if error.output is not None:
            error.output = masked.put_back(error.output)
        raise
    return masked.restored(answer)


__all__ = ["RECIPES", "Fallible", "Recipe", "Steps", "Work", "steps_of"]
