"""Texts that show themselves: as they are at a Python prompt, as an HTML table in a notebook."""

import html


class Text(str):
    """A string that a prompt and a notebook show as it is, without quotes and \\n."""

    def __repr__(self):
        return str(self)


class Table(Text):
    """A table as text, with its cells.

    rows    the header, the lines and the total, of texts
    left    how many columns, from the first, are aligned left; the others stand right
    note    a line below the table, or ""
    """

    rows: tuple[tuple[str, ...], ...]
    left: int
    note: str

    def __new__(cls, rows, left: int, note: str = ""):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            sized = list(zip(row, widths, strict=True))
            cells = [cell.ljust(width) for cell, width in sized[:left]]
            cells += [cell.rjust(width) for cell, width in sized[left:]]
            lines.append("  ".join(cells))
        rule = "─" * len(lines[0])
        lines = [lines[0], rule, *lines[1:-1], rule, lines[-1], *[note] * bool(note)]
        table = super().__new__(cls, "\n".join(lines))
        table.rows, table.left, table.note = tuple(map(tuple, rows)), left, note
        return table

    def __getnewargs__(self):
        return self.rows, self.left, self.note

    def _repr_html_(self) -> str:
        lines = []
        for k, row in enumerate(self.rows):
            tag = "td" if 0 < k < len(self.rows) - 1 else "th"
            cells = (
                f'<{tag} style="text-align: {"left" if n < self.left else "right"}">'
                f"{html.escape(cell)}</{tag}>"
                for n, cell in enumerate(row)
            )
            lines.append(f"<tr>{''.join(cells)}</tr>")
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<table>{''.join(lines)}</table>{note}"
