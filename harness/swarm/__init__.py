"""Locust's side of a load, in worker processes, and the parent's side of those."""
