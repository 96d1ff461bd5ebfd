"""`smallm`: one file for each command."""
