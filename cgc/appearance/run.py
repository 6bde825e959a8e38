"""A training under way: parameters, optimisers and statistics, and the step that moves them.

Nothing in a step waits for the device but what the bar shows, every SHOWN_EVERY steps, and refining. Adam is torch's
fused one: it gives every Gaussian its step, as on the CPU, where gsplat's selective Adam passes over those that a photo
does not show, so that the two backends would not train alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cgc.appearance import schedule
from cgc.appearance.arrange import Optimizers, Params
from cgc.appearance.capture import CaptureModel, Densification
from cgc.appearance.checkpoint import Checkpoint, Identity, load_checkpoint
from cgc.appearance.companion import Companion
from cgc.appearance.densify import Densifier
from cgc.appearance.losses import photometric_loss, psnr
from cgc.appearance.mcmc import MarkovChain
from cgc.appearance.photos import Photo, Photos
from cgc.appearance.plan import Plan
from cgc.appearance.shards import Shards
from cgc.appearance.watch import Watch
from cgc.errors import InputError
from cgc.rasterize.base import Rasterizer, Render
from cgc.rasterize.sh import sh_colors
from cgc.scene.types import Camera
from cgc.settings import TrainSettings
from cgc.splats.types import Splats

ADAM_EPS, BETAS = 1e-15, (0.9, 0.999)
CARRIED = "carried."  # before the names of what Gaussians carry for the companion
SHOWN_EVERY = 10  # steps between updates of the bar
SMOOTHING = 0.1  # weight of the newest of the shown values
FUSED = ("cpu", "cuda")  # devices that torch has a fused Adam for


def _parameters(splats: Splats) -> Params:
    """Split splats into leaf tensors under gsplat's names; the DC term apart, because it learns faster."""
    tensors = {
        "means": splats.means, "quats": splats.quats, "scales": splats.log_scales,
        "opacities": splats.logit_opacities, "sh_dc": splats.sh[:, 0], "sh_rest": splats.sh[:, 1:],
    }  # fmt: skip
    return {k: torch.nn.Parameter(v.detach().clone().contiguous()) for k, v in tensors.items() if v.numel()}


@dataclass(frozen=True)
class First:
    """The Gaussians that a training starts with, what they carry for the companion, and the scene's extent."""

    splats: Splats
    carried: dict[str, Tensor]
    extent: float

    def repeated(self, times: int) -> First:
        """Return every Gaussian so many times, smaller, so that they cover about as much of a picture."""
        index = torch.arange(len(self.splats), device=self.splats.means.device).repeat(times)
        many = self.splats.select(index)
        many = replace(many, log_scales=many.log_scales - 0.5 * math.log(times))
        return replace(self, splats=many, carried={k: v[index] for k, v in self.carried.items()})


class Run:
    """The state of a training. `whole` says before which step all of it is as it should be; None: in none.

    `fitted` is how many Gaussians the last step had for which memory sufficed. A step that fails while it renders has
    changed nothing yet, so that a checkpoint of it is as good as any.
    """

    def __init__(
        self,
        first: First,
        photos: Photos,
        rasterizer: Rasterizer,
        settings: TrainSettings,
        capture: CaptureModel,
        companion: Companion,
        plan: Plan,
    ) -> None:
        self.settings, self.capture, self.companion, self.plan = settings, capture, companion, plan
        self.loss = self.psnr = 0.0
        self.whole: int | None = None
        self.fitted = len(first.splats)
        self._rasterizer, self._photos = rasterizer, photos
        self._views, self._device = photos.views, photos.device
        self._watch = Watch(len(self._views), settings.steps, self._device)
        self._look_every = 1 if self._device.type == "cpu" else SHOWN_EVERY
        self.params: Params = _parameters(first.splats)
        self._degree = first.splats.sh_degree
        pace = settings.views_per_step**0.5  # more photos a step: surer gradients, longer steps
        self._rates = {
            "means": pace * settings.means_lr * first.extent, "quats": pace * settings.quats_lr,
            "scales": pace * settings.log_scales_lr, "opacities": pace * settings.logit_opacities_lr,
            "sh_dc": pace * settings.sh_dc_lr, "sh_rest": pace * settings.sh_rest_lr,
        }  # fmt: skip
        self._optimizers: Optimizers = {
            name: self._adam([p], self._rates[name], BETAS) for name, p in self.params.items()
        }
        self._carry(first.carried)
        groups = capture.parameter_groups()
        self._capture_optimizer = torch.optim.Adam(groups, eps=ADAM_EPS) if groups else None
        self._shards = Shards(len(first.splats), self._device)
        self._densifier = _densifier(self._shards, settings, first.extent)

    def _adam(self, params: list[Tensor], rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
        """Make an optimiser that remembers as many photos, however many a step learns from."""
        b1, b2 = (beta**self.settings.views_per_step for beta in betas)
        return torch.optim.Adam(params, lr=rate, betas=(b1, b2), eps=ADAM_EPS, fused=self._device.type in FUSED)

    def _carry(self, carried: dict[str, Tensor]) -> None:
        """Make parameters of what is carried: the densifier treats them like the others."""
        rates, betas = self.companion.rates(0), self.companion.betas()
        for name, value in carried.items():
            learned = name in rates
            own = torch.nn.Parameter(value.detach().clone().contiguous(), requires_grad=learned)
            self.params[CARRIED + name] = own
            if learned:
                self._optimizers[CARRIED + name] = self._adam([own], rates[name], betas)

    def carried(self) -> dict[str, Tensor]:
        """Return what the present Gaussians carry for the companion, [N, ...] a name."""
        return _under(self.params, CARRIED)

    def step(self, step: int) -> None:
        """Learn from the photos of a step; then grow, prune or reset where it is time."""
        self.learn(step)
        self.fitted = len(self.params["means"])
        self._densify(step)
        self.whole = step + 1

    def learn(self, step: int) -> None:
        """Draw photos, render them, and move every parameter."""
        self.whole = step
        shown, seen = step == 0 or (step + 1) % SHOWN_EVERY == 0, []
        for place in range(self.settings.views_per_step):
            seen.append(self._learn_photo(step, place, shown))
        if (step + 1) % self._look_every == 0 or schedule.refines(self.settings, step) or self._is_last(step):
            self._watch.look(step + 1)
        if shown:
            losses, qualities = zip(*((float(loss), quality) for loss, quality in seen))
            self._show(step, sum(losses) / len(losses), sum(qualities) / len(qualities))
        self.whole = None
        self._densifier.add_up()
        self._densifier.regularise(self.params)
        self._descend(step)
        self._densifier.after_step(self.params, step, self._rates_at(step)["means"])

    def _learn_photo(self, step: int, place: int, shown: bool) -> tuple[Tensor, float]:
        """Add the gradients of a step's `place`-th photo; return its loss and, where shown, its PSNR."""
        photo, view, number = self._take(step, place)
        target = photo.float()
        render = self._render(view, photo, step, number)
        colors, beside = _apart(render.values)
        predicted = self.capture.predict(view, colors)
        loss = self._loss(view, colors, predicted, target)
        for term in self._companion_terms(view, photo.camera, beside, step, place):
            loss = loss + term
        counted = schedule.counts_gradients(self.settings, step)
        if counted:
            render.means2d.retain_grad()
        photos = self.settings.views_per_step
        (loss if photos == 1 else loss / photos).backward()
        self._watch.note(step, loss.detach(), render.radii)
        if counted:
            self._densifier.count(render, photo.camera.width, photo.camera.height, photos)
        return loss.detach(), psnr(predicted, target) if shown else 0.0

    def _take(self, step: int, place: int) -> tuple[Photo, int, int]:
        """Return a step's `place`-th photo, its view, and how many photos came before it; the next is asked for."""
        s = self.settings
        number = step * s.views_per_step + place
        views = [schedule.view_at(self._views, s.seed, number + ahead) for ahead in (0, 1)]
        levels = [schedule.level(s, (number + ahead) // s.views_per_step) for ahead in (0, 1)]
        then = (views[1], levels[1]) if number + 1 < s.steps * s.views_per_step else None
        return self._photos.take(views[0], levels[0], then), views[0], number

    def _is_last(self, step: int) -> bool:
        """Say whether the state after this step is kept."""
        s = self.settings
        return step + 1 == s.steps or (s.checkpoint_every > 0 and (step + 1) % s.checkpoint_every == 0)

    def _render(self, view: int, photo: Photo, step: int, number: int) -> Render:
        cameras = self.capture.cameras(view, photo.camera)
        degree = min(schedule.sh_degree(self.settings, step), self._degree)
        rest = self.params["sh_rest"] if "sh_rest" in self.params else self.params["sh_dc"].new_zeros(0, 0, 3)
        position = [c.position.detach() for c in cameras]
        colors = [sh_colors(self.params["means"], self.params["sh_dc"], rest, p, degree) for p in position]
        background = None
        if self.settings.background != "black":
            background = schedule.background_at(self.settings, number).to(self._device, non_blocking=True)
        beside = self.companion.values(self.carried(), step)
        if beside is not None:
            colors = [torch.cat([c, beside], 1) for c in colors]  # [N, 3 + D]
            if background is not None:
                background = torch.cat([background, background.new_zeros(beside.shape[1])])
        values = colors[0] if len(colors) == 1 else torch.stack(colors)
        return self._rasterizer.render(self._raw_splats(), values, cameras, backgrounds=background)

    def _companion_terms(self, view: int, camera: Camera, beside: Tensor | None, step: int, place: int) -> list[Tensor]:
        """Return what the companion adds to the loss; several cameras of a photo share its time evenly."""
        photos, terms = self.settings.views_per_step, []
        if place == 0:  # once a step, where losses of photos are averaged
            of_splats = self.companion.splat_loss(self._raw_splats(), self.carried(), step)
            terms.append(of_splats if of_splats is None or photos == 1 else photos * of_splats)
        if beside is not None:
            mean = beside[0] if len(beside) == 1 else beside.mean(0)  # [H, W, D]
            terms.append(self.companion.image_loss(view, camera, mean, step))
        return [term for term in terms if term is not None]

    def _loss(self, view: int, colors: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
        valid = self.capture.valid_pixels(view, *target.shape[:2])
        compared = predicted if valid is None else torch.where(valid[..., None], predicted, target)
        loss = photometric_loss(compared, target, self.settings.ssim_weight)
        extra = self.capture.extra_loss(view, colors, predicted, target)
        return loss if extra is None else loss + extra

    def _show(self, step: int, loss: float, quality: float) -> None:
        """Keep smoothed values for the bar."""
        weight = SMOOTHING if step > 0 else 1.0
        self.loss += weight * (loss - self.loss)
        self.psnr += weight * (quality - self.psnr)

    def shown(self) -> dict[str, float | int]:
        """Return what the bar shows."""
        return {"loss": self.loss, "psnr": self.psnr, "gaussians": len(self.params["means"])}

    def _descend(self, step: int) -> None:
        """Take one step of Adam with this step's learning rates."""
        rates = self._rates_at(step)
        for name, optimizer in self._optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[name]
            if name not in self._rates and self.params[name].grad is None:
                self.params[name].grad = torch.zeros_like(self.params[name])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._capture_optimizer:
            self._capture_optimizer.step()
            self._capture_optimizer.zero_grad(set_to_none=True)

    def _rates_at(self, step: int) -> dict[str, float]:
        """Return every parameter's learning rate at this step."""
        s = self.settings
        final = {name: s.means_lr_final if name == "means" else s.lr_final for name in self._rates}
        own = {name: schedule.decayed(rate, final[name], s, step) for name, rate in self._rates.items()}
        pace = s.views_per_step**0.5
        return own | {CARRIED + name: pace * rate for name, rate in self.companion.rates(step).items()}

    def _densify(self, step: int) -> None:
        s = self.settings
        if schedule.refines(s, step):
            wanted = self.capture.densification(step, Densification(s.grow_grad2d, s.prune_opacity))
            limit = self.plan.limit(step)
            self._densifier.refine(self.params, self._optimizers, step, wanted, limit)
            if not len(self.params["means"]):
                raise InputError(f"every Gaussian had faded by step {step}; lower the setting prune_opacity")
            self.plan.refined(step, limit, len(self.params["means"]))
        if schedule.resets(s, step):
            self._densifier.reset_opacities(self.params, self._optimizers, s.prune_opacity)

    def _raw_splats(self) -> Splats:
        """Return the splats without their higher SH terms: all that a render with given colours needs."""
        p = self.params
        return Splats(p["means"], p["quats"], p["scales"], p["opacities"], p["sh_dc"][:, None])

    def splats(self) -> Splats:
        """Return the splats as they are now, cut from any graph, quaternions of unit length."""
        p = {k: v.detach().clone() for k, v in self.params.items()}
        sh = torch.cat([p["sh_dc"][:, None], p["sh_rest"]], 1) if "sh_rest" in p else p["sh_dc"][:, None]
        raw = Splats(p["means"], p["quats"], p["scales"], p["opacities"], sh)
        return replace(raw, quats=torch.nn.functional.normalize(raw.quats, dim=-1))

    # --- checkpoints ---

    def _all_optimizers(self) -> Optimizers:
        extra = {"capture": self._capture_optimizer} if self._capture_optimizer else {}
        return {**self._optimizers, **extra}

    def forget(self) -> None:
        """Drop what a step has found out so far."""
        self._densifier.forget()
        for optimizer in self._all_optimizers().values():
            optimizer.zero_grad(set_to_none=True)

    def checkpoint(self, step: int) -> Checkpoint:
        """Return everything that `resume` needs to go on at `step`, on any device."""
        tensors = {f"strategy.{k}": v for k, v in self._densifier.tensors().items()}
        tensors |= {f"plan.{k}": v for k, v in self.plan.tensors().items()}
        for name, optimizer in self._all_optimizers().items():
            for index, value in enumerate(_leaves(optimizer)):
                tensors[f"{name}.{index}.value"] = value.detach()
                tensors |= {f"{name}.{index}.{k}": v for k, v in optimizer.state[value].items()}
        tensors |= {k: v for k, v in self.params.items() if k not in self._optimizers}
        numbers = {
            "loss": self.loss, "psnr": self.psnr, "anything_seen": float(self._watch.anything_seen),
            "seconds": self.plan.seconds,
        }  # fmt: skip
        return Checkpoint(step, tensors, numbers)

    def resume(self, folder: Path, identity: Identity) -> int:
        """Take over the newest checkpoint of `folder`; return the step to go on at (0: there was none)."""
        found = load_checkpoint(folder, identity)
        if found is None:
            return 0
        self.loss, self.psnr = found.numbers["loss"], found.numbers["psnr"]
        self._watch.anything_seen = bool(found.numbers["anything_seen"])
        self._densifier.statistics |= self._here(_under(found.tensors, "strategy."))
        self.plan.restore(_under(found.tensors, "plan."), found.numbers["seconds"])
        for name in self.params.keys() - self._optimizers.keys():
            self.params[name].data = found.tensors[name].to(self._device)
        for name, optimizer in self._all_optimizers().items():
            for index, value in enumerate(_leaves(optimizer)):
                state = self._here(_under(found.tensors, f"{name}.{index}."))
                value.data = state.pop("value")
                optimizer.state[value] = state
        if not self.settings.budget:  # which decides on the cap
            self._densifier.keep_brightest(self.params, self._optimizers, self.settings.max_gaussians)
            self.plan.gaussians = len(self.params["means"])
        return found.step

    def _here(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}


def _densifier(shards: Shards, settings: TrainSettings, extent: float) -> Densifier:
    """Make what adds and removes Gaussians."""
    if settings.strategy == "mcmc":
        return MarkovChain(shards, settings, extent=extent)
    return Densifier(shards, extent=extent, prune_scale=settings.prune_scale, seed=settings.seed)


def _apart(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return colours [C, H, W, 3] and what was rendered beside them [C, H, W, D], None where nothing was."""
    return (values, None) if values.shape[-1] == 3 else (values[..., :3], values[..., 3:])


def _leaves(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for group in optimizer.param_groups for value in group["params"]]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
