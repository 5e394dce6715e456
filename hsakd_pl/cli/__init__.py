"""The program: its parser, its errors, its help, shell completion and configuration files."""
