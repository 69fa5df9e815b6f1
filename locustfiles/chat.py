"""One streamed chat reply per arrival; the prompts come from the plan's inputs."""

from harness import ModelUser, task


class ChatUser(ModelUser):
    @task
    def ask(self) -> None:
        self.chat(self.next_input())
