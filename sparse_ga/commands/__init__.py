"""What the sub-commands of `sparse-ga` do; imported only when asked for, so that the command starts at once."""
