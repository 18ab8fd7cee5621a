# SPDX-License-Identifier: GPL-2.0-only
"""How Sphinx makes pages of this directory: `make docs`."""

project = "VMBeam"
author = "VMBeam developers"
copyright = author
language = "en"
html_theme = "alabaster"
html_theme_options = {
    "description": "Guest VMs change hosts, their memory stays where it is",
    "fixed_sidebar": True,
    "page_width": "68em",
}
html_show_sphinx = False
html_show_copyright = False
# A report of measurements is a page of its own, which scripts/docs.sh puts beside these.
exclude_patterns = ["bench-run"]
