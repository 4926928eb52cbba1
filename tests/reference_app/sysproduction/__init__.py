"""The reference application: a stand-in for pysystemtrade, of the same outer shape."""
