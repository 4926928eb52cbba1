"""A stand-in for IB Gateway: the TWS API on a TCP port, no market, no money.

Runs on a bare Python 3.11 (standard library only): ``python3 -m gateway_simulator --help``.
"""
