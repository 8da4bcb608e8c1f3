"""Other frameworks, each in an environment of its own, doing the same work as Luthier for comparison."""
