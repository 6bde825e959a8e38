"""Presets: what `--preset` sets, by how much time training may take, and the paper's method to compare with."""

from __future__ import annotations

from dataclasses import replace

from cgc.settings import ClusterSettings, LiftSettings, RunSettings, SharpenSettings, TrainSettings

TRAIN_PRESETS: dict[str, TrainSettings] = {
    "quick": TrainSettings(steps=800, max_gaussians=40_000),
    "short": TrainSettings(steps=1500, max_gaussians=50_000),
    "default": TrainSettings(),
    "full": TrainSettings(
        steps=15_000,
        max_gaussians=300_000,
        sh_degree=3,
        reset_every=3000,
        init_opacity=0.1,
        grow_grad2d=2e-4,
        means_lr=1.6e-4,
        log_scales_lr=5e-3,
        quats_lr=1e-3,
        sh_dc_lr=2.5e-3,
        sh_rest_lr=1.25e-4,
    ),
}
_STANDARD = replace(
    TRAIN_PRESETS["full"], steps=30_000, max_gaussians=4_000_000, sh_ramp=4000 / 30_000, coarse=0.0, lr_final=1.0,
    refine_start=500 / 30_000, refine_stop=0.5, checkpoint_every=2000, grow_grad2d=4e-4,
)  # fmt: skip
TRAIN_PRESETS |= {
    "fast": replace(_STANDARD, steps=7000, max_gaussians=2_000_000, sh_ramp=0.4, coarse=0.2, refine_start=500 / 7000,
                    refine_stop=0.7),
    "standard": _STANDARD,
}  # fmt: skip
"""Trainings by budget: a glance, the demo's, a good scene on two cores, as good as it gets there; and two for a GPU, of
which `standard` has the steps, rates and resets of 3D Gaussian Splatting as published; what is added where is cgc's."""

PAPER = RunSettings(
    train=TrainSettings(features="joint", background="black", max_length=0.0, strategy="default", backdrop=0),
    lift=LiftSettings(method="joint"),
    cluster=ClusterSettings(
        samples=20_000, min_cluster_size=20, join=False, revote=0, smoothing="none", draw="uniform", masks="blended"
    ),
    sharpen=SharpenSettings(steps=0),
)
"""Contrastive Gaussian Clustering as published and released, in as many steps as `default`: what others are compared
with. What it leaves open or departs from is listed in docs/method.md."""

_SHARPEN_STEPS = {"quick": 200, "short": 400, "full": 2000, "fast": 2000, "standard": 4000}
PRESETS: dict[str, RunSettings] = {
    name: RunSettings(train=train, sharpen=SharpenSettings(steps=_SHARPEN_STEPS.get(name, SharpenSettings().steps)))
    for name, train in TRAIN_PRESETS.items()
} | {"paper": PAPER}
"""Whole runs: by budget, which differ in training (the rest takes seconds), and the paper's."""


def preset_of(name: str, *, gpu: bool = False) -> RunSettings:
    """Return what a preset means: on a GPU `default` is `standard`."""
    return PRESETS.get("standard" if gpu and name == "default" else name, RunSettings())
