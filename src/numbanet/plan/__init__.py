"""A network as a table of integers for every engine: its columns, ops, offsets and schedule."""
