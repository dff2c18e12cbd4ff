"""The command line: `main` dispatches, one thin file a command. The only room that wires others together."""
