"""What `python -m convert` does, one file a command; the one place below zoo that knows of it."""
