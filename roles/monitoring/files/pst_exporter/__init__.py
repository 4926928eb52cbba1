"""Figures of MongoDB, of trading and of certificates, for Prometheus. Runs on the monitoring hosts, asks the others."""
