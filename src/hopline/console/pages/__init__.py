"""The pages, one file each: what it shows as a struct, how that is read, and its routes."""
