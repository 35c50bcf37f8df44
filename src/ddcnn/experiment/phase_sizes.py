"""How large the phases of a run are, relative to each other, from the counts of their operations: for the time that is left of all."""

from dataclasses import replace
from math import prod

from ddcnn.config.methods import Method
from ddcnn.experiment.problem import Problem
from ddcnn.method.work import Counts, Network, Sizes, cnn, counts, dense
from ddcnn.networks.shape import Shape

SECONDS = {  # for each, about: the speed that a run has corrects them
    "cpu": Counts(local_operations=2e-11, global_operations=1.5e-11, layer_steps=1.5e-4, collectives=2e-4, bytes_sent=1e-9),
    "cuda": Counts(local_operations=2e-13, global_operations=1e-13, layer_steps=4e-5, collectives=2e-4, bytes_sent=1e-9),
}
UNKNOWN = Network(1e7, 20, 100_000, 10)  # in place of a network that cannot be counted


def phase_sizes(problem: Problem) -> list[tuple[str, float]]:
    """Of the phases of a seed, in order: title as it is shown, and seconds, of which only the relation counts."""
    settings = problem.settings
    each, sizes = SECONDS[problem.policy.device.type], _sizes(problem)
    found = {phase: count.seconds(each) for phase, count in counts(sizes).items()}
    phases: list[tuple[str, float]] = []
    if settings.needs("local"):
        phases.append(("local CNNs", (0.0 if settings.start_from else found["local"]) + found.get("folds", 0.0)))
    if settings.needs("dnn"):
        phases.append(("DNN", found["dnn"]))
    for method in (Method.COHERENT, Method.TRANSFER):
        if method in settings.methods:
            whole = settings.sees_whole_image(method)
            phases.append((method, counts(_as_whole(sizes, method))["global"].seconds(each) if whole else found[method]))
    return [*phases, *([(Method.GLOBAL, found["global"])] if Method.GLOBAL in settings.methods else [])]


def _as_whole(sizes: Sizes, method: str) -> Sizes:
    """Of the undecomposed CNN, with the epochs of another method."""
    return replace(sizes, phases=("global",), epochs=sizes.epochs | {"global": sizes.epochs[method]})


def _sizes(problem: Problem) -> Sizes:
    settings, store, networks = problem.settings, problem.store, problem.networks
    *spatial, channels = store.shape
    boxes = [store.decomposition.subdomains[networks.subimage(index)].subimage.shape for index in problem.owned]
    subimage, divisor = max(boxes, key=prod), settings.divisor(networks.subdomains)
    phases = [phase for phase in ("local", "folds", "gather", "dnn", "coherent", "transfer") if settings.needs(phase)]
    phases = [phase for phase in phases if phase != "folds" or problem.dnn_samples.kind == "out-of-fold"]
    try:
        local = cnn(settings, Shape(subimage, channels, networks.classes), settings.width, divisor, settings.features)
        whole = cnn(settings, Shape(tuple(spatial), channels, networks.classes), settings.width_of(Method.GLOBAL), 1, None)
    except Exception:  # a user's network may compute while it is made, or not take whole images
        local = whole = UNKNOWN
    dnn = dense(settings.interface, networks.subdomains, local.values, networks.classes)
    epochs = {phase: settings.epochs_of(phase) for phase in ("local", "coherent", "global")}
    return Sizes(
        ranks=problem.world.size, subdomains=networks.subdomains, phases=(*phases, "global"), subimage=subimage,
        samples=store.train_samples, validation_samples=store.validation_samples, test_samples=store.test_samples,
        classes=networks.classes, interface=settings.interface,
        batch=settings.batch_size, epochs=epochs | {"dnn": settings.dnn_epochs, "transfer": settings.transfer_epochs},
        frozen_epochs=settings.frozen_epochs, folds=settings.folds,
        evaluations=1 / settings.evaluate_every if settings.evaluate_every else 0.0, local=local, whole=whole, dnn=dnn,
        local_bytes=0, global_bytes=0,
    )  # fmt: skip
