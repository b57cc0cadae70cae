"""The command line: one module per subcommand, which parses, calls the engine and chooses an output."""
