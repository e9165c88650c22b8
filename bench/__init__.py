"""How fast splitmirror is, held against what people use instead. `python -m bench --help`.

Every figure is the median of paired ratios: both sides take turns in one run, from cold caches, for
machines differ and drift (docs/adr/0013 tells how and why). docs/performance.md is made from the
JSON of a run.
"""
