"""One short text after the other; after the 120th a pause longer than the server keeps a socket."""

from itertools import count

from harness import ModelUser, task

PAUSE_AFTER = 120
PAUSE_S = 7.0

_rounds = count(1)


class PausingUser(ModelUser):
    def wait_time(self) -> float:
        return PAUSE_S if next(_rounds) == PAUSE_AFTER else 0.0

    @task
    def one_text(self) -> None:
        self.embed("river")
