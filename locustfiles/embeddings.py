"""Single texts and batches to embed, three to one, as two steps with budgets of their own."""

from harness import ModelUser, task


class EmbeddingUser(ModelUser):
    @task(3)
    def one_text(self) -> None:
        self.embed(self.next_input().text)

    @task
    def batch(self) -> None:
        self.embed([self.next_input().text for _ in range(8)], step="batch")
