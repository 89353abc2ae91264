from pathlib import Path
from typing import Any

import jinja2

TITLE = "Generative models and domain adaptation"
TEMPLATE = Path(__file__).with_name("template")
RESULTS_VERSION = 3


def template(name: str, **filters: Any) -> jinja2.Template:
    """One of the report's templates; what it is filled with stays text in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        comment_start_string="<!--",  # for pandoc's {#identifier} is text
        comment_end_string="-->",
        extensions=["jinja2.ext.do"],
    )
    environment.filters |= filters
    return environment.get_template(name)
