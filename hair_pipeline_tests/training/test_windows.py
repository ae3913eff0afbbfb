"""Windows hold what they are for, stay in the image, and turn pixels and boxes alike."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hair_pipeline.models.recogniser import align
from hair_pipeline.training.windows import Window, face_window, hair_window, largest_side

Span = st.tuples(st.integers(0, 63), st.integers(1, 64)).map(lambda pair: (pair[0], min(64, pair[0] + pair[1])))


@given(rows=Span, columns=Span, largest=st.sampled_from([0.25, 0.4, 0.5, 0.7, 1.0]), choice=st.integers(0, 999))
def test_hair_windows_lie_on_the_hair(
    rows: tuple[int, int], columns: tuple[int, int], largest: float, choice: int
) -> None:
    hair = torch.zeros(64, 64)
    hair[slice(*rows), slice(*columns)] = 0.3
    window = hair_window(hair, largest, choice)
    assert window is not None
    limit = largest_side(64, largest)
    for start, length, (low, high) in ((window.top, window.height, rows), (window.left, window.width, columns)):
        assert start >= 0
        assert start + length <= 64
        assert 1 <= length <= limit
        if high - low + 2 <= limit:
            assert start <= low
            assert high <= start + length
        else:
            assert start < high
            assert low < start + length
    assert window.cells(hair).sum() > 0


def test_large_hair_has_all_of_it_looked_at_in_turn() -> None:
    hair = torch.ones(64, 64)
    seen = torch.zeros(64, 64)
    for choice in range(1000):
        window = hair_window(hair, 0.5, choice)
        assert window is not None
        window.cells(seen).add_(1)
    assert bool((seen > 0).all())


def test_no_hair_no_window_and_small_images_whole() -> None:
    assert hair_window(torch.zeros(8, 8), 0.5, 0) is None
    assert hair_window(torch.ones(16, 16), 0.5, 0) == Window(0, 0, 16, 16)


@given(x=st.floats(-20, 150), y=st.floats(-20, 150), height=st.floats(10, 150))
def test_a_face_is_aligned_alike_in_its_window(x: float, y: float, height: float) -> None:
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[x, y, x + 0.75 * height, y + height]])
    window = face_window(box[0], (16, 16), 8)
    assert 0 <= window.top <= window.top + window.height <= 16
    assert 0 <= window.left <= window.left + window.width <= 16
    part = window.pixels(image, 8)
    assert part.shape[-2:] == (8 * window.height, 8 * window.width)
    assert torch.allclose(align(part, window.move_box(box, 8)), align(image, box), atol=2e-3)


def test_pasting_keeps_the_rest_and_passes_gradients_to_the_part() -> None:
    image, part = torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 16, 8, requires_grad=True)
    pasted = Window(1, 2, 4, 2).paste(part, image, 4)
    assert torch.equal(Window(1, 2, 4, 2).pixels(pasted, 4), part)
    assert pasted.sum() == part.sum()
    pasted.square().sum().backward()
    assert bool((part.grad == 2).all())
