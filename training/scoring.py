"""Score a training on its stop fold: predictions, and batch statistics for weights that were averaged."""

from __future__ import annotations

import torch

from training import augment, data
from training.metrics import macro_f1
from training.run import Run


def score(run: Run, last: bool) -> float:
    """Macro-F1 of the averaged weights on the stop fold, at the serving size once training has reached it."""
    size = run.config["phases"][-1]["size"] if last else run.config["stop_size"]
    if last:
        recalibrate(run, size)
    said = predict(run.average, run.stop.at(size), run.stop.clip, run.config["bf16"])
    return macro_f1(run.stop.labels.numpy(), said.argmax(dim=1).numpy(), run.model.head.out_features)


def predict(model: torch.nn.Module, tensors: torch.Tensor, clip: float, bf16: bool) -> torch.Tensor:
    """Logits float32 [N, K] of int8 [N, S, S]."""
    model.eval()
    device = next(model.parameters()).device
    said = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for i in range(0, len(tensors), 32):
            batch = data.floats(tensors[i : i + 32].to(device), clip).contiguous(memory_format=torch.channels_last)
            said.append(model(batch).float().cpu())
    return torch.cat(said)


def recalibrate(run: Run, size: int) -> None:
    """The running statistics of the averaged weights, measured at `size` on images as training draws and augments them.

    Averaged weights have none of their own, and squares of an image have others than the image.
    """
    norms = [m for m in run.average.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    run.average.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    chosen = torch.multinomial(run.draw, run.config["recalibration_images"], replacement=True)
    tensors = data.Part(run.fit.items, run.fit.tensors[chosen.numpy()], run.fit.labels, run.fit.clip).at(size)
    with torch.no_grad(), run.autocast():
        for i in range(0, len(tensors) - 1, 32):
            images = augment.augmented(run.images(tensors[i : i + 32]), run.config["augment"], size, run.fit.clip)
            run.average(images.contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    run.average.eval()
