from __future__ import annotations

import math

import pytest
import torch

from bundle.handlers import OneCycle


def rates_of(steps, total_steps, pct_start):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = OneCycle(optimizer, max_lr=1.0, total_steps=total_steps, pct_start=pct_start, cycle_momentum=False)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_the_rate_rises_falls_and_stays():
    rates = rates_of(15, 10, 0.3)
    assert max(rates) == rates[2] == 1.0
    assert rates[9] < 1e-4
    assert rates[9:] == [rates[9]] * 6


@pytest.mark.parametrize("pct_start", [0.1, 0.25, 0.5, 1.0])
def test_any_number_of_steps_has_a_rate(pct_start):
    for total in range(1, 31):
        rates = rates_of(total, total, pct_start)
        top = rates.index(max(rates))
        assert 0 < min(rates)
        assert max(rates) <= 1.0
        assert top <= math.ceil(max(pct_start * total - 1, 0))
        assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)


def test_a_rise_that_has_no_length_is_left_out():
    """Ten steps of which a tenth rises: the rise would begin and end at the first step."""
    rates = rates_of(10, 10, 0.1)
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9
