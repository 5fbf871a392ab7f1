"""The verbs of the command line, a module per family. They import what they need when they are called."""
