"""Where every file of the set lies: trees on filesystems, extent maps, and the check of them.

`trees` follows each root down to the mirror; `views` opens the trees on the primary or on the leg;
`scan` looks at every file there and fills a `table`; `check` compares the early table with the
split's own.
"""
