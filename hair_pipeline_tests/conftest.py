"""Property tests run without a deadline, since machines differ, and the same cases every time."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=80)
settings.load_profile("repeatable")
