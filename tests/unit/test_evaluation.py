"""Measuring a model on held-out data."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esper_ray.tasks import TaskSpec, create_model
from esper_ray.training import Evaluation, evaluate


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_figures_are_means_over_samples_however_they_are_cut_into_batches(fast_task: TaskSpec, alpha: float) -> None:
    torch.manual_seed(0)
    model = create_model(fast_task)
    model.germinate_seed("conv_heavy", "seed")
    samples = TensorDataset(torch.randn(10, *fast_task.input_shape), torch.randint(0, fast_task.classes, (10,)))

    def measured(batch_size: int) -> Evaluation:
        with model.seed_slot.force_alpha(alpha):
            loader = DataLoader(samples, batch_size)
            return evaluate(model, loader, nn.CrossEntropyLoss(), "cpu", "classification")

    whole, cut = measured(10), measured(4)
    assert vars(cut) == pytest.approx(vars(whole), rel=1e-5)
    assert (whole.loss == whole.loss_without_seed) == (alpha == 0.0)
    model.eval()
    with torch.inference_mode(), model.seed_slot.force_alpha(alpha):
        logits = model(samples.tensors[0])
    assert whole.loss == pytest.approx(float(nn.functional.cross_entropy(logits, samples.tensors[1])), rel=1e-5)
