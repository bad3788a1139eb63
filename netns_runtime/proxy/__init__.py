"""The proxy process: what the sandbox reaches at 10.200.0.1:3128.

Five nouns: a *sandbox* is the value that everything here takes; a *flow* is one target a client
asked for, from decision to end; a *decision* is what policy says about it; to *dial* is to connect
to an address that was screened; the *relay* moves the bytes of every tunnel in one task.
"""
