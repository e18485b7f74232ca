"""Settings from YAML files and command lines, in one dialect; every error is one line that names the whole key."""
