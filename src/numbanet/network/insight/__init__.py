"""What goes on inside a network: measurements as plain data, and the doctor that reads them.

Nothing here changes a network. `numbanet.diagnostics` shows what is public.
"""
