"""A 24B language model on the robot, deciding on time; see docs/architecture.md for the map."""

__version__ = '0.1.0'
