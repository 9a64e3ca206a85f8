from __future__ import annotations

import torch

from bundle.handlers import OneCycle


def test_the_rate_rises_falls_and_stays():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = OneCycle(optimizer, max_lr=1.0, total_steps=10, pct_start=0.3, cycle_momentum=False)
    rates = []
    for _ in range(15):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == rates[2] == 1.0
    assert rates[9] < 1e-4
    assert rates[9:] == [rates[9]] * 6
