"""The gateway's nftables rules: a pure ruleset and the thin half that loads it."""
