"""Usage rows of parts that have ended, as a table of Apache Iceberg. Each row is appended once and never changes.

    token-usage ── rows ───────> held: the rows of each part that may still change   ─┐ one snapshot: data files, and in
    token-live ─── summaries ──> ending: which parts are over                         ┘ its summary what it has of Kafka

`state`, `held` and `ending` are pure. `table` is the one module that knows Iceberg, `writer` is the loop.
"""
