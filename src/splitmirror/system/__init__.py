"""Where the kernel and the programs of the system are spoken to, and nowhere else.

Every ioctl, every system call that Python lacks and every program that is run stands in this
folder. Foreign errors are translated here, once.
"""
