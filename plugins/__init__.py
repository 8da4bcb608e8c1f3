"""The built-in methods, one folder each, every one an entry point like any third party's."""

if __name__ == "plugins":
    raise ImportError("this folder is the package luthier.plugins: import luthier.plugins (a module must not load twice)")
