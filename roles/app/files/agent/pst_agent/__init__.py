"""The agent of a slot: says what the slot is doing, and passes everything else to its dashboard."""
