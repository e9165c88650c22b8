"""Parts as pax tars, their manifests, the set's own catalogue, and reading them all back.

Writing: `part`, `set_catalogue`. Reading: `reading`. Below both: `tar` on `records` and
`sparse`, headers in `pax` and `unpax` with `acl`; `naming` and `manifest` are what the format adds
to tar. docs/format.md describes every byte.
"""
