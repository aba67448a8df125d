"""Ledgers as an earlier version of this program left them, and what they answered then."""
