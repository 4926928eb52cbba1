"""Trading, fenced: lease, guard, gate. See docs/trading.md."""
