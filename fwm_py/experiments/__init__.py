"""The experiments of the paper and of its descendants; `retrieval` are its 320 runs.

What all of them share stands here: `jobs` (many calls side by side), `table` (tables of results) and `files` (files
that a kill leaves as they were).
"""
