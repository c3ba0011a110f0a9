"""The committed model inside a user's own process: what `skerry.Model` is made of; it writes nothing but its marker."""
