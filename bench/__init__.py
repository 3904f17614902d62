"""Benchmarks: `./dev bench NAME`. Each one is a module with `main(arguments)`."""
