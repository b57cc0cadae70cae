"""The command line: one module per subcommand, which parses, calls a room and chooses an output."""
