"""Readers of text lines and writers of captions."""
