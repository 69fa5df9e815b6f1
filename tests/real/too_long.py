"""Completions of which every third is refused: its prompt is longer than a slot's context."""

from itertools import cycle

from harness import ModelUser, task

_PROMPTS = cycle(["The sea is", "The sky is", "much " * 2000])


class CompletionUser(ModelUser):
    @task
    def complete_prompt(self) -> None:
        self.complete(next(_PROMPTS))
