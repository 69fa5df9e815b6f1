"""What a scenario imports. Importing it also makes plain `locust -f` record, see `plugin`."""

from harness.swarm import plugin  # noqa: F401 - registers itself with Locust
from harness.swarm.user import ModelUser, step

__all__ = ["ModelUser", "step"]
