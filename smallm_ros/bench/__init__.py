"""The engine measured beside others, on the same machine, in one run."""
