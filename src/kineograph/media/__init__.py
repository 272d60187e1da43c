"""Pictures and videos as files: in, out, and with the settings that made them."""
