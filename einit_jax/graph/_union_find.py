"""Union-find: numbers in classes that can be joined."""

from collections.abc import Sequence


class UnionFind:
    """Labels that fall into classes; joining two classes makes them one."""

    def __init__(self, count: int = 0):
        self.parents = list(range(count))

    def new(self) -> int:
        """A label in a class of its own."""
        self.parents.append(len(self.parents))
        return len(self.parents) - 1

    def find(self, label: int) -> int:
        """The label that stands for the class; paths to it are halved on the way."""
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def join(self, labels: Sequence[int]) -> int:
        """Makes the classes of the labels one, and returns the label of that one."""
        roots = [self.find(label) for label in labels]
        for root in roots[1:]:
            self.parents[root] = roots[0]
        return roots[0]
