"""The Parquet store of a site on its hosts: who may reach it, whether it can be written, and its verified copies."""
