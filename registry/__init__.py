"""What is there: installed plugins, the model's architecture, the machine. Imports the core only."""

if __name__ == "registry":
    raise ImportError("this folder is the package luthier.registry: import luthier.registry (a module must not load twice)")
