"""One streamed text completion per arrival; the prompts come from the plan's inputs."""

from harness import ModelUser, task


class CompletionUser(ModelUser):
    @task
    def complete_prompt(self) -> None:
        self.complete(self.next_input())
