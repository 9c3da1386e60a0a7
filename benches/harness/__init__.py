"""The common parts of the programs in `benches/`, and their tests:
`python3 -B -m unittest discover -s benches -t benches`.
"""
