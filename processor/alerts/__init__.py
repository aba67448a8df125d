"""Budgets, judged in the stream: usage rows in, an alert for each threshold that is passed, exactly once.

    token-usage ── follow ──> ledger.decode ──> Budgets ── crossings ──> ONE transaction ──> token-alerts ──> hooks, page
                                                   │
                                                   └── a checkpoint now and then ──> token-alerts-state

Owns: rules, sums of periods, what was announced, webhooks. It reads rows as the ledger does, and no database.
"""
