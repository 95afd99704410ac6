"""A real Claude Code in a real tmux against a scripted model on loopback: what the end-to-end tests stand on."""
