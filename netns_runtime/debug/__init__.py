"""`netns-debug`'s explaining commands, one module each, with `main(words, as_json) -> int`.

They read what others recorded (audit files, the supervisor's answers, the kernel's counters) and
change nothing. Shared: `evidence` (events and their indexes), `live` (asks a running sandbox),
`text` (how a person sees it). A command ends with its exit status or with one NetnsError.
"""
