"""The report on a store: what takes the space, which layers a fine-tune touched, what came of what.

`report` makes it, as the values of `values`; `page` writes these as one file for a browser.
"""
