"""Quantum programs inside the sandbox: the circuit simulator behind a UNIX socket, and the entry of hybrid jobs.

Only here is the simulator (amazon-braket-default-simulator) imported, in an environment of its own (.venv-quantum).
"""
