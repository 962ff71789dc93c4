"""Embeddings as functions of a number, against numpy."""

import numpy as np
import pytest
import torch

from autoembed.nn.number_functions import Periodic, SoftBins

QUANTILES = torch.tensor([[0.0, 0.2, 0.5], [0.1, 0.7, 1.0]])


def arrays(function):
    """Its weights as numpy arrays, each drawn anew."""
    torch.manual_seed(1)
    for parameter in function.parameters():
        torch.nn.init.normal_(parameter)
    return {name: parameter.detach().double().numpy() for name, parameter in function.named_parameters()}


def test_waves_are_sines_and_cosines_of_the_quantile_in_a_linear_layer():
    function = Periodic(2, 4, frequencies=3, sigma=2.0, relu=3)
    own, u = arrays(function), QUANTILES.double().numpy()
    for field in range(2):
        for place in range(3):
            angle = 2 * np.pi * own["frequency"][field, 0] * u[field, place]
            wave = np.concatenate([np.sin(angle), np.cos(angle)])
            expected = wave @ own["weight"][field] + own["bias"][field, 0]
            expected[:3] = np.maximum(expected[:3], 0)
            np.testing.assert_allclose(function(QUANTILES)[field, place].detach(), expected, atol=1e-5)


def test_frequencies_start_as_wide_as_sigma_says():
    torch.manual_seed(0)
    wide = Periodic(50, 4, frequencies=100, sigma=5.0, relu=0)
    assert wide.frequency.std().item() == pytest.approx(5.0, rel=0.05)
    out = wide(torch.rand(50, 40))
    assert out.std().item() == pytest.approx(0.01, rel=0.2)  # as of a fresh table
    assert (out < 0).any()


def test_soft_bins_are_means_by_the_weights_of_a_small_net():
    function = SoftBins(2, 4, bins=5, temperature=0.7)
    own, u = arrays(function), QUANTILES.double().numpy()
    for field in range(2):
        for place in range(3):
            hidden = (2 * u[field, place] - 1) * own["slope"][field, 0] + own["shift"][field, 0]
            hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
            logits = (hidden @ own["mix"][field] + own["bias"][field, 0] + 0.1 * hidden) / 0.7
            weights = np.exp(logits) / np.exp(logits).sum()
            expected = weights @ own["weight"][field]
            np.testing.assert_allclose(function(QUANTILES)[field, place].detach(), expected, atol=1e-5)
