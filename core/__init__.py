"""The small core: contracts, traits, hooks, configuration, plan, engine. It knows no method by name."""

if __name__ == "core":
    raise ImportError("this folder is the package luthier.core: import luthier.core (a module must not load twice)")
