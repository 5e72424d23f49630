"""A Medflex server for demo and tests, driven by `include/contracts/medflex.openapi.yaml`.

`engine` knows what Medflex does, `store` keeps it on disk, `faults` lets it misbehave on demand; `server` puts the
engine on a loopback port with a control port beside it, `inprocess` behind a `requests` session on a fake clock.
`control` and `process` are what tests and the stack use.
"""
