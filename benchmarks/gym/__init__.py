"""Small nets of known health, to judge rules that say why a net does not train."""
