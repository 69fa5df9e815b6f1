"""Plain JSON inference: rows of features in, one prediction per row out."""

import random

from harness import ModelUser, RequestFailed, task


class PredictUser(ModelUser):
    @task
    def score_rows(self) -> None:
        rows = [[random.random() for _ in range(4)] for _ in range(16)]
        reply = self.predict({"instances": rows})
        if len(reply.value["predictions"]) != len(rows):
            raise RequestFailed("invalid reply", "another number of predictions than of rows")
