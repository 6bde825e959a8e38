"""What segments must be in space: connected, or held together by masks; not specks inside others; not floaters.

Notation: N Gaussians, k neighbours of each. A component is what neighbours of one label connect; its typical step is
the median length of the connections of its label.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from cgc.clustering.beside import links_across
from cgc.clustering.columns import Columns, group_matrix
from cgc.clustering.graph import count_views
from cgc.clustering.vote import NOISE, regroup
from cgc.kernels import kernel, spread

STEP = 6.0  # typical steps: neighbours farther apart are not connected
SPECK = 0.03  # of a segment's Gaussians: components of less are specks, as are those of fewer than ...
LEAST = 15  # ... Gaussians
STRAYED = 1.0  # of the size of its segment's largest component: a speck that floats farther from that is no part of it
UNSURE = 0.5  # mean confidence: what the masks are surer of is no speck
SURROUNDED = 0.7  # of a speck's outer neighbours: one label with as many takes it in
HARDLY = 1.0  # views: what fewer show may be a speck as a whole; small things count little in each
NOWHERE = 0.25  # views: what fewer show is no segment that anyone sees, however little surrounds it
ALONE = 40.0  # typical steps of all Gaussians: specks with no other thing so near are floaters
APART = 0.5  # of the smaller one's size: components nearer to each other may be one thing seen in part
CLEAR = 0.2  # of the gap: what lies as near to the line between two components is between them
LINE = 9  # points on that line that are looked at


def tidy(
    labels: np.ndarray,
    confidences: np.ndarray,
    places: np.ndarray,
    neighbours: np.ndarray,
    columns: Columns,
    level: float,
) -> np.ndarray:
    """Return labels [N] (NOISE or >= 0) in which segments are whole in space; new ones get new numbers.

    places [N, 3]; neighbours [N, k] are the nearest others of each. A speck that the masks are unsure of joins the
    label that surrounds it, or is noise where it floats alone; so does one that floats far from its segment, however
    sure they are. Larger components become segments of their own where they are far from the rest of theirs, nothing
    lies between, and masks hold both together in less than the share `level` of the views that see both.
    """
    labels = labels.copy()
    own = labels >= 0
    if not own.any() or not neighbours.shape[1]:
        return labels
    lengths, same = np.empty(neighbours.shape), np.empty(neighbours.shape, bool)  # [N, k]
    spread(_measure, places, neighbours, labels, lengths, same)
    typical = _medians(labels, lengths, same)  # [labels]
    reach = np.where(own, typical[np.maximum(labels, 0)], 0.0)
    linked = same & (lengths <= STEP * reach[:, None])
    ends = np.cumsum(np.append(0, linked.sum(1)))
    graph = csr_matrix((np.ones(ends[-1], bool), neighbours[linked], ends), shape=(len(labels), len(labels)))
    component = np.where(own, connected_components(graph, directed=False)[1], -1)
    sizes = np.bincount(component[own], minlength=component.max() + 1)
    label_of = np.full(len(sizes), NOISE)
    label_of[component[own]] = labels[own]
    label_sizes = np.bincount(labels[own])
    small = (sizes < np.maximum(LEAST, SPECK * label_sizes[label_of])) & (sizes > 0)
    largest = np.zeros(len(label_sizes), np.int64)
    np.maximum.at(largest, label_of[sizes > 0], sizes[sizes > 0])
    small &= sizes < largest[label_of]  # what is all of a segment is no speck of it
    total = np.bincount(component[own], confidences[own], minlength=len(sizes))
    unsure = small & (total < UNSURE * sizes)
    alone = ALONE * float(np.median(lengths[own]))
    strayed = small & (_nearest_other(component, neighbours, lengths, len(sizes)) > STEP * typical[label_of])
    strayed &= _strayed(places, component, label_of, sizes, strayed)
    settled = np.where(own & strayed[np.maximum(component, 0)], NOISE, labels)  # they do not speak for each other
    joined = _join_specks(settled, component, unsure | strayed, places, neighbours, lengths, alone)
    return _split_far(joined, labels, component, small, places, columns, level)


def take_in(groups: np.ndarray, seen: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Return groups [N] (-1: none) in which specks of their own that hardly a view shows are part of what is around.

    seen [A]: how many views show each group; neighbours [N, k]. A speck is small beside what surrounds it; what no view
    shows is part of most of what is around, if that is larger.
    """
    if not len(seen):
        return groups
    links, sizes = links_across(groups, neighbours), np.bincount(groups[groups >= 0], minlength=len(seen))
    around = links.argmax(axis=1)
    most = links.max(axis=1)
    inside = most >= SURROUNDED * np.maximum(links.sum(axis=1), 1)
    specks = inside & (seen < HARDLY) & (sizes <= SPECK * sizes[around])
    specks |= (most > 0) & (seen < NOWHERE) & (sizes < sizes[around])
    into = np.where(specks, around, np.arange(len(seen)))
    while (into != into[into]).any():  # a speck in a speck; each is smaller than what takes it in
        into = into[into]
    return regroup(groups, into)


@kernel
def _measure(worker, workers, places, neighbours, labels, lengths, same):
    """Write how far each neighbour is, lengths [N, k], and whether it has the Gaussian's own label, same [N, k]."""
    n = neighbours.shape[0]
    for row in range(worker * n // workers, (worker + 1) * n // workers):
        for j in range(neighbours.shape[1]):
            other, square = neighbours[row, j], 0.0
            for axis in range(places.shape[1]):
                apart = places[row, axis] - places[other, axis]
                square += apart * apart
            lengths[row, j] = np.sqrt(square)
            same[row, j] = labels[row] >= 0 and labels[other] == labels[row]


def _medians(labels: np.ndarray, lengths: np.ndarray, same: np.ndarray) -> np.ndarray:
    """The median length of each label's connections, [labels]."""
    rows = np.repeat(labels, lengths.shape[1]).reshape(lengths.shape)[same]
    values = lengths[same]
    medians = np.full(int(labels.max()) + 1, np.median(values) if len(values) else 0.0)
    counts = np.bincount(rows, minlength=len(medians))
    small = np.uint16 if len(medians) <= 1 << 16 else np.int64  # of two bytes are sorted without comparing
    grouped = values[np.argsort(rows.astype(small), kind="stable")]
    ends = np.cumsum(counts)
    for label in np.flatnonzero(counts):
        own, middle = grouped[ends[label] - counts[label] : ends[label]], counts[label] // 2
        medians[label] = np.partition(own, middle)[middle]
    return medians


def _nearest_other(component: np.ndarray, neighbours: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """Return how far the nearest neighbour is that is of no or of another component, [components]."""
    other = np.where(component[neighbours] != component[:, None], lengths, np.inf).min(axis=1)
    own, nearest = component >= 0, np.full(count, np.inf)
    np.minimum.at(nearest, component[own], other[own])
    return nearest


def _strayed(
    places: np.ndarray, component: np.ndarray, label_of: np.ndarray, sizes: np.ndarray, small: np.ndarray
) -> np.ndarray:
    """Say which of some `small` components are far from the largest of their label, beside its size, [components]."""
    strayed = np.zeros(len(sizes), bool)
    order = np.argsort(component, kind="stable")
    starts = np.searchsorted(component[order], np.arange(len(sizes) + 1))
    by_size = np.argsort(sizes, kind="stable")[int((sizes == 0).sum()) :]
    main_of = np.zeros(int(label_of.max(initial=-1)) + 1, np.int64)
    main_of[label_of[by_size]] = by_size  # the largest of each label comes last
    chosen = np.flatnonzero(small)
    chosen = chosen[np.argsort(label_of[chosen], kind="stable")]
    for specks in np.split(chosen, np.flatnonzero(np.diff(label_of[chosen])) + 1) if len(chosen) else []:
        main = main_of[label_of[specks[0]]]
        body = places[order[starts[main] : starts[main + 1]]]
        size = np.linalg.norm(np.percentile(body, 95, axis=0) - np.percentile(body, 5, axis=0))
        members = np.concatenate([order[starts[c] : starts[c + 1]] for c in specks])
        distance = np.asarray(KDTree(body).query(places[members])[0])
        nearest = np.minimum.reduceat(distance, np.append(0, np.cumsum(sizes[specks]))[:-1])
        strayed[specks] = nearest > STRAYED * size
    return strayed


def _join_specks(
    labels: np.ndarray,
    component: np.ndarray,
    small: np.ndarray,
    places: np.ndarray,
    neighbours: np.ndarray,
    lengths: np.ndarray,
    alone: float,
) -> np.ndarray:
    """Give specks the label of what surrounds them, or NOISE where nothing else is as near as `alone`."""
    joined = labels.copy()
    members = np.flatnonzero((component >= 0) & small[np.maximum(component, 0)])
    order = members[np.argsort(component[members], kind="stable")]
    for group in np.split(order, np.flatnonzero(np.diff(component[order])) + 1) if len(order) else []:
        outside = component[neighbours[group]] != component[group[0]]
        around, far = labels[neighbours[group]][outside], lengths[group][outside]
        if not len(far):  # all neighbours are its own: look at all others
            if len(group) == len(places):
                continue
            others = np.setdiff1d(np.arange(len(places)), group, assume_unique=True)
            far, found = map(np.asarray, KDTree(places[others]).query(places[group]))
            around = labels[others[found]]
        if far.min() > alone:
            joined[group] = NOISE
            continue
        around = around[(around >= 0) & (far <= alone)]
        if len(around):
            found, counts = np.unique(around, return_counts=True)
            if counts.max() >= SURROUNDED * len(around):
                joined[group] = found[counts.argmax()]
    return joined


def _split_far(
    joined: np.ndarray, labels: np.ndarray, component: np.ndarray, small: np.ndarray, places: np.ndarray,
    columns: Columns, level: float,
) -> np.ndarray:  # fmt: skip
    """Make components that are far from the rest of their segment, with nothing between, segments of their own."""
    pieces = np.where((component >= 0) & ~small[np.maximum(component, 0)], component, -1)
    ids, compact = np.unique(pieces, return_inverse=True)
    compact = compact - int(ids[0] == -1)
    owner = np.full(int(compact.max()) + 1, NOISE)
    owner[compact[pieces >= 0]] = labels[pieces >= 0]
    several = np.flatnonzero(np.bincount(owner, minlength=1)[owner] > 1) if len(owner) else np.zeros(0, np.int64)
    if not len(several):
        return joined
    number = np.full(len(owner), -1)
    number[several] = np.arange(len(several))
    groups = np.where(pieces >= 0, number[np.maximum(compact, 0)], -1)
    rates = count_views(columns, group_matrix(groups)).rates()
    everything, next_label = KDTree(places[labels >= 0]), int(joined.max()) + 1
    owners_of_points = labels[labels >= 0]
    for label in np.unique(owner[several]):
        parts = sorted(np.flatnonzero(owner[several] == label), key=lambda p: -int((groups == p).sum()))
        kept = [parts[0]]
        for part in parts[1:]:
            rest = np.isin(groups, kept)
            if rates[part, kept].max() < level and _far(
                places, groups == part, rest, everything, owners_of_points, label
            ):
                joined[(groups == part) & (joined == label)] = next_label
                next_label += 1
            else:
                kept.append(part)
    return joined


def _far(
    places: np.ndarray, part: np.ndarray, rest: np.ndarray, everything: KDTree, owners: np.ndarray, label: int
) -> bool:
    """Say whether two sets of Gaussians are far apart with nothing of other segments between."""
    one, other = places[part], places[rest]
    distance, nearest = (np.asarray(x) for x in KDTree(other).query(one))
    i = int(distance.argmin())
    gap = float(distance[i])
    sizes = [np.linalg.norm(np.percentile(p, 95, axis=0) - np.percentile(p, 5, axis=0)) for p in (one, other)]
    if gap <= APART * min(sizes):
        return False
    steps = np.linspace(0, 1, LINE + 2)[1:-1, None]
    line = one[i] + steps * (other[nearest[i]] - one[i])
    return not any(any(owners[j] != label for j in found) for found in everything.query_ball_point(line, CLEAR * gap))
