"""How many tokens are drafted: as many as pay, by what passes cost and how often drafts come true."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from mlx_delta.engine.depth import CHEAP_ROW, DEAR_ROW, LOOKUP, MTP, Acceptance, Costs, Depths, Wish


def test_acceptance_and_costs() -> None:
    shared, costs = Acceptance(), Costs()
    acceptance = Acceptance(shared)
    for _ in range(200):
        acceptance.note(2, 1)
    assert acceptance.chances(2) == pytest.approx([1, 0], abs=0.1)
    assert Acceptance(shared).chances(2) == pytest.approx([1, 0], abs=0.2)  # one that has shown nothing yet
    assert costs.of(2) is None
    costs.note(1, 0, 1.0)
    assert costs.of(3) == pytest.approx(1.1)
    for seconds in (3.0, 2.0, 9.0):
        costs.note(5, 0, seconds)
    assert [costs.of(rows) for rows in (1, 3, 5, 7)] == pytest.approx([1, 2, 3, 3.3])
    costs.note_draft(0.25)
    costs.note(2, 2, 1.75)
    assert costs.of(2) == pytest.approx(1.25)


@dataclass
class Simulation:
    """An engine's passes of sequences whose drafts are right so often, over a machine on which a row takes so much of a
    pass, and a draft by the head."""

    right: Sequence[float]
    row: float
    draft: float = 0.05
    noise: float = 0.0
    depths: Depths = field(default_factory=Depths)
    seconds: float = 0.0
    tokens: int = 0
    drafted: dict[int, int] = field(default_factory=dict)

    def run(self, passes: int) -> Simulation:
        rng = np.random.default_rng(0)
        acceptance = [{name: Acceptance(of) for name, of in self.depths.acceptance.items()} for _ in self.right]
        for _ in range(passes):
            rests = self.depths.rests
            shares = self.depths.share([None if rests else Wish({MTP: 4, LOOKUP: 0}, each) for each in acceptance])
            count, came = sum(share.count for share in shares), len(shares)
            self.depths.began(len(shares) + count, count, drafting=count > 0)
            for i, share in enumerate(shares):
                if share.count:
                    kept = next((j for j in range(share.count) if rng.random() >= self.right[i]), share.count)
                    acceptance[i][MTP].note(share.count, kept)
                    came += kept
                    self.drafted[i] = self.drafted.get(i, 0) + share.count
            seconds = 1 + self.row * (len(shares) + count - 1) + self.draft * count
            noisy = seconds * rng.lognormal(0, self.noise)
            self.depths.took(noisy, len(shares), came)
            self.seconds, self.tokens = self.seconds + seconds, self.tokens + came
        return self

    @property
    def speedup(self) -> float:
        plain = 1 + self.row * (len(self.right) - 1)
        return self.tokens / len(self.right) * plain / self.seconds


@pytest.mark.parametrize(("right", "row", "least"), [(0.9, 0.1, 2.0), (0.6, 0.1, 1.3), (0.8, 0.4, 1.2)])
def test_drafts_are_made_where_they_pay(right: float, row: float, least: float) -> None:
    assert Simulation([right], row).run(400).speedup >= least


@pytest.mark.parametrize("right", [0.6, 0.8])
def test_as_many_drafts_as_the_best_number_of_them(right: float) -> None:
    """With what a large model's take on a GPU, or on a CPU for which rows turn out to be cheap: within 3 %."""
    row, draft = 0.02, 0.047
    best = max(sum(right**i for i in range(k + 1)) / (1 + (row + draft) * k) for k in range(5))
    for expected in (CHEAP_ROW, DEAR_ROW):
        assert Simulation([right], row, draft, depths=Depths(expected, draft)).run(2000).speedup >= 0.97 * best


@pytest.mark.parametrize(("right", "row"), [(0.0, 0.1), (0.1, 0.2), (0.5, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize("sequences", [1, 4])
def test_drafts_that_do_not_pay_cost_next_to_nothing(right: float, row: float, sequences: int) -> None:
    """Of answers of 150 tokens by a fresh engine, and of longer ones."""
    for passes, draft in itertools.product((150, 2000), (0.05, 0.3)):
        for expected in (CHEAP_ROW, DEAR_ROW):
            depths = Depths(expected, draft)
            assert Simulation([right] * sequences, row, draft, depths=depths).run(passes).speedup >= 0.985


@pytest.mark.parametrize(("right", "row"), [(0.5, 0.6), (0.2, 0.3)])
def test_a_busy_machine_whose_times_mislead_costs_little(right: float, row: float) -> None:
    for expected in (CHEAP_ROW, DEAR_ROW):
        assert Simulation([right], row, noise=0.3, depths=Depths(expected)).run(4000).speedup >= 0.98


def test_a_step_that_waits_for_the_one_before_is_told_from_what_it_takes() -> None:
    """The first with drafts reads two passes, and the one after the last none."""
    depths = Depths()
    for seconds, tokens, waited in [(1.0, 1, 0.0)] * 4 + [(2.5, 2, 0.9), (0.1, 1, 0.0), (1.0, 1, 0.0)]:
        drafting = tokens > 1
        depths.began(2 if drafting else 1, 0, drafting=drafting)
        depths.took(seconds, 1, tokens, waited)
    assert depths.costs.of(1) == pytest.approx(1.0)
    assert depths.costs.of(2) == pytest.approx(1.6)
    assert depths._lost == pytest.approx(2.6 - 3)  # of three tokens


def test_rows_go_to_the_sequences_whose_drafts_come_true() -> None:
    simulation = Simulation([0.9, 0.1, 0.9, 0.1], 0.1).run(400)
    assert simulation.speedup > 1.2
    assert min(simulation.drafted[0], simulation.drafted[2]) > 4 * max(simulation.drafted[1], simulation.drafted[3])


def test_a_machine_that_becomes_slower_is_noticed() -> None:
    simulation = Simulation([0.9], 0.1).run(200)
    simulation.row, simulation.seconds, simulation.tokens = 1.0, 0.0, 0
    assert simulation.run(1500).speedup >= 0.98
