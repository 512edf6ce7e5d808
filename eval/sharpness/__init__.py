"""How sharp the minima are that optimizers find: measures around a point, and what a run did on its
way there.
"""
