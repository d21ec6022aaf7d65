"""The pieces of reports: the outputs of runs, figures, and the parts of a Markdown document.

A report is a document that a command writes for people, `report.html` or `report.md`. Its parts
exist in two forms with the same functions: :mod:`normdet.files.page` (HTML) and :mod:`.markdown`.
"""
