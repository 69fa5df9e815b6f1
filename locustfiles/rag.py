"""A pipeline of three steps; budgets name them: answer, answer/retrieve, answer/generate."""

from harness import ModelUser, step, task


class RagUser(ModelUser):
    @task
    def answer_question(self) -> None:
        with step("answer"):
            question = self.next_input().text
            self.embed(question, step="retrieve")
            with step("rerank"):
                self.client.post("/v1/predict", json={"instances": [[1.0, 2.0], [3.0, 4.0]]})
            self.chat(f"Answer from the context: {question}", step="generate")
