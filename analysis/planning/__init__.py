"""Designs that know their precision: arrays in, frozen results out; no files, no configs but ``FitConfig``.

A sweep's points are N and D; what it is for is a :class:`~analysis.planning.information.Target`: N* at some C, the
exponent, a loss. Laws are rows (K, 5) of log A, log B, log E, alpha, beta, as ``Replicates.values`` of Approach 3 holds
them: one published law, or an earlier fit's replicates, over whose uncertainty everything is averaged. ``noise`` is the
standard deviation of log L.

- ``forecast.forecast(params, tokens, flops, budget, laws, noise=, targets=, cost=, config=)``: the intervals that the
  fits of a sweep may be expected to give, by simulated refits, and what each budget adds.
- ``information.standard_errors(params, tokens, laws, targets, noise, cost)``: the same for Approach 3 in a
  millisecond, linearised; ``information.huber_factor`` is what the Huber objective costs in precision.
- ``optimal.optimal_design(candidates, laws, targets, noise, cost, limit, constraints)``: the points that pin the
  targets best under a limit on what they cost, with reserved points that test the form, and the certified efficiency.
- ``bound.continuous_bound``: how precise any design could be.
- ``extensions.errors_if_bent``: what could still be said of a target if the form failed in a named way;
  ``extensions.interval_if_bent``: the interval that a fit gives of it when the form is not trusted.
- ``lackoffit.lack_of_fit(params, tokens, loss, fit)``: whether the form of the law fails, and where.
- ``compare.compared``: precision against cost of the classic design and of optimal ones.
- ``noise.estimate_noise``, ``noise.contradiction``: the noise of earlier sweeps; whether a law contradicts results.
"""
