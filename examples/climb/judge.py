"""A judge of grades that is not the model: ridge regression on the holds and moves of the training file."""

import itertools
import math

import numpy as np

GRADES = [f"{number}{letter}{plus}" for number in (6, 7, 8) for letter in "ABC" for plus in ("", "+")]
_PENALTY = 30.0


def number(grade):
    """The place of a grade: one is the next harder one."""
    return GRADES.index(grade)


def name(value):
    """The grade nearest to a number."""
    return GRADES[max(0, min(len(GRADES) - 1, round(value)))]


def features(holds):
    """Which holds a route has, how many, and how far its moves go."""
    found = np.zeros(11 * 18 + 8)
    for x, y in holds:
        found[x * 18 + y] = 1
    moves = [math.dist(a, b) for a, b in itertools.pairwise(holds)]
    across = [abs(a[0] - b[0]) for a, b in itertools.pairwise(holds)]
    found[-8:] = (
        *(1, len(holds) / 5, max(moves) / 3, sum(moves) / len(moves), sum(moves) / 10),
        *(sum(across) / len(across), max(across) / 3, sum(move > 4 for move in moves) / 2),
    )
    return found


class Judge:
    """Gives every route a number, as :func:`number` gives it to its grade."""

    def __init__(self, weights):
        self.weights = weights

    def grade(self, holds):
        return float(features(holds) @ self.weights)

    def correlation(self, routes):
        """Of the grades of ``routes``, pairs of a grade and its holds, and what the judge says."""
        pairs = np.array([(number(grade), self.grade(holds)) for grade, holds in routes])
        return float(np.corrcoef(pairs.T)[0, 1])


def learn(routes):
    """A judge of ``routes``, pairs of a grade and its holds. Every grade weighs the same."""
    x = np.array([features(holds) for _, holds in routes])
    y = np.array([number(grade) for grade, _ in routes])
    weight = 1 / np.bincount(y)[y]
    weight *= len(y) / weight.sum()
    weighted = x * weight[:, None]
    return Judge(np.linalg.solve(weighted.T @ x + _PENALTY * np.eye(x.shape[1]), weighted.T @ y))
