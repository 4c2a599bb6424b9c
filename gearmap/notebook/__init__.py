"""What a notebook gets beyond a script. Nothing here is imported by a node, but for `remotecell`."""
