"""What keeps a row from its goal, in words; printed only where the goal was not reached.

Here stand no numbers: they are the run's own, and stand beside.
"""

from __future__ import annotations

LIMITS = {
    "dd-against-dd": """
The machine was busy or its disk is shared: the medians of this run are worth no more than this row
says.""",
    "large-to-null-against-dd": """
The main thread waits for the reader most of the time, and the reader for the disk. What dd has not
is a beginning and an end: the leg is mounted, the reader forked, its first window awaited, and at
the end the set's catalogue is written and synced: a fixed time, which a small set feels.""",
    "mixed-to-null-against-dd": """
What a small file costs is not its bytes but its header, its line in the manifest and its hash, each
a call from Python; dd knows no files. The reader's process and the one that packs share that time
about evenly, so two processors are busy with the small files while the disk waits for them.""",
    "mixed-to-null-against-tar": """
The CPU time a file, as against dd. tar's own is less, for it is written in C; but it waits for each
file's blocks where we read ahead in physical order.""",
    "large-to-tape": """
Both sides copy every byte to the place for the copies, and where that is as fast as memory the copy
itself is what counts. We hash every byte besides, which tar does not.""",
    "mixed-to-tape": """
The CPU time a file, as to the null medium; and every byte is copied once more into the place for
the copies, which costs both sides the same.""",
    "large-restore": """
The start of the interpreter and of its modules, and a hash of every byte, which tar -x does not
make.""",
    "mixed-restore": """
A file takes the system calls that tar makes too (open, write, owner, mode, times, close), but each
is made from Python, its hash is compared, and it is put where no link can lead it astray.""",
    "postgresql-time-against-pg_basebackup": """
Our command loads its modules, starts its guard and its sessions, levels the mirror and rejoins it:
a fixed time, which a small cluster feels most. Both legs lie on one disk, so that reading the leg
disturbs the server as reading the primary does.""",
    "postgresql-time-against-pgBackRest": """
The same fixed time as against pg_basebackup, and the same one disk.""",
    "postgresql-cpu-against-pg_basebackup": """
A cryptographic hash of every byte against a CRC, and the loading of modules, a fixed cost which a
small cluster feels most.""",
    "postgresql-cpu-against-pgBackRest": """
The loading of modules is a fixed cost, which a small cluster feels most; what goes with the bytes
is their hash and their copies between buffers.""",
    "postgresql-throughput": """
Both legs lie on one disk here, and the backup's processes share the processors with the server's
and its clients'. A backup that takes less time takes more of both while it lasts; how many
transactions were lost in all stands beside it.""",
    "pause-growth": """
The freeze waits for what is dirty on the filesystem and for its journal. The parts of the pause are
given for each number of files: the part that grows is the limit.""",
    "early-map-per-file": """
Open, fstat, FIEMAP and close are four system calls a file, and each is a call from Python.""",
    "peak-memory": """
Names and maps of all files are kept until the last one is written; the windows that are read ahead
take the same room for any number of files.""",
    "one-file": """
The time is that of starting the interpreter and loading modules; to find and to read the file is
the smaller part of it. tar's time grows with the set, ours does not.""",
    "one-file-bytes-read": """
The catalogue's pages are read too, and the labels on the way to the file's part.""",
}
