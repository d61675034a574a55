"""A network as a table of integers that every engine reads: its columns, ops, offsets and schedule."""
