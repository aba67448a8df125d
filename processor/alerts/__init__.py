"""Budgets, judged in the stream: usage rows in, an alert for each threshold that is passed, exactly once.

    token-usage ── follow ──> ledger.decode ──> Budgets ── crossings ──> ONE transaction ──> token-alerts
                                                   │
                                                   └── a checkpoint now and then ──> token-alerts-state
    token-alerts ──> webhooks (hooks.py), the page (rollup/alerted.py)

Owns: rules, sums of periods, what was announced, webhooks. It reads rows as the ledger does, and no database.
"""
