"""The stacks that people use today, each the way a team that knows it would write it.

They run in .hopline/bench/venv, and import nothing of Hopline.
"""
