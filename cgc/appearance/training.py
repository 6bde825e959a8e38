"""A training under way: parameters, optimisers and statistics, and the step that moves them.

Nothing in a step waits for the device but finding which Gaussians meet which tiles, whose number has to be known, what
the bar shows, every SHOWN_EVERY steps, refining, and the steps that learn features beside colour. Adam is torch's fused
one: it gives every Gaussian its step, as on the CPU, where gsplat's selective Adam passes over those that a photo
does not show, so that the two backends would not train alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from cgc import parallel
from cgc.appearance import schedule
from cgc.appearance.arrange import Optimizers, Params
from cgc.appearance.capture import CaptureModel, Densification
from cgc.appearance.checkpoint import Checkpoint, Identity, load_checkpoint
from cgc.appearance.companion import Companion
from cgc.appearance.densify import Densifier, Halver, gradients_seen
from cgc.appearance.exchange import Loan, pack, unpack
from cgc.appearance.losses import photometric_loss, psnr
from cgc.appearance.mcmc import MarkovChain
from cgc.appearance.photos import Photo, Photos, Which
from cgc.appearance.plan import Plan
from cgc.appearance.shards import Shards
from cgc.appearance.watch import Watch
from cgc.errors import InputError, reason
from cgc.rasterize.base import Rasterizer, Render
from cgc.rasterize.sh import sh_colors
from cgc.rasterize.sight import may_see
from cgc.scene.types import Camera
from cgc.settings import TrainSettings
from cgc.splats.types import Splats

ADAM_EPS, BETAS = 1e-15, (0.9, 0.999)
CARRIED = "carried."  # before the names of what Gaussians carry for the companion
SHOWN_EVERY = 10  # steps between updates of the bar
LIMITED_EVERY = 20  # steps between looks at how long Gaussians have become
ROWS = 1 << 16  # Gaussians whose distances to all cameras are in memory at once
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


class Training:
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
        self._shards = Shards(len(first.splats), self._device)
        self._rank, self._size = parallel.here()
        own = first.splats.select(self._shards.numbers) if self._shards.many else first.splats
        self.params: Params = _parameters(own)
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
        self._eyes = torch.stack([photos.camera(i, 0).position.detach() for i in self._views])  # [C, 3]
        groups = [group | {"first": group["lr"]} for group in capture.parameter_groups()]
        self._capture_optimizer = torch.optim.Adam(groups, eps=ADAM_EPS) if groups else None
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
        self.fitted = self.gaussians
        self._densify(step)
        self.whole = step + 1

    def learn(self, step: int) -> None:
        """Draw photos, render them, and move every parameter."""
        self.whole = step
        shown, seen = step == 0 or (step + 1) % SHOWN_EVERY == 0, []
        learn = self._learn_round if self._shards.many else self._learn_photo
        for place in range(0, self.settings.views_per_step, self._size):
            seen += learn(step, place, shown)
        if (step + 1) % self._look_every == 0 or schedule.refines(self.settings, step) or self._is_last(step):
            self._watch.look(step + 1)
        if shown:
            self._show(step, [(float(loss), quality) for loss, quality in seen])
        self.whole = None
        self._densifier.add_up()
        self._densifier.regularise(self.params)
        self._descend(step)
        self._densifier.after_step(self.params, step, self._rates_at(step)["means"])
        if self.settings.max_length and ((step + 1) % LIMITED_EVERY == 0 or step + 1 == self.settings.steps):
            shorten(self.params["means"].detach(), self.params["scales"].detach(), self._eyes, self.settings.max_length)

    def _learn_photo(self, step: int, place: int, shown: bool) -> list[tuple[Tensor, float]]:
        """Add the gradients of a step's `place`-th photo; return its loss and, where shown, its PSNR."""
        view, level, number = self._drawn(step, place)
        photo = self._photos.take(view, level, self._next(step, place))
        cameras = self.capture.cameras(view, photo.camera)
        beside = self.companion.values(self.carried(), step)
        values = self._values(self.params, cameras, step, beside)
        render = self._render(self._raw_splats(), values, cameras, step, number)
        found = self._go_back(view, photo, render, step, place, shown)
        if schedule.counts_gradients(self.settings, step):
            self._densifier.count(render, photo.camera.width, photo.camera.height, self.settings.views_per_step)
        return [found]

    def _learn_round(self, step: int, begin: int, shown: bool) -> list[tuple[Tensor, float]]:
        """Do the same with a photo a process, from the step's `begin`-th on; return what the own one gives, if any."""
        own, index, rows, found = begin + self._rank, [], [], []
        for place in range(begin, min(begin + self._size, self.settings.views_per_step)):
            view, level, _ = self._drawn(step, place)
            cameras = self.capture.cameras(view, self._photos.camera(view, level))
            near, splats = self._rasterizer.near, self._raw_splats()
            which = torch.stack([may_see(splats, camera, near) for camera in cameras]).any(0).nonzero()[:, 0]
            lent = {name: p.index_select(0, which) for name, p in self.params.items()}
            index.append(which)
            rows.append(pack(_raw(lent), self._values(lent, cameras, step, None)))
        loan, norms, seen = Loan(self._shards, index, rows), None, None
        if own < self.settings.views_per_step:
            view, level, number = self._drawn(step, own)
            photo = self._photos.take(view, level, self._next(step, own))
            cameras = self.capture.cameras(view, photo.camera)
            render = self._render(*unpack(loan.guests, len(cameras)), cameras, step, number)
            found.append(self._go_back(view, photo, render, step, own, shown))
            if schedule.counts_gradients(self.settings, step):
                size = photo.camera.width, photo.camera.height
                norms, seen = (v.sum(0) for v in gradients_seen(render, *size, self.settings.views_per_step))
        for which, lengths, times in loan.settle(norms, seen):
            if schedule.counts_gradients(self.settings, step):
                self._densifier.note(which, lengths, times)
        return found

    def _go_back(
        self, view: int, photo: Photo, render: Render, step: int, place: int, shown: bool
    ) -> tuple[Tensor, float]:
        """Add the gradients of a photo's render; return its loss and, where shown, its PSNR."""
        photos, (colors, beside) = self.settings.views_per_step, _apart(render.values)
        predicted, target = self.capture.predict(view, colors), photo.float()
        if photo.is_see_through:
            behind = self._background(self._drawn(step, place)[2])
            behind = colors.new_zeros(3) if behind is None else behind
            with torch.no_grad():  # as the camera shows it
                target = photo.float(self.capture.predict(view, behind.expand(len(colors), 1, 1, 3))[0, 0])
        loss = self._loss(view, colors, predicted, target)
        for term in self._companion_terms(view, photo.camera, beside, step, place):
            loss = loss + term
        if schedule.counts_gradients(self.settings, step):
            render.means2d.retain_grad()
        (loss if photos == 1 else loss / photos).backward()
        self._watch.note(step, loss.detach(), render.radii)
        return loss.detach(), psnr(predicted, target) if shown else 0.0

    def _drawn(self, step: int, place: int) -> tuple[int, int, int]:
        """Return the view of a step's `place`-th photo, how many times it is halved, and how many came before it."""
        number = step * self.settings.views_per_step + place
        view = schedule.view_at(self._views, self.settings.seed, number)
        return view, schedule.level(self.settings, step), number

    def _next(self, step: int, place: int) -> Which | None:
        """Return the photo that this process renders next, None where it was the last."""
        later = place + self._size < self.settings.views_per_step
        step, place = (step, place + self._size) if later else (step + 1, place % self._size)
        return self._drawn(step, place)[:2] if step < self.settings.steps else None

    def _is_last(self, step: int) -> bool:
        """Say whether the state after this step is kept."""
        s = self.settings
        return step + 1 == s.steps or (s.checkpoint_every > 0 and (step + 1) % s.checkpoint_every == 0)

    def _values(
        self, params: Mapping[str, Tensor], cameras: Sequence[Camera], step: int, beside: Tensor | None
    ) -> Tensor:
        """Return what to render of Gaussians: colours seen from the cameras, and what is `beside` them."""
        degree = min(schedule.sh_degree(self.settings, step), self._degree)
        rest = params["sh_rest"] if "sh_rest" in params else params["sh_dc"].new_zeros(0, 0, 3)
        position = [c.position.detach() for c in cameras]
        colors = [sh_colors(params["means"], params["sh_dc"], rest, p, degree) for p in position]
        if beside is not None:
            colors = [torch.cat([c, beside], 1) for c in colors]  # [N, 3 + D]
        return colors[0] if len(colors) == 1 else torch.stack(colors)

    def _render(self, splats: Splats, values: Tensor, cameras: Sequence[Camera], step: int, number: int) -> Render:
        """Render a photo of a step, before which `number` others came."""
        background, beside = self._background(number), values.shape[-1] - 3
        if background is not None and beside:
            background = torch.cat([background, background.new_zeros(beside)])
        absgrad = self._densifier.absgrad and schedule.counts_gradients(self.settings, step)
        return self._rasterizer.render(splats, values, cameras, backgrounds=background, absgrad=absgrad)

    def _background(self, number: int) -> Tensor | None:
        """Return what is behind the photo before which `number` others came, [3]; None: black."""
        if self.settings.background == "black":
            return None
        return schedule.background_at(self.settings, number).to(self._device, non_blocking=True)

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

    def _show(self, step: int, found: list[tuple[float, float]]) -> None:
        """Keep smoothed values for the bar, of the losses and PSNR of a step's photos in all processes."""
        losses, qualities = zip(*(pair for of in zip_longest(*parallel.collect(found)) for pair in of if pair))
        loss, quality = sum(losses) / len(losses), sum(qualities) / len(qualities)
        weight = SMOOTHING if step > 0 else 1.0
        self.loss += weight * (loss - self.loss)
        self.psnr += weight * (quality - self.psnr)

    @property
    def gaussians(self) -> int:
        """How many Gaussians there are in all processes."""
        return self._shards.total

    def shown(self) -> dict[str, float | int]:
        """Return what the bar shows."""
        return {"loss": self.loss, "psnr": self.psnr, "gaussians": self.gaussians}

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
            for value in _leaves(self._capture_optimizer) if self._shards.many else []:
                value.grad = parallel.add_up(torch.zeros_like(value) if value.grad is None else value.grad)
            for group in self._capture_optimizer.param_groups:
                group["lr"] = schedule.decayed(group["first"], group.get("final", 1.0), self.settings, step)
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
            limit = parallel.agree(self.plan.limit(step))
            self._densifier.refine(self.params, self._optimizers, step, wanted, limit)
            if not self.gaussians:
                raise InputError(f"every Gaussian had faded by step {step}; lower the setting prune_opacity")
            self.plan.refined(step, limit, self.gaussians)
        if schedule.resets(s, step):
            self._densifier.reset_opacities(self.params, self._optimizers, s.prune_opacity)

    def _raw_splats(self) -> Splats:
        """Return the splats without their higher SH terms: all that a render with given colours needs."""
        return _raw(self.params)

    def splats(self) -> Splats:
        """Return the splats as they are now, cut from any graph, quaternions of unit length; in the first process."""
        whole = {k: self._shards.gather(v) for k, v in self.params.items()}
        p = {k: (self.params[k][:0] if v is None else v.to(self._device)).detach().clone() for k, v in whole.items()}
        sh = torch.cat([p["sh_dc"][:, None], p["sh_rest"]], 1) if "sh_rest" in p else p["sh_dc"][:, None]
        return replace(_raw(p), sh=sh, quats=torch.nn.functional.normalize(p["quats"], dim=-1))

    # --- checkpoints ---

    def forget(self) -> None:
        """Drop what a step has found out so far."""
        self._densifier.forget()
        for value in [*self.params.values(), *_leaves(self._capture_optimizer)]:
            value.grad = None

    def checkpoint(self, step: int) -> Checkpoint | None:
        """Return everything that `resume` needs to go on at `step`, on any device, in any number of processes.

        All processes must come here; it is in the first one.
        """
        gather = self._shards.gather
        tensors = {f"strategy.{k}": gather(v) for k, v in self._densifier.tensors().items()}
        for name, optimizer in self._optimizers.items():
            value = self.params[name]
            tensors[f"{name}.0.value"] = gather(value)
            tensors |= {f"{name}.0.{k}": gather(v) if v.ndim else v for k, v in optimizer.state[value].items()}
        tensors |= {k: gather(v) for k, v in self.params.items() if k not in self._optimizers}
        if not parallel.is_first():
            return None
        tensors |= {f"plan.{k}": v for k, v in self.plan.tensors().items()}
        for index, value in enumerate(_leaves(self._capture_optimizer)):
            tensors[f"capture.{index}.value"] = value.detach()
            tensors |= {f"capture.{index}.{k}": v for k, v in self._capture_state(value).items()}
        numbers = {
            "loss": self.loss, "psnr": self.psnr, "anything_seen": float(self._watch.anything_seen),
            "seconds": self.plan.seconds, "max_gaussians": float(self.settings.max_gaussians),
        }  # fmt: skip
        return Checkpoint(step, {k: v for k, v in tensors.items() if v is not None}, numbers)

    def resume(self, folder: Path, identity: Identity) -> int:
        """Take over the newest checkpoint of `folder`; return the step to go on at (0: there was none)."""
        found = load_checkpoint(folder, identity)
        parallel.check_same(checkpoint=str(found and found.step))
        if found is None:
            return 0
        most = found.numbers.get("max_gaussians", math.inf)
        if self.settings.max_gaussians > most:
            raise InputError(
                f"{folder} was written by a training with --train.max-gaussians {most:.0f}, which can be lowered to go "
                "on, but not raised; repeat the command it was made with, choose another --out, or delete "
                f"{folder} to train from the start"
            )
        try:
            self._check_shapes(found.tensors)
            self._take_over(found)
        except LookupError as error:
            raise InputError(
                f"the checkpoint of step {found.step} in {folder} is broken ({reason(error)}); delete it to go on from "
                f"the one before, if there is one, or delete {folder} to train from the start"
            ) from error
        return found.step

    def _check_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise LookupError where tensors are not of one number of Gaussians, or of other rows than are trained."""
        n = len(tensors["means.0.value"])
        for key, tensor in tensors.items():
            old = self.params.get(key.partition(".0.")[0])
            wanted = [] if old is None or key.endswith(".step") else [n, *old.shape[1:]]
            if old is not None and list(tensor.shape) != wanted:
                raise LookupError(f"its {key} is {list(tensor.shape)} where {wanted} was expected")

    def _take_over(self, found: Checkpoint) -> None:
        self.loss, self.psnr = found.numbers["loss"], found.numbers["psnr"]
        self._watch.anything_seen = bool(found.numbers["anything_seen"])
        self._shards.deal(len(found.tensors["means.0.value"]))
        self._densifier.statistics |= self._here(_under(found.tensors, "strategy."))
        self.plan.restore(_under(found.tensors, "plan."), found.numbers["seconds"])
        for name, old in self.params.items():
            if name in self._optimizers:
                state = self._here(_under(found.tensors, f"{name}.0."))
                old.data = state.pop("value")
                self._optimizers[name].state[old] = state
            else:
                old.data = self._here({name: found.tensors[name]})[name]
        for index, value in enumerate(_leaves(self._capture_optimizer)):
            state = _under(found.tensors, f"capture.{index}.")
            value.data = state.pop("value").to(value.device)
            self._capture_state(value).update({k: v.to(value.device) if v.ndim else v for k, v in state.items()})
        if not self.settings.budget:  # which decides on the cap
            self._densifier.keep_brightest(self.params, self._optimizers, self.settings.max_gaussians)
            self.plan.gaussians = self.gaussians

    def _capture_state(self, value: Tensor) -> dict[str, Tensor]:
        assert self._capture_optimizer is not None
        return self._capture_optimizer.state[value]

    def _here(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the own Gaussians' rows of tensors, on the device."""
        return {k: (self._shards.own(v.to(self._device)) if v.ndim else v.to(self._device)) for k, v in tensors.items()}


def shorten(means: Tensor, log_scales: Tensor, eyes: Tensor, longest: float) -> None:
    """Cut log scales [N, 3], in place, to `longest` times the distance from means [N, 3] to the nearest of eyes [C, 3].

    What a camera sees of a Gaussian is computed as if its depth were about the same everywhere (arXiv 2308.04079,
    section 4), which is wrong of one that reaches past the camera. Memory: 4 C bytes for each of ROWS Gaussians.
    """
    for part, cut in zip(means.split(ROWS), log_scales.split(ROWS)):
        nearest = torch.cdist(part, eyes, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        cut.clamp_(max=(longest * nearest).clamp_min(1e-30).log()[:, None])


def _densifier(shards: Shards, settings: TrainSettings, extent: float) -> Densifier:
    """Make what adds and removes Gaussians."""
    if settings.strategy == "mcmc":
        return MarkovChain(shards, settings, extent=extent)
    kind = Halver if settings.strategy == "split" else Densifier
    return kind(shards, extent=extent, prune_scale=settings.prune_scale, seed=settings.seed)


def _raw(params: Mapping[str, Tensor]) -> Splats:
    """Return splats of parameters, without higher SH terms."""
    p = params
    return Splats(p["means"], p["quats"], p["scales"], p["opacities"], p["sh_dc"][:, None])


def _apart(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return colours [C, H, W, 3] and what was rendered beside them [C, H, W, D], None where nothing was."""
    return (values, None) if values.shape[-1] == 3 else (values[..., :3], values[..., 3:])


def _leaves(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    return [value for group in optimizer.param_groups for value in group["params"]] if optimizer else []


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
