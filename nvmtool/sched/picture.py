"""Drawing a replay over time as SVG: the host's free memory against its goal, and below it what each VM's memory is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..picture import Look, svg_document, svg_legend, svg_text
from ..text import human, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .replay import Replay, Sample

# From the bottom of each VM's picture to its top; lightness tells them apart where colour does not.
LOOKS = {
    "in use": Look("█", "#", "blue", "#0b3c6f"),
    "inactive anon": Look("▓", "x", "blue", "#2f7cc0"),
    "inactive file": Look("▒", "+", "blue", "#7db8e0"),
    "free": Look("░", ":", "blue", "#c3dff2"),
    "swapped": Look("#", "s", "red", "#b5483a"),
    "ballooned": Look("·", ".", "bright_black", "#f1e6c8"),
}
_PARTS = {
    "in use": ("unreclaimable", "active_anon", "active_file"),
    "inactive anon": ("inactive_anon",),
    "inactive file": ("inactive_file",),
    "free": ("free",),
    "swapped": ("swapped",),
    "ballooned": ("ballooned",),
}

# Pixels.
_LEFT, _WIDTH, _RIGHT = 190, 760, 130
_HEAD, _HOST, _VM, _GAP = 96, 110, 54, 14
_MOST_VMS = 40
_MOST_SAMPLES = 760


def replay_svg(replay: Replay, title: str) -> str:
    """Return an SVG document of its own. Of many VMs the ones that gave most are drawn."""
    samples = _thinned(replay.samples)
    names = sorted(replay.vms, key=lambda name: -replay.vms[name].reclaimed_bytes)[:_MOST_VMS]
    names = [name for name in replay.vms if name in names]
    left_out = len(replay.vms) - len(names)
    bottom = _HEAD + _HOST + _GAP + len(names) * (_VM + _GAP)
    parts = list(svg_legend(LOOKS, [_LEFT + 126 * (i + 1) for i in range(len(LOOKS))], _HEAD - 22))
    parts += _host_chart(samples, _HEAD)
    for row, name in enumerate(names):
        parts += _vm_chart(samples, name, _HEAD + _HOST + _GAP + row * (_VM + _GAP))
    parts += _time_axis(samples, bottom)
    if left_out:
        parts.append(f'<text x="{_LEFT}" y="{bottom + 44}" fill="#6b7a88">{left_out:,} VMs that gave less are left out</text>')
    return svg_document(title, _LEFT + _WIDTH + _RIGHT, bottom + (60 if left_out else 40), parts)


def _thinned(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return at most a sample a pixel, the last one included."""
    step = -(-len(samples) // _MOST_SAMPLES)
    return [*samples[:-1:step], samples[-1]]


def _x_of(samples: Sequence[Sample]) -> Callable[[float], float]:
    first, last = samples[0].t, samples[-1].t
    return lambda t: _LEFT + _WIDTH * (t - first) / (last - first) if last > first else _LEFT


def _host_chart(samples: Sequence[Sample], top: int) -> Iterator[str]:
    x = _x_of(samples)
    most = max(1, *(max(each.free_bytes, each.goal_bytes) for each in samples)) * 1.15

    def y(size: int) -> float:
        return top + _HOST * (1 - max(0, size) / most)

    free = " ".join(f"{x(each.t):.1f},{y(each.free_bytes):.1f}" for each in samples)
    goal = " ".join(f"{x(each.t):.1f},{y(each.goal_bytes):.1f}" for each in samples)
    yield f"<g><title>host: free memory, from {human(samples[0].free_bytes)} to {human(max(0, samples[-1].free_bytes))}</title>"
    yield f'<text x="{_LEFT - 12}" y="{top + 16}" text-anchor="end" font-weight="600">host, free</text>'
    yield f'<text x="{_LEFT - 12}" y="{top + 34}" text-anchor="end" fill="#6b7a88">dashed: the goal</text>'
    base, right = f"{top + _HOST}", f"{x(samples[-1].t):.1f}"
    yield f'<polygon points="{_LEFT},{base} {free} {right},{base}" fill="#7fb069" fill-opacity="0.55"/>'
    yield f'<polyline points="{goal}" fill="none" stroke="#22303c" stroke-dasharray="6 4"/>'
    yield f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HOST}" fill="none" stroke="#9aa7b2"/>'
    yield f'<text x="{_LEFT + _WIDTH + 8}" y="{y(samples[-1].free_bytes) + 4:.1f}">{human(max(0, samples[-1].free_bytes))}</text></g>'


def _vm_chart(samples: Sequence[Sample], name: str, top: int) -> Iterator[str]:
    """Yield one VM's memory over time, its parts stacked; a gap where it did not run."""
    x = _x_of(samples)
    here = [each for each in samples if name in each.vms]
    shown = printable(name)
    shown = shown if len(shown) <= 22 else shown[:21] + "…"
    sums = [[sum(each.vms[name][part] for part in parts) for parts in _PARTS.values()] for each in here]
    most = max(1, *(sum(each) for each in sums))
    facts = ", ".join(f"{kind} {human(size)}" for kind, size in zip(_PARTS, sums[-1], strict=True))
    yield f"<g><title>{svg_text(name)} at the end: {facts}</title>"
    yield f'<text x="{_LEFT - 12}" y="{top + _VM // 2 + 5}" text-anchor="end">{svg_text(shown)}</text>'
    below = [0] * len(here)
    for index, look in enumerate(LOOKS.values()):
        above = [low + each[index] for low, each in zip(below, sums, strict=True)]
        edge = [(x(each.t), top + _VM * (1 - size / most)) for each, size in zip(here, above, strict=True)]
        back = [(x(each.t), top + _VM * (1 - size / most)) for each, size in zip(here, below, strict=True)]
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in [*edge, *reversed(back)])
        yield f'<polygon points="{points}" fill="{look.fill}"/>'
        below = above
    yield f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_VM}" fill="none" stroke="#9aa7b2"/>'
    yield f'<text x="{_LEFT + _WIDTH + 8}" y="{top + 16}">{human(most)}</text></g>'


def _time_axis(samples: Sequence[Sample], top: int) -> Iterator[str]:
    first, last = samples[0].t, samples[-1].t
    for i in range(5):
        t = first + (last - first) * i / 4
        px = _LEFT + _WIDTH * i / 4
        yield f'<path d="M{px:.1f} {top}v6" stroke="#6b7a88"/>'
        yield f'<text x="{px:.1f}" y="{top + 21}" font-size="11" text-anchor="middle">{t:g} s</text>'
