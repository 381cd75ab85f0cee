"""The recipes, one a task."""

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

__all__ = ["RECIPES", "Fallible", "Recipe", "Steps", "Work"]
