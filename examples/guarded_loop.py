"""A guard in a loop of one's own: a network learns digits 0-4, then 5-9, and keeps the first.

    python examples/guarded_loop.py

Every guard of `align.engine.guards` has the same few calls; this one is elastic weight
consolidation, whose Fisher information is estimated between the tasks.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from align.engine.guards.ewc import EWC
from align.engine.guards.fisher import estimate_fisher


def loss_fn(model, batch):
    """Negative log-likelihood, summed over the examples of a batch."""
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")


def train(model, x, y, guards, epochs=10, seed=0):
    """The loop: four lines more than without guards."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for guard in guards:
        guard.begin(model)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(32):
            batch = {"x": x[rows], "y": y[rows]}
            loss = loss_fn(model, batch) / len(rows)
            loss = loss + sum(guard.penalty(model, batch) for guard in guards)
            optimizer.zero_grad()
            loss.backward()
            for guard in guards:
                guard.before_step(model)
            optimizer.step()
            for guard in guards:
                guard.after_step(model, optimizer)


def accuracy(model, x, y):
    """Share of right answers."""
    with torch.no_grad():
        return (model(x).argmax(dim=1) == y).float().mean().item()


def main(strength=30.0, seed=0):
    """Two tasks of five classes each on one output of five; what is kept of the first."""
    torch.manual_seed(seed)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    tasks = [(x[y < 5], y[y < 5]), (x[y >= 5], y[y >= 5] - 5)]
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 5))
    train(model, *tasks[0], guards=[])
    learnt = accuracy(model, *tasks[0])
    examples = [{"x": a[None], "y": b[None]} for a, b in zip(tasks[0][0], tasks[0][1], strict=True)]
    guards = [EWC(strength, estimate_fisher(model, examples, loss_fn))] if strength else []
    train(model, *tasks[1], guards=guards)
    kept, new = accuracy(model, *tasks[0]), accuracy(model, *tasks[1])
    print(f"strength {strength}: first task {learnt:.3f} -> {kept:.3f}, second {new:.3f}")
    return kept, new


if __name__ == "__main__":
    main(strength=0.0)
    main()
