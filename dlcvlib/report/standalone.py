"""Executed notebooks that read well by themselves, in JupyterLab or on a code host.

References and citations in their Markdown become links into the report beside them, captions stand
under their exhibits, tables are those of the report, and a line on top leads back. The report takes
all of that off again.
"""

import re
from collections.abc import Mapping

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_output

from dlcvlib.report.exhibits import CITED, MIME, Exhibit, linked, options

TAG = "links"
"""Of the cell that leads back."""
REPORT = "../report.html"
ADDED = re.compile(r"\[[^][]*\]\(\.\./report\.html#(?:((?:fig|tbl)-[\w-]+)|ref-(\w+))\)", re.ASCII)
"""What leads to an exhibit or a work."""


def make_readable(notebook: NotebookNode, problem: str, exhibits: Mapping[str, Exhibit]) -> None:
    """Change an executed notebook in this way.

    Args:
        notebook: changed in place.
        problem: its number, such as "1-3".
        exhibits: label -> exhibit, of the whole report.
    """

    def readable(text: str) -> str:
        def citation(match: re.Match[str]) -> str:
            name = re.sub(r"(?<=[a-z])(?=\d)", " ", match[1]).capitalize()
            return f"[{name}]({REPORT}#ref-{match[1]})"

        text = re.sub(CITED, citation, linked(text, exhibits, REPORT), flags=re.ASCII)
        return text.replace("](#nb-", f"]({REPORT}#nb-")

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = readable(cell.source)
        elif cell.cell_type == "code":
            if "parameters" in cell.metadata.get("tags", []):
                cell.metadata["jupyter"] = {"source_hidden": True}  # many lines, one click away
            for output in cell.outputs:
                data = output.get("data", {})
                if MIME in data:
                    data.pop("text/html", None)  # a table: pandas' own, beside that of the report
                elif "text/markdown" in data:
                    data["text/markdown"] = readable(data["text/markdown"])
            if exhibit := exhibits.get(options(cell.source).get("label")):
                caption = f"**{exhibit.number}.** {readable(exhibit.caption)}"
                payload = {"kind": "caption", "values": {}, "runs": [], "seconds": {}}
                under = new_output("display_data", {"text/markdown": caption, MIME: payload})
                cell.outputs.append(under)
    links = f"[{problem} in the report]({REPORT}#nb-{problem}) · [Contents](../index.html)"
    notebook.cells.insert(0, new_markdown_cell(links, id=TAG, metadata={"tags": [TAG]}))


def as_written(text: str) -> str:
    """Markdown of an executed notebook as its author wrote it, or as the kernel showed it."""
    text = ADDED.sub(lambda match: f"@{match[1] or match[2]}", text)
    return text.replace(f"]({REPORT}#", "](#")
