"""A union-find."""

from collections.abc import Sequence


class UnionFind:
    """Numbers that fall into classes; joining two makes them one."""

    def __init__(self, count: int = 0):
        self.parents = list(range(count))

    def new(self) -> int:
        self.parents.append(len(self.parents))
        return len(self.parents) - 1

    def find(self, label: int) -> int:
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def join(self, labels: Sequence[int]) -> int:
        roots = [self.find(label) for label in labels]
        for root in roots[1:]:
            self.parents[root] = roots[0]
        return roots[0]
