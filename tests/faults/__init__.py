"""Real faults, injected into real processes over DDS, and what the gate made of each."""
