"""The ledger: usage rows out of the topic into a database, exactly once, and what a billing system asks of it.

    token-usage ──┐  intake.py: batches      store.py: ONE database transaction =
    token-live  ──┴─> decode.py: columns ──> rows, names, parts, late usage, offsets
                                                    │
            usage.py: tokens by user, model, chip ──┤── serve.py, export.py
            periods.py: complete, close, statements ┤
            prices.py: decimal prices and costs ────┘

Rooms: `decode` and `parts` are pure; `database` says what is needed of a database, `migrations` has its tables, `duck`
and `postgres` give it, `opening` chooses between them, and `store` is the one place that writes.
"""
