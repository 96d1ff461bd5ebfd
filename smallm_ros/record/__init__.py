"""What was decided, on disk, off the hot path: one message a tick, readable after a kill."""
